"""Images that are stored at the model's size give the same pixel values, bit for bit."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value, load_from_disk
from PIL import Image as PILImage
from tiny import SIZE, image_processor, share_of_a, text_processor, tiny_model
from transformers import BatchFeature, CLIPImageProcessorPil

from vision_rl import TextProcessor, VisionProcessor, VisionRewardConfig, VisionRewardTrainer
from vision_rl.data.preprocessed import preprocessed
from vision_rl.tasks.colorization import ColorizationProcessor
from vision_rl.tasks.detection import DetectionProcessor


def photos(count: int = 10) -> Dataset:
    """JPEGs of several sizes, some of them grey."""
    rng = np.random.default_rng(0)

    def photo(index: int) -> dict:
        file = io.BytesIO()
        coarse = PILImage.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((64 + 8 * index, 48)).convert("L" if index % 4 == 3 else "RGB").save(file, "JPEG")
        return {"bytes": file.getvalue(), "path": None}

    return Dataset.from_dict(
        {"image": [photo(i) for i in range(count)], "text": ["ab"] * count},
        features=Features({"image": Image(), "text": Value("string")}),
    )


def pixel_values(dataset, processor) -> torch.Tensor:
    return processor(images=[row["image"].convert("RGB") for row in dataset])["pixel_values"]


@pytest.mark.parametrize(
    "resizer",
    [image_processor(), CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})],
)
def test_stored_images_become_the_same_pixel_values(resizer):
    processor = TextProcessor(resizer, text_processor().tokenizer)
    rows = photos()
    stored = preprocessed(rows, processor)
    assert pixel_values(stored, processor).equal(pixel_values(rows, processor))
    assert stored["text"] == rows["text"] and stored.column_names == rows.column_names
    assert stored[3]["image"].size == (32, 32) and stored[3]["image"].mode == "RGB"


def test_a_resize_that_changes_its_own_output_is_refused():
    """The crop is smaller than the size to which images are resized, so a stored crop would be enlarged again."""
    resizer = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24})
    with pytest.raises(ValueError, match="a different `pixel_values` of row 0"):
        preprocessed(photos(), TextProcessor(resizer, text_processor().tokenizer))


def test_training_on_stored_images_is_the_same_with_workers_too(tmp_path):
    def trained(rows, workers: int = 0) -> dict[str, torch.Tensor]:
        args = VisionRewardConfig(
            str(tmp_path),
            learning_rate=1e-3,
            max_completion_length=4,
            per_device_train_batch_size=4,
            max_steps=3,
            dataloader_num_workers=workers,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = VisionRewardTrainer(tiny_model(), share_of_a, args, rows, processing_class=text_processor())
        trainer.train()
        return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}

    rows = photos()
    weights = trained(rows)
    for other in (trained(rows, 2), trained(preprocessed(rows, text_processor()), 1)):
        assert all(weight.equal(other[name]) for name, weight in weights.items())


def test_the_file_is_found_again_where_the_data_set_lies_on_disk(tmp_path):
    photos().save_to_disk(str(tmp_path / "rows"))
    rows = load_from_disk(str(tmp_path / "rows"))
    first, second = (preprocessed(rows, text_processor()) for _ in range(2))
    assert first.cache_files and first.cache_files == second.cache_files
    other = preprocessed(rows, TextProcessor(image_processor(16), text_processor().tokenizer))
    assert other[0]["image"].size == (16, 16)


def test_a_data_set_in_memory_is_stored_where_it_is_told(tmp_path):
    file = tmp_path / "stored.arrow"
    assert len(preprocessed(photos(), text_processor(), cache_file_name=str(file))) == 10
    assert file.stat().st_size > 10 * 32 * 32 * 3


def test_columns_can_be_selected_without_the_image():
    assert preprocessed(photos(), text_processor()).select_columns("text")[0] == {"text": "ab"}


class CroppingProcessor(TextProcessor):
    """Cuts out a random corner before resizing."""

    def __call__(self, images, seeds=None, text=None, **kwargs) -> BatchFeature:
        if seeds is not None:
            sides = [np.random.default_rng(seed).integers(20, 40) for seed in seeds]
            images = [image.crop((0, 0, side, side)) for image, side in zip(images, sides, strict=True)]
        return super().__call__(images, text=text)


class MeasuringProcessor(VisionProcessor):
    """Has references in pixels of the photo."""

    target_columns = ("text",)

    def __init__(self, image_processor, **kwargs):
        super().__init__(image_processor, **kwargs)

    def __call__(self, images, seeds=None, **targets) -> BatchFeature:
        return BatchFeature({"pixel_values": self.image_processor(list(images), return_tensors="pt")["pixel_values"]})

    def get_references(self, rows):
        return [row["image"].size for row in rows]


def test_random_crops_are_refused():
    processor = CroppingProcessor(image_processor(), text_processor().tokenizer)
    with pytest.raises(ValueError, match="a different `pixel_values with seed 0` of row 0"):
        preprocessed(photos(), processor)


def test_a_processor_that_measures_in_the_photos_pixels_is_refused():
    with pytest.raises(ValueError, match="a different `references` of row 0"):
        preprocessed(photos(), MeasuringProcessor(image_processor()))


def test_stage_one_and_data_sets_with_transforms_are_refused():
    processor = ColorizationProcessor(
        image_processor=type(image_processor())(
            size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        num_codes=4,
        code_len=4,
    )
    with pytest.raises(ValueError, match="mirrors and cuts"):
        preprocessed(photos(), processor)
    with pytest.raises(ValueError, match="preprocess it first"):
        preprocessed(photos().with_transform(lambda batch: batch), text_processor())
    with pytest.raises(ValueError, match="tensor format: preprocess it first"):
        preprocessed(photos().with_format("torch"), text_processor())
    with pytest.raises(TypeError, match=r"datasets\.Dataset"):
        preprocessed([{"image": 0}], text_processor())


def boxes_on_photos() -> Dataset:
    rows = photos()
    objects = [
        {"bbox": [[3.0, 5.0, 20.0 + i, 30.0], [0.0, 0.0, 9.0, 9.0]], "category": [0, 1]} for i in range(len(rows))
    ]
    return rows.add_column("objects", objects)


def test_boxes_are_measured_in_the_photos_pixels():
    from vision_rl.trainer.collator import VisionCollator
    from vision_rl.trainer.data_order import RowDataset, RowKey

    processor = DetectionProcessor(image_processor(), ["a", "b"], num_bins=50, max_boxes=3)
    rows = boxes_on_photos()
    stored = preprocessed(rows, processor)
    collator = VisionCollator(processor, "image", {"objects": "objects"}, with_labels=True)
    first, second = (
        collator([RowDataset(dataset, seed=0)[RowKey(0, index)] for index in range(10)]) for dataset in (rows, stored)
    )
    assert second["pixel_values"].equal(first["pixel_values"]) and second["labels"].equal(first["labels"])
    assert second["columns"].image_sizes == first["columns"].image_sizes == [(64 + 8 * i, 48) for i in range(10)]
    for mine, theirs in zip(second["columns"].references, first["columns"].references, strict=True):
        assert mine["target_ids"] == theirs["target_ids"]
        np.testing.assert_array_equal(mine["boxes"], theirs["boxes"])
    processor.check_dataset(stored, {"image": "image", "objects": "objects"})


@pytest.mark.parametrize("views", [{"flip": True}, {"scale_jitter": (0.5, 0.9)}, {"scale_jitter": (1.2, 2.0)}])
def test_the_boxes_of_other_views_are_those_of_the_photos_views(views):
    processor = DetectionProcessor(
        image_processor(), ["a", "b"], num_bins=50, max_boxes=3, box_order="sorted", **views
    )
    rows = boxes_on_photos()
    labels = []
    for dataset in (rows, preprocessed(rows, DetectionProcessor(image_processor(), ["a", "b"], num_bins=50))):
        columns = {name: [dataset[index][name] for index in range(10)] for name in ("image", "objects")}
        labels.append(processor(columns["image"], list(range(10)), columns["objects"])["labels"])
    corners = torch.arange(labels[0].shape[1]) % 6 < 4
    assert (labels[0] - labels[1])[:, corners].abs().max() <= 2 * 50 / (
        SIZE / 2
    )  # two pixels of a view, which is cut at whole ones
    if "flip" in views:
        assert labels[0].equal(labels[1])


def test_letterboxed_images_are_refused():
    processor = DetectionProcessor(image_processor(), ["a", "b"], num_bins=50, max_boxes=3, resize="letterbox")
    with pytest.raises(ValueError, match="a different `pixel_values` of row 0"):
        preprocessed(boxes_on_photos(), processor)
