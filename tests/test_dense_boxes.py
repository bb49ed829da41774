"""The auxiliary dense loss of the detection experiment: its targets, its scale, its head in checkpoints."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_detection_processor import box_dataset, options, processor, tiny_detector
from transformers import VisionEncoderDecoderModel

from vision_rl import VisionMLEConfig
from vision_rl.trainer.collator import BatchColumns


@pytest.fixture
def dense_trainer(experiment):
    def make(folder, **more):
        torch.manual_seed(0)
        p = processor(num_bins=32)
        args = VisionMLEConfig(**options(folder, **more))
        return experiment("dense_boxes").DenseBoxesMLETrainer(
            tiny_detector(p), args, train_dataset=box_dataset(), processing_class=p
        )

    return make


def test_a_patch_learns_the_smallest_box_that_its_centre_lies_in(dense_trainer, tmp_path):
    reference = {"boxes": np.array([[0, 0, 32, 16], [0, 0, 16, 16]]), "labels": np.array([0, 2])}
    reference["iscrowd"] = np.zeros(2, bool)
    empty = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "iscrowd": np.zeros(0, bool)}
    columns = BatchColumns({}, [reference, empty], [(32, 32), (32, 32)])
    labels, boxes = dense_trainer(tmp_path).dense_targets(columns, num_patches=4)
    assert labels.tolist() == [[2, 0, 3, 3], [3, 3, 3, 3]]
    assert boxes[0].tolist() == [[0, 0, 0.5, 0.5], [0, 0, 1, 0.5], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_crowd_regions_are_not_learned_as_boxes(dense_trainer, tmp_path):
    """The processor's labels leave crowd regions out. A box inside of a crowd region is still learned."""
    p = processor(num_bins=32)
    objects = {"bbox": [[0, 0, 32, 16], [0, 0, 16, 16]], "category": [0, 2], "iscrowd": [1, 0]}
    (reference,) = p.get_references([{"image": Image.new("RGB", (32, 32)), "objects": objects}])
    labels, boxes = dense_trainer(tmp_path).dense_targets(BatchColumns({}, [reference], [(32, 32)]), num_patches=4)
    assert labels.tolist() == [[2, 3, 3, 3]] and boxes[0, 1:].sum() == 0


def test_the_dense_loss_is_the_same_for_every_split_into_micro_batches(dense_trainer, tmp_path):
    weights = []
    for batch, accumulated in ((8, 1), (2, 4)):
        trainer = dense_trainer(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated, learning_rate=1e-3
        )
        trainer.train()
        weights.append(trainer.model.dense_head.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)


def test_the_head_is_resumed_with_the_model_and_dropped_at_the_end(dense_trainer, tmp_path):
    whole = dense_trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    first = dense_trainer(tmp_path / "parts", max_steps=4, save_strategy="steps", save_steps=2)
    first.train()
    resumed = dense_trainer(tmp_path / "parts", max_steps=4)
    with torch.no_grad():
        resumed.model.dense_head.weight.zero_()
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    resumed.drop_head()
    resumed.save_model(str(tmp_path / "final"))
    saved = VisionEncoderDecoderModel.from_pretrained(tmp_path / "final", output_loading_info=True)[1]
    assert not saved["unexpected_keys"]
