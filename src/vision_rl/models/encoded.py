"""Images that a frozen encoder has seen already: its output is computed once and learned from many times."""

import torch
from torch.utils.data import Dataset
from transformers import VisionEncoderDecoderModel

from vision_rl.models.unwrapping import evaluation_mode
from vision_rl.processing import VisionProcessor, rgb_image


class EncodedDataset(Dataset):
    """The rows of `dataset` with `encoder_outputs (N, d)` beside their columns, which the trainers then take.

    For training a decoder on an encoder that stays as it is, as one does without a GPU: most of the work of a step is
    the encoder's. The images are still read, for their sizes and for whatever the rewards want of them.

    Args:
        dataset: map-style, rows with `image`.
        model: its encoder must be frozen: `model.encoder.requires_grad_(False)`.
        processor: makes the `pixel_values`.
        image_column: name of the column with the image.
        batch_size: images at once.
        dtype: of what is kept, `N * d` numbers an image: 0.2 MB for a ViT-S at 224 pixels in float16.

    Raises:
        ValueError: for an encoder that would go on learning.
    """

    def __init__(
        self,
        dataset,
        model: VisionEncoderDecoderModel,
        processor: VisionProcessor,
        image_column: str = "image",
        batch_size: int = 16,
        dtype: torch.dtype = torch.float16,
    ):
        if not isinstance(model, VisionEncoderDecoderModel):
            raise TypeError(
                f"An EncodedDataset holds what the encoder of a VisionEncoderDecoderModel says; this is a "
                f"{type(model).__name__}: give the trainer the data set itself."
            )
        if any(parameter.requires_grad for parameter in model.encoder.parameters()):
            raise ValueError(
                "The encoder still learns, and what it says of an image now would soon be out of date: freeze it with "
                "model.encoder.requires_grad_(False)."
            )
        self.dataset = dataset
        encoded = []
        with torch.no_grad(), evaluation_mode(model):
            for start in range(0, len(dataset), batch_size):
                rows = range(start, min(start + batch_size, len(dataset)))
                images = [rgb_image(dataset[row][image_column], row) for row in rows]
                pixel_values = processor(images=images)["pixel_values"].to(model.device)
                hidden = model.encoder(pixel_values=pixel_values, return_dict=True).last_hidden_state
                encoded.append(hidden.to("cpu", dtype))
        self.encoder_outputs = torch.cat(encoded)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return {**self.dataset[index], "encoder_outputs": self.encoder_outputs[index].float()}
