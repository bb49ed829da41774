"""CIELAB, the terms of the colourfulness reward, the rewards, the metric and their evaluate modules."""

import csv
import math
import pickle
import re
from collections import Counter
from io import BytesIO
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recorded import golden
from skimage.color import lab2rgb, rgb2lab
from skimage.data import astronaut, chelsea, coffee, rocket

import vision_rl
from vision_rl.tasks.colorization import (
    ColorfulnessReward,
    colorfulness_terms,
    colorization_metrics,
    fidelity_reward,
    hasler_colorfulness,
    lab_to_rgb,
    psnr,
    rgb_to_lab,
)
from vision_rl.tasks.colorization.colorfulness import _classify


PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet_sample_1000"
GREY = np.full((4, 6, 3), 128, np.uint8)
READINGS = [(hue, over) for hue in ("arctan2", "arctan") for over in ("all", "vivid")]


def colour(hue: float, chroma: float = 40, lightness: float = 60) -> np.ndarray:
    """The 8-bit colour nearest to a hue in radians and a chroma, its distance from grey in CIELAB."""
    lab = torch.tensor([lightness, chroma * math.cos(hue), chroma * math.sin(hue)], dtype=torch.float64)
    return (lab_to_rgb(lab) * 255).round().to(torch.uint8).numpy()


def stripes(*colours) -> np.ndarray:
    """A picture `(2, n, 3)` with a column for each colour."""
    return np.repeat(np.array(colours, np.uint8)[None], 2, axis=0)


def noise(height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# CIELAB


def test_lab_is_scikit_images_for_every_channel_value():
    rgb = np.concatenate([noise(64, 64).reshape(-1, 3), np.repeat(np.arange(256)[:, None], 3, 1)]) / 255
    expected = rgb2lab(rgb)
    assert np.abs(rgb_to_lab(torch.from_numpy(rgb)).numpy() - expected).max() < 1e-10
    assert np.abs(rgb_to_lab(torch.from_numpy(rgb).float()).numpy() - expected).max() < 1e-4


def test_lab_is_that_of_the_recorded_colours():
    arrays = golden("lab.npz")
    for rgb, lab in ((arrays["rgb_u8"] / 255, arrays["lab"]), ((arrays["img_pm1"] + 1) / 2, arrays["img_lab"])):
        assert np.abs(rgb_to_lab(torch.from_numpy(rgb).double()).numpy() - lab).max() < 1e-5  # img_pm1 is float32
        assert np.abs(rgb_to_lab(torch.from_numpy(rgb).float()).numpy() - lab).max() < 1e-4


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")  # scikit-image warns of what it clips
def test_colours_come_back_from_lab_and_those_outside_of_srgb_are_clipped_as_by_scikit_image():
    rgb = torch.from_numpy(noise(32, 32) / 255)
    assert (lab_to_rgb(rgb_to_lab(rgb)) - rgb).abs().max() < 1e-5  # the two colour matrices have six digits
    assert ((lab_to_rgb(rgb_to_lab(rgb.float())) - rgb) * 255).abs().max() < 0.01
    lab = np.random.default_rng(0).uniform([0, -100, -100], [100, 100, 100], (500, 3))
    assert np.abs(lab_to_rgb(torch.from_numpy(lab)).numpy() - lab2rgb(lab)).max() < 1e-6


def test_autocast_does_not_coarsen_lab():
    rgb = torch.from_numpy(noise()).float() / 255
    with torch.autocast("cpu", torch.bfloat16):
        lab = rgb_to_lab(rgb)
    assert lab.dtype == torch.float32 and torch.equal(lab, rgb_to_lab(rgb))


# The terms


def patches_of_photos() -> list[np.ndarray]:
    """Patches of noise and of scikit-image's photos: paler, as they are, and in stronger colours. No pixel is grey."""
    patches = [noise(32, 32), noise(32, 32) // 4 + 96]
    for photo in (astronaut(), chelsea(), coffee(), rocket()):
        patch = photo[150:214, 200:264] / 255
        grey = patch.mean(-1, keepdims=True)
        for saturation in (0.5, 1, 1.6):
            patches.append((np.clip(grey + saturation * (patch - grey), 0, 1) * 255).round().astype(np.uint8))
    for patch in patches:  # rounding would decide the hue of a grey pixel
        patch[(patch == patch[..., :1]).all(-1)] = (200, 100, 50)
    return patches


@pytest.mark.parametrize(("hue", "over"), READINGS)
def test_terms_are_those_of_scikit_images_lab(hue, over):
    patches = patches_of_photos()
    vivid_fraction, hue_entropy = colorfulness_terms(patches, hue, over)
    of_floats = colorfulness_terms([(patch / 255).astype(np.float32) for patch in patches], hue, over)
    assert torch.equal(of_floats[0], vivid_fraction) and torch.equal(of_floats[1], hue_entropy)
    for row, patch in enumerate(patches):
        a, b = rgb2lab(patch / 255)[..., 1:].reshape(-1, 2).T
        with np.errstate(divide="ignore", invalid="ignore"):
            angles, end = (np.arctan2(b, a), np.pi) if hue == "arctan2" else (np.arctan(b / a), np.pi / 2)
        vivid = a**2 + b**2 > 10
        shares = np.histogram(angles[vivid] if over == "vivid" else angles, bins=7, range=(-end, end))[0]
        shares = shares[shares > 0] / max(shares.sum(), 1)
        assert vivid_fraction[row].item() == pytest.approx(vivid.mean(), abs=1e-12)
        assert hue_entropy[row].item() == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-12)


def slow_terms(image: np.ndarray, hue: str, over: str) -> tuple[float, float]:
    """The reward's two terms, computed pixel by pixel in plain Python."""
    bins, num_vivid = Counter(), 0
    for pixel in image.reshape(-1, 3).tolist():
        r, g, b = ((v / 255 / 12.92) if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in pixel)
        xyz = (
            (0.412453 * r + 0.357580 * g + 0.180423 * b) / 0.95047,
            0.212671 * r + 0.715160 * g + 0.072169 * b,
            (0.019334 * r + 0.119193 * g + 0.950227 * b) / 1.08883,
        )
        x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
        a_star, b_star = 500 * (x - y), 200 * (y - z)
        if hue == "arctan2":
            angle, width = math.atan2(b_star, a_star) + math.pi, 2 * math.pi
        else:
            angle, width = (math.atan(b_star / a_star) if a_star else 0.0) + math.pi / 2, math.pi
        vivid = a_star**2 + b_star**2 > 10
        num_vivid += vivid
        if vivid or over == "all":
            bins[min(int(angle / width * 7), 6)] += 1
    total = sum(bins.values())
    entropy = -sum(n / total * math.log(n / total) for n in bins.values()) if total else 0.0
    return num_vivid / (image.shape[0] * image.shape[1]), entropy


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=12), st.sampled_from(READINGS))
def test_terms_are_those_of_a_slow_program(colours, reading):
    vivid_fraction, hue_entropy = colorfulness_terms([stripes(*colours)], *reading)
    vivid, entropy = slow_terms(stripes(*colours), *reading)
    assert vivid_fraction.item() == pytest.approx(vivid, abs=1e-12)
    assert hue_entropy.item() == pytest.approx(entropy, abs=1e-12)


def test_a_grey_picture_earns_nothing_and_one_of_a_single_colour_has_no_entropy():
    vivid_fraction, hue_entropy = colorfulness_terms([GREY, stripes((200, 30, 30))])
    assert vivid_fraction.tolist() == [0, 1] and hue_entropy.tolist() == [0, 0]
    assert ColorfulnessReward()([GREY, noise() // 2 * 0]) == [0, 0]


def test_seven_hues_in_equal_shares_have_the_highest_entropy():
    wheel = stripes(*[colour((bin + 0.5) / 7 * 2 * math.pi - math.pi) for bin in range(7)])
    vivid_fraction, hue_entropy = colorfulness_terms([wheel])
    assert vivid_fraction.item() == 1 and hue_entropy.item() == pytest.approx(math.log(7))


def test_arctan_takes_opposite_hues_for_one():
    opposites = stripes(colour(0.3), colour(0.3 - math.pi))
    assert colorfulness_terms([opposites])[1].item() == pytest.approx(math.log(2))
    assert colorfulness_terms([opposites], hue="arctan")[1].item() == 0


def test_dull_pixels_have_a_hue_too_unless_only_the_vivid_are_asked():
    half = stripes(colour(0.2), colour(2.5, chroma=2))  # a^2 + b^2 is about 4 in the second
    vivid_fraction, hue_entropy = colorfulness_terms([half])
    assert vivid_fraction.item() == 0.5 and hue_entropy.item() == pytest.approx(math.log(2))
    assert colorfulness_terms([half], entropy_over="vivid")[1].item() == 0
    assert colorfulness_terms([GREY], entropy_over="vivid")[1].item() == 0  # no pixel counts at all


def test_vivid_means_above_ten_and_the_last_bin_has_the_hue_pi():
    lab = torch.tensor([[50, 1, 3], [50, 1, 3.001], [50, -40, 0], [50, -40, -1e-30], [0, 0, 0]], dtype=torch.float64)
    assert (_classify(lab, "arctan2") >= 7).tolist() == [False, True, True, True, False]
    assert (_classify(lab, "arctan2") % 7).tolist() == [4, 4, 6, 0, 3]
    assert (_classify(lab, "arctan") % 7).tolist() == [6, 6, 3, 3, 3]
    upright = torch.tensor([[50.0, 0, 5], [50, 0, -5]])  # b / a is infinite
    assert (_classify(upright, "arctan") % 7).tolist() == [6, 0]


@given(st.integers(0, 2**32 - 1), st.sampled_from(READINGS))
def test_the_place_and_number_of_pixels_does_not_matter(seed, reading):
    image, rng = noise(6, 5, seed), np.random.default_rng(seed)
    shuffled = rng.permutation(image.reshape(-1, 3)).reshape(5, 6, 3)
    vivid_fraction, hue_entropy = colorfulness_terms([image, shuffled, np.tile(image, (2, 3, 1))], *reading)
    assert np.ptp(vivid_fraction.numpy()) < 1e-12 and np.ptp(hue_entropy.numpy()) < 1e-12
    assert 0 <= vivid_fraction[0] <= 1 and 0 <= hue_entropy[0] <= math.log(7) + 1e-12


def test_batches_lists_arrays_tensors_and_pil_images_are_the_same():
    batch = np.stack([noise(seed=1), noise(seed=2), GREY[:4, :4].repeat(4, 0).repeat(4, 1)])
    forms = [
        batch,
        torch.from_numpy(batch),
        torch.from_numpy(batch).double() / 255,
        (batch / 255).astype(np.float16),
        list(batch),
        [Image.fromarray(image) for image in batch],
        [batch[0].tolist(), torch.from_numpy(batch[1].copy()).long(), Image.fromarray(batch[2])],
    ]
    terms = [torch.stack(colorfulness_terms(form)) for form in forms]
    assert all(torch.equal(each, terms[0]) for each in terms) and terms[0].dtype == torch.float64
    alone = [torch.stack(colorfulness_terms([image]))[:, 0] for image in (batch[0], noise(3, 5))]
    assert torch.equal(torch.stack(colorfulness_terms([batch[0], noise(3, 5)])), torch.stack(alone, dim=1))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_numbers():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    batch = torch.from_numpy(np.stack([noise(64, 64, seed) for seed in range(3)]))
    for here, there in zip(colorfulness_terms(batch), colorfulness_terms(batch.cuda()), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "There are no images"),
        (noise(), r"must be \(H, W, 3\); it is \(16, 3\). Put a single image into a list"),
        ([GREY[..., 0]], r"must be \(H, W, 3\); it is \(4, 6\)"),
        ([np.zeros((0, 4, 3), np.uint8)], "must be"),
        (
            [GREY / 64 - 3],
            r"float64 must have values from 0 to 1; it has them from -1 to -1. Convert values from -1 to 1 by \(\(x \+ 1\) / 2\)",
        ),
        ([np.full((2, 2, 3), np.nan)], "from 0 to 1; it has them from nan"),
        ([GREY.astype(int) * 3], "int64 must have values from 0 to 255; it has them from 384 to 384"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        colorfulness_terms(images)


def test_options_are_checked_when_the_reward_is_made():
    with pytest.raises(ValueError, match="hue must be 'arctan2' or 'arctan'; it is 'atan'"):
        ColorfulnessReward(hue="atan")
    with pytest.raises(ValueError, match="entropy_over must be 'all' or 'vivid'; it is 'grey'"):
        ColorfulnessReward(entropy_over="grey")


# The rewards


def test_the_reward_is_the_product_of_its_terms_and_logs_them():
    images, logged = [noise(), GREY, stripes(colour(0.2), colour(2))], {}
    for reading in READINGS:
        reward = pickle.loads(pickle.dumps(ColorfulnessReward(*reading)))
        vivid_fraction, hue_entropy = colorfulness_terms(images, *reading)
        assert reward(images, completion_ids=None, image=None, log_metric=logged.__setitem__) == pytest.approx(
            (vivid_fraction * hue_entropy).tolist()
        )
        assert logged == pytest.approx(
            {"vivid_fraction": vivid_fraction.mean().item(), "hue_entropy": hue_entropy.mean().item()}
        )


def test_fidelity_is_minus_the_squared_error_in_minus_one_to_one():
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    one_pixel = black.copy()
    one_pixel[0, 0] = (255, 0, 0)  # one of twelve values differs by 2
    rewards = fidelity_reward([black, white, one_pixel, white], references=[black, black, black, None], image=[0] * 4)
    assert rewards == [0, -4, pytest.approx(-4 / 12), None]
    with pytest.raises(ValueError, match=r"The image is \(2, 2, 3\), but its reference is \(4, 6, 3\): resize"):
        fidelity_reward([black], references=[GREY])


def test_confetti_earns_more_than_a_photo_until_fidelity_counts():
    photo = np.array(Image.fromarray(astronaut()).resize((64, 64)))
    confetti = np.array([colour(hue, 60) for hue in np.linspace(-3, 3, 64)])[None].repeat(64, 0)
    colourful = ColorfulnessReward()([photo, confetti])
    faithful = fidelity_reward([photo, confetti], references=[photo, photo])
    assert colourful[1] > 1.9 > colourful[0] > 0.3
    mixed = [reward + 5 * fidelity for reward, fidelity in zip(colourful, faithful, strict=True)]
    assert mixed[1] < mixed[0]


# The metric


def test_hasler_colourfulness_by_hand():
    assert hasler_colorfulness(GREY) == 0
    assert hasler_colorfulness(stripes((255, 0, 0))) == pytest.approx(0.3 * math.hypot(255, 127.5))
    halves = stripes((255, 0, 0), (0, 0, 0))  # red - green is 255 or 0; its deviation is half of that
    expected = math.hypot(127.5, 63.75) + 0.3 * math.hypot(127.5, 63.75)
    assert hasler_colorfulness(halves) == pytest.approx(expected)
    assert hasler_colorfulness(halves / 255) == pytest.approx(expected)


def test_hasler_colourfulness_is_near_that_of_the_recorded_photos():
    if not PHOTOS.is_dir():
        pytest.skip(f"photos of others are not part of the repository: {PHOTOS.name}")
    with open(PHOTOS / "index.csv") as file:
        rows = list(csv.DictReader(file))[::10]
    recorded = np.array([float(row["colorfulness_hasler2003"]) for row in rows])
    ours = np.array([hasler_colorfulness(Image.open(PHOTOS / "images" / row["file_name"])) for row in rows])
    assert np.corrcoef(recorded, ours)[0, 1] > 0.99
    assert np.abs(recorded - ours).max() < 7  # theirs was measured before JPEG took colour away


def test_psnr_is_that_of_the_authors_for_clipped_predictions():
    arrays = golden("color_psnr.npz")
    for pred, labels, expected in zip(arrays["pred"], arrays["labels"], arrays["psnr"], strict=True):
        assert psnr((pred + 1) / 2, (labels + 1) / 2) == pytest.approx(float(expected), abs=1e-4)


def test_psnr_by_hand():
    off_by_five = GREY + np.uint8(5)
    assert psnr(GREY, off_by_five) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(GREY / 255, off_by_five) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(GREY, GREY) == math.inf


def test_a_picture_that_equals_its_photo_leaves_the_mean_finite():
    metrics = colorization_metrics(predictions=[GREY, GREY + np.uint8(5)], references=[GREY, GREY])
    assert metrics["per_image_psnr"][0] == math.inf
    assert metrics["psnr"] == pytest.approx((100 + 20 * math.log10(255 / 5)) / 2)


def test_metrics_are_means_over_the_images_and_lists():
    images = [noise(), GREY]
    metrics = colorization_metrics(predictions=images, references=[noise(seed=1), None])
    vivid_fraction, hue_entropy = colorfulness_terms(images)
    assert metrics["colorfulness"] == pytest.approx((vivid_fraction * hue_entropy).mean().item())
    assert metrics["colorfulness"] != pytest.approx(metrics["vivid_fraction"] * metrics["hue_entropy"])
    assert metrics["per_image_vivid_fraction"] == vivid_fraction.tolist()
    assert metrics["per_image_psnr"] == [metrics["psnr"], None]
    for references in (None, [None, None]):
        without = colorization_metrics(images, references)
        assert without == {key: value for key, value in metrics.items() if "psnr" not in key}
    only_vivid = colorization_metrics(images, hue="arctan", entropy_over="vivid")
    assert only_vivid["per_image_hue_entropy"] == colorfulness_terms(images, "arctan", "vivid")[1].tolist()
    with pytest.raises(ValueError):
        colorization_metrics(images, [GREY])


# The evaluate modules


@pytest.fixture(scope="module")
def modules():
    return {name: evaluate.load(vision_rl.metric_path(name)) for name in ("colorfulness", "colorfulness_reward")}


@pytest.mark.parametrize("name", ["colorfulness", "colorfulness_reward"])
def test_the_example_of_a_card_is_true_and_that_of_its_module_too(name):
    card = Path(vision_rl.metric_path(name), "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].rstrip().splitlines()
    names = {}
    exec("\n".join(code[:-2]), names)
    assert repr(eval(code[-2], names)) == code[-1].removeprefix("# ")
    source = Path(vision_rl.metric_path(name), f"{name}.py").read_text()
    assert f">>> {code[-2]}\n    {code[-1].removeprefix('# ')}\n" in source


def test_a_module_gives_what_its_function_gives_for_every_form_of_image(modules):
    truth = noise(8, 8, 1)
    forms = [noise(8, 8), noise(8, 8).tolist(), Image.fromarray(noise(8, 8)), torch.from_numpy(noise(8, 8)) / 255]
    result = modules["colorfulness"].compute(predictions=forms, references=[truth, None, truth.tolist(), truth])
    assert result == colorization_metrics([noise(8, 8)] * 4, [truth, None, truth, truth])
    options = {"hue": "arctan", "entropy_over": "vivid"}
    rewards = modules["colorfulness_reward"].compute(predictions=forms, **options)
    assert rewards["rewards"] == ColorfulnessReward(**options)([noise(8, 8)] * 4)
    assert rewards["reward"] == pytest.approx(rewards["rewards"][0])


@pytest.mark.compatibility
def test_a_module_takes_images_one_after_another(modules):
    metric, reward = modules["colorfulness"], modules["colorfulness_reward"]
    metric.add(prediction=noise(), reference=None)
    metric.add_batch(predictions=[GREY])
    assert metric.compute() == colorization_metrics([noise(), GREY])
    reward.add(prediction=noise())
    reward.add_batch(predictions=[GREY], references=[GREY])
    assert reward.compute()["rewards"] == ColorfulnessReward()([noise(), GREY])


def test_a_picture_that_was_opened_from_a_jpeg_is_not_compressed_again(modules):
    file = BytesIO()
    Image.fromarray(noise()).save(file, "JPEG")
    opened = Image.open(file)
    expected = colorization_metrics([opened])
    assert modules["colorfulness"].compute(predictions=[opened]) == expected


def test_numbers_that_are_no_pixels_are_refused_and_not_wrapped_around(modules):
    with pytest.raises(ValueError, match="must have values from 0 to 255; it has them from 300 to 300"):
        modules["colorfulness_reward"].compute(predictions=[np.full((2, 2, 3), 300).tolist()])
