"""The processor of colorization, the pictures of its predictions, and a colorizer tuned for colourfulness."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from recorded import golden
from tiny import SIZE, image_processor, tiny_images, tiny_model
from transformers import AutoProcessor, ViTImageProcessorPil

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.processing import random_box
from vision_rl.tasks.colorization import (
    ColorfulnessReward,
    ColorizationProcessor,
    colorization_metrics,
    draw,
    is_grey,
    rgb_to_grey,
    rgb_to_lab,
    without_grey,
)
from vision_rl.tasks.colorization.processing import resize_without_antialias


COLUMNS = {"image": "image"}


def processor(size: int = SIZE, **kwargs) -> ColorizationProcessor:
    return ColorizationProcessor(image_processor(size), **{"num_codes": 8, "code_len": 4, **kwargs})


def photos(count: int = 3, width: int = 48, height: int = 40) -> list[Image.Image]:
    """Smooth pictures in colour."""
    return [image.resize((6, 5)).resize((width, height), Image.Resampling.BICUBIC) for image in tiny_images(count)]


def photo_dataset(images: list[Image.Image]) -> Dataset:
    return Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))


# Grey and range


def test_grey_is_that_of_the_authors_for_every_recorded_colour():
    arrays = golden("color_conversion.npz")
    for color, grey in (("rgb_u8", "gray_u8"), ("grid_rgb_u8", "grid_gray_u8")):
        ours = rgb_to_grey(torch.from_numpy(arrays[color]))
        assert (ours[..., None].expand(*ours.shape, 3).numpy() == arrays[grey]).all()


def test_inputs_are_those_of_the_authors_pipeline():
    arrays = golden("color_conversion.npz")
    height, width = arrays["rgb_u8"].shape[1:3]
    p = ColorizationProcessor(ViTImageProcessorPil(size={"height": height, "width": width}))
    batch = p.dense([Image.fromarray(pixels) for pixels in arrays["rgb_u8"]])
    assert np.abs(batch["pixel_values"].movedim(1, -1).numpy() - arrays["pipeline_image"]).max() < 1e-6
    assert np.abs(batch["targets"]["color"].numpy() - arrays["pipeline_labels"]).max() < 1e-6
    assert np.abs(batch["targets"]["color"].numpy() - arrays["value_range"]).max() < 1e-6


def test_the_resize_of_the_authors_is_there_for_their_models():
    arrays = golden("color_conversion.npz")
    for side in (16, 64):
        assert (
            resize_without_antialias(arrays["resize_in"], side, side).numpy() == arrays[f"resize_bilinear_{side}"]
        ).all()
    p = processor(16, antialias=False)
    (reference,) = p.get_references([{"image": Image.fromarray(arrays["resize_in"])}])
    assert (np.asarray(reference) == arrays["resize_bilinear_16"]).all()
    assert (
        np.asarray(processor(16).get_references([{"image": Image.fromarray(arrays["resize_in"])}])[0]) != reference
    ).any()


def test_grey_is_rounded_down_and_weighs_green_most():
    colors = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]], dtype=torch.uint8)
    assert rgb_to_grey(colors).tolist() == [76, 149, 29, 255, 0]  # 0.2989 * 255.5 = 76.4, 0.587 * 255.5 = 149.98
    greys = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 3)
    assert (rgb_to_grey(greys) == greys[:, 0]).all()  # a grey pixel stays as it is


def test_the_photo_is_resized_before_it_is_made_grey():
    batch = processor().dense(photos())
    color = ((batch["targets"]["color"] + 1) * 127.5).round().to(torch.uint8)
    assert color.shape == (3, SIZE, SIZE, 3) and batch["pixel_values"].shape == (3, 3, SIZE, SIZE)
    for channel in range(3):
        assert torch.equal(batch["pixel_values"][:, channel], rgb_to_grey(color) / 127.5 - 1)
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].abs().max() <= 1


# Augmentation


def test_a_seed_says_whether_a_photo_is_mirrored_and_color_goes_with_grey():
    p, image = processor(), photos(1)
    plain = p.dense(image)
    mirrored = 0
    for seed in range(20):
        batch, again = p.dense(image, seeds=[seed]), p.dense(image, seeds=[seed])
        assert torch.equal(batch["targets"]["color"], again["targets"]["color"])
        flipped = not torch.equal(batch["targets"]["color"], plain["targets"]["color"])
        mirrored += flipped
        expected = plain["targets"]["color"].flip(2) if flipped else plain["targets"]["color"]
        assert (batch["targets"]["color"] - expected).abs().max() < 0.02  # mirroring comes before resizing here
        grey = rgb_to_grey(((batch["targets"]["color"] + 1) * 127.5).round().to(torch.uint8)) / 127.5 - 1
        assert torch.equal(batch["pixel_values"][:, 0], grey)
    assert 4 < mirrored < 16
    still = processor(flip=False)
    assert all(torch.equal(still.dense(image, [seed])["pixel_values"], plain["pixel_values"]) for seed in range(8))


def test_crops_have_the_area_and_the_shape_that_they_should_and_lie_inside():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box((80, 60), (0.25, 0.75), rng) for _ in range(500)])
    assert boxes.min() == 0 and (boxes[:, 2:].max(0) == (80, 60)).all()  # some reach the border
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    areas = width * height / 4800
    assert 0.23 < areas.min() < 0.3 and 0.7 < areas.max() < 0.77
    assert 0.72 < (width / height).min() < 0.8 and 1.3 < (width / height).max() < 1.38
    x0, y0, x1, y1 = random_box((400, 2), (0.9, 1.0), rng)  # no crop of an allowed shape has that area
    assert y1 - y0 == 2 and 1 <= x1 - x0 <= 3


def test_a_crop_is_the_seeds_and_shows_a_part_of_the_photo():
    cropping = processor(crop_area=(0.05, 1.0), flip=False)
    (image,) = photos(1)
    crops = torch.cat([cropping.dense([image], [seed])["targets"]["color"] for seed in range(6)])
    assert torch.equal(crops[2:3], cropping.dense([image], [2])["targets"]["color"])
    assert len({crop.mean().item() for crop in crops}) == 6


# Codes


def test_labels_are_the_codes_plus_one_and_photos_with_codes_are_never_mirrored():
    p = processor()
    batch = p(images=photos(2), seeds=[1, 2], codes=[[0, 7, 3, 3], np.array([1, 2, 3, 4])])
    assert batch["labels"].tolist() == [[1, 8, 4, 4], [2, 3, 4, 5]] and batch["labels"].dtype == torch.long
    assert torch.equal(batch["pixel_values"], p.dense(photos(2))["pixel_values"])
    assert "labels" not in p(images=photos(2), seeds=[1, 2])
    assert (p.vocab_size, p.completion_length, p.target_columns) == (9, 4, ())


@pytest.mark.parametrize("codes", [[1, 2, 3], [1, 2, 3, 8], [-1, 2, 3, 4], [0.5, 1.0, 2.0, 3.0]])
def test_codes_that_do_not_fit_are_refused(codes):
    with pytest.raises(ValueError, match="codes must be"):
        processor()(images=photos(1), codes=[codes])


def test_ids_alone_are_no_picture():
    with pytest.raises(NotImplementedError, match="give the trainer that network as completion_decoder"):
        processor().batch_decode([[1, 2, 3, 4]])


# References and pictures


def test_the_reference_is_the_photo_in_the_models_frame():
    p = processor()
    references = p.get_references([{"image": image} for image in photos()])
    assert [(image.size, image.mode) for image in references] == [((SIZE, SIZE), "RGB")] * 3
    assert [np.asarray(a).tolist() for a in p.to_images(p.dense(photos())["targets"]["color"])] == [
        np.asarray(b).tolist() for b in references
    ]


def test_predictions_are_clipped_and_rounded():
    color = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 1.2]).view(1, 2, 1, 3).to(torch.bfloat16)
    assert np.asarray(processor().to_images(color)[0]).flatten().tolist() == [0, 0, 128, 191, 255, 255]


def test_with_keep_luminance_the_lightness_is_the_photos_and_the_colour_the_predictions():
    p = processor(keep_luminance=True)
    batch = p.dense(photos())
    faded = batch["targets"]["color"] * 0.2
    (kept, *_), (plain, *_) = p.to_images(faded, batch["pixel_values"]), processor().to_images(faded)

    def lab(image):
        return rgb_to_lab(torch.from_numpy(np.array(image)).double() / 255)

    grey = rgb_to_lab((batch["pixel_values"][0].movedim(0, -1).double() + 1) / 2)
    assert (lab(kept)[..., 0] - grey[..., 0]).abs().mean() < 1 < (lab(plain)[..., 0] - grey[..., 0]).abs().mean()
    assert (lab(kept)[..., 1:] - lab(plain)[..., 1:]).abs().mean() < 1  # some colours lie outside of sRGB
    for grey in (None, batch["pixel_values"][:1]):
        with pytest.raises(ValueError, match="keep_luminance takes the lightness .* of the 3 predictions"):
            p.to_images(faded, grey)


def test_a_row_of_named_pictures_has_the_shape_of_the_photo():
    image = Image.new("RGB", (60, 30), (255, 0, 0))
    square = np.full((32, 32, 3), (0, 0, 255), np.uint8)
    row = draw(image, {"before": square, "after": torch.from_numpy(square / 255)}, reference=image, width=120)
    assert row.width == 4 * 120 + 3 * 2 and 60 < row.height < 90
    middles = [row.getpixel((120 * column + 2 * column + 60, 30)) for column in range(4)]
    assert middles == [(76, 76, 76), (255, 0, 0), (0, 0, 255), (0, 0, 255)]
    assert np.asarray(row.convert("L"))[62:].min() < 160  # the names are written there
    assert draw(image, Image.fromarray(square), width=120).width == 242
    assert draw(np.asarray(image) / 255, square).height > 128


# Options, saving, checks of the data


def test_a_processor_is_saved_and_found_again(tmp_path):
    processor(keep_luminance=True, flip=False, crop_area=(0.3, 1), antialias=False).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, ColorizationProcessor)
    assert (loaded.num_codes, loaded.code_len, loaded.keep_luminance) == (8, 4, True)
    assert (loaded.flip, loaded.crop_area, loaded.antialias) == (False, [0.3, 1], False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codes": 0}, "num_codes and code_len must be positive; they are 0 and 4"),
        ({"code_len": 0}, "num_codes and code_len must be positive; they are 8 and 0"),
        ({"crop_area": (0.0, 1.0)}, "crop_area must be a range of shares"),
        ({"crop_area": (0.5, 1.5)}, "crop_area must be a range of shares"),
        ({"crop_area": (0.5, 0.4)}, "crop_area must be a range of shares"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        processor(**options)


def test_an_image_processor_with_another_range_or_no_frame_is_refused():
    with pytest.raises(ValueError, match=r"image_mean is \[0.485, .* set image_mean and image_std to"):
        ColorizationProcessor(ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.485, 0.456, 0.406]))
    with pytest.raises(ValueError, match="colours need a fixed size"):
        ColorizationProcessor(ViTImageProcessorPil(size={"shortest_edge": 32}))


def test_grey_and_tiny_photos_are_counted_before_training(caplog):
    grey = [image.convert("L") for image in photos(2)]
    dataset = photo_dataset([*photos(3), *grey, Image.new("RGB", (40, 8), (200, 0, 0))])
    with caplog.at_level(logging.WARNING):
        processor().check_dataset(dataset, COLUMNS)
    assert "2 of 6 photos that were looked at are grey: no channels of a pixel are more than 8" in caplog.text
    assert "1 of 6 photos that were looked at have a side of less than 16 pixels" in caplog.text
    caplog.clear()
    processor().check_dataset(photo_dataset(photos(3)), COLUMNS)
    assert not caplog.text


def test_photos_with_a_faint_cast_are_grey_and_sepia_ones_are_not():
    pixels = np.full((4, 4, 3), 100, np.uint8)
    pixels[0, 0] = (108, 104, 100)
    assert is_grey(Image.fromarray(pixels)) and is_grey(Image.fromarray(pixels).convert("L"))
    pixels[0, 0] = (109, 104, 100)
    assert not is_grey(Image.fromarray(pixels))
    assert is_grey(Image.fromarray(pixels), tolerance=9)


def test_grey_photos_are_left_out():
    images = photos(3)
    images[1] = images[1].convert("L")
    kept = without_grey(photo_dataset(images).rename_column("image", "photo"), image_column="photo")
    assert len(kept) == 2
    assert (np.asarray(kept[1]["photo"]) == np.asarray(images[2])).all()


# With the trainer


class Palette(torch.nn.Module):
    """A stage I without weights: each of four codes colours a quarter of the picture. Codes 0, 1 and 2 are grey."""

    def __init__(self, processor: ColorizationProcessor):
        super().__init__()
        self.processor = processor
        steps = torch.arange(processor.num_codes) / processor.num_codes * 2 * torch.pi
        colors = torch.stack([steps.cos(), (steps - 2).cos(), (steps + 2).cos()], dim=1)
        colors[:3] = 0
        self.register_buffer("colors", colors)

    def forward(self, completion_ids, batch):
        codes = (completion_ids.flatten(0, 1) - 1).clamp(min=0)  # (B * G, 4)
        quarters = self.colors[codes].view(-1, 2, 2, 3)
        grey = batch["pixel_values"].repeat_interleave(completion_ids.shape[1], dim=0)
        color = quarters.repeat_interleave(SIZE // 2, 1).repeat_interleave(SIZE // 2, 2)
        return self.processor.to_images(color, grey)


@pytest.mark.parametrize("keep_luminance", [False, True])
def test_a_colorizer_is_tuned_for_colourfulness(tmp_path, keep_luminance):
    p = processor(keep_luminance=keep_luminance)
    args = VisionRewardConfig(
        str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=8,
        learning_rate=1e-2,
        max_steps=25,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    tuned = VisionRewardTrainer(
        tiny_model(vocab_size=p.vocab_size, end=None),
        ColorfulnessReward(),
        args,
        train_dataset=photo_dataset(photos(8)),
        eval_dataset=photo_dataset(photos(4)),
        processing_class=p,
        compute_metrics=colorization_metrics,
        completion_decoder=Palette(p),
    )
    before = tuned.evaluate()
    tuned.train()
    after = tuned.evaluate()
    assert after["eval_colorfulness"] > before["eval_colorfulness"] + 0.1
    assert after["eval_reward"] == pytest.approx(after["eval_colorfulness"], abs=1e-6)
    logs = [entry for entry in tuned.state.log_history if "reward" in entry]
    assert {"vivid_fraction", "hue_entropy", "rewards/ColorfulnessReward/mean"} <= set(logs[0])
