"""MLE with an auxiliary loss: every patch of the encoder predicts the box that it lies in.

A small encoder that learns from scratch, through the decoder alone, takes very long to find out where things are. This
loss tells the encoder directly, as in dense detectors; `drop_head` removes the head of the loss afterwards. The file also
shows how to add an auxiliary loss to the MLE trainer: by a subclass.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vision_rl import VisionMLETrainer


class DenseBoxesMLETrainer(VisionMLETrainer):
    """`VisionMLETrainer` for detection, whose encoder also learns class and box of each patch."""

    weight, box_weight = 1.0, 5.0

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.num_labels = self.processor.num_labels
        # As a part of the model, the head is moved, optimised and saved with it. The last class: patches without a box.
        model.dense_head = nn.Linear(model.encoder.config.hidden_size, self.num_labels + 1 + 4).to(self.args.device)

    def drop_head(self) -> None:
        del self.unwrap(self.model).dense_head

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        predicted = self.unwrap(model).dense_head(outputs.encoder_last_hidden_state)  # (B, N, C + 1 + 4)
        labels, boxes = self.dense_targets(inputs["columns"], predicted.shape[1])
        labels, boxes = labels.to(predicted.device), boxes.to(predicted.device)  # (B, N), (B, N, 4)
        classes, corners = predicted.float().split([self.num_labels + 1, 4], dim=-1)
        class_loss = F.cross_entropy(classes.transpose(1, 2), labels, reduction="none").mean(1)  # (B,)
        covered = (labels < self.num_labels).float()  # (B, N)
        box_loss = F.smooth_l1_loss(corners.sigmoid(), boxes, reduction="none", beta=0.05).sum(-1)  # (B, N)
        box_loss = (box_loss * covered).sum(1) / covered.sum(1).clamp(min=1)  # (B,)
        loss = loss + self.weight * self.mean_over_step(class_loss + self.box_weight * box_loss)
        return (loss, outputs) if return_outputs else loss

    def dense_targets(self, columns, num_patches: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest box that the centre of each patch lies in: its class `(B, N)` and its corners `(B, N, 4)` in 0..1.

        Crowd regions are left out, as in the processor's labels: they are no objects.
        """
        side = round(num_patches**0.5)
        y, x = (np.mgrid[:side, :side].reshape(2, -1) + 0.5) / side  # (N,) centres in 0..1
        labels = np.full((len(columns.references), num_patches), self.num_labels)
        boxes = np.zeros((*labels.shape, 4), np.float32)
        for row, (reference, size) in enumerate(zip(columns.references, columns.image_sizes, strict=True)):
            objects = ~reference["iscrowd"]
            classes = reference["labels"][objects]
            x0, y0, x1, y1 = (reference["boxes"][objects] / np.tile(size, 2)).T[:, :, None]  # (n, 1) each
            inside = (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)  # (n, N)
            if inside.any():
                area = np.where(inside, (x1 - x0) * (y1 - y0), np.inf)
                smallest, covered = area.argmin(0), inside.any(0)
                labels[row, covered] = classes[smallest[covered]]
                boxes[row, covered] = np.concatenate([x0, y0, x1, y1], axis=1)[smallest[covered]]
        return torch.from_numpy(labels), torch.from_numpy(boxes)
