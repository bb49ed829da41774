"""Draw a scene of digits: the material of each split, and the picture from the ground up."""

import math
from functools import cache

import numpy as np
from PIL import Image

from vision_rl.data.handwriting import Split, crop_to_ink, digit_images, scale_ink
from vision_rl.data.scene_captions import STUFF, Digit


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

_PHOTOS: dict[str, tuple[str, ...]] = {  # names in skimage.data of the colour photos that its wheel contains
    "train": ("astronaut", "coffee", "hubble_deep_field", "stereo_motorcycle"),
    "validation": ("immunohistochemistry", "rocket"),
    "test": ("chelsea", "retina"),
}
_TEXTURE_COLUMNS = {"train": (0, 256), "validation": (256, 384), "test": (384, 512)}  # of the 512 columns of a texture
_TINTS = np.array(
    [(160, 85, 65), (95, 135, 60), (140, 135, 130)], np.float32
)  # mean colours of brick, grass and gravel
_PALETTE = np.array(list(COLOURS.values()), np.float32)


# The material of a split: its digits, photos and textures, read once a process.


@cache
def glyphs(split: Split) -> tuple[list[np.ndarray], list[int]]:
    images, labels = digit_images(split)
    return [crop_to_ink(image) for image in images], labels.tolist()


@cache
def _photos(split: Split, side: int) -> list[Image.Image]:
    """Return the photos of a split, shrunk to a short side of at most `side` pixels, so that cuttings are cheap."""
    photos = []
    for name in _PHOTOS[split]:
        pixels = _read(name)
        photo = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)  # the left one of the stereo pair
        photos.append(_shrink(photo, side / min(photo.size)))
    return photos


@cache
def _textures(split: Split, size: int) -> list[Image.Image]:
    """Return a split's part of brick, grass and gravel as brightness, 1 on average; it is shrunk for small scenes."""
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


# The picture, from the ground up. Colour is the first axis of its arrays: numpy is four times as fast with this order.


def lay_ground(rng: np.random.Generator, split: Split, size: int, stuff: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw a part of a photo with textured regions, `(3, size, size)` in 0..255, and each pixel's index into STUFF."""
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
    """Cut a random square of `side` pixels out of the picture and resize it to `size` pixels; half are mirrored."""
    left, top = rng.random(2) * (picture.width - side, picture.height - side)
    square = picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(square)[:, :: 1 if rng.random() < 0.5 else -1]


def _region(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a random half-plane or ellipse as a mask `(size, size)`."""
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


def find_place(
    rng: np.random.Generator,
    glyphs: tuple[list[np.ndarray], list[int]],
    boxes: list[tuple[int, int, int, int]],
    size: int,
    heights: tuple[int, int],
    max_overlap: float,
    crowding: float,
) -> tuple[int, np.ndarray, int, int] | None:
    """Choose a digit and a place for it: category, ink, x and y; None if there is no room."""
    inks, categories = glyphs
    chosen = rng.integers(len(inks))
    close = rng.random() < crowding
    for height in (rng.integers(*heights, endpoint=True), heights[0]):
        ink = inks[chosen]
        ink = scale_ink(ink, min(height / ink.shape[0], size / ink.shape[1]))
        ink = ink / ink.max()  # thin strokes get paler when they shrink
        h, w = ink.shape
        width = max(w, math.ceil(0.6 * h))  # the box of a 1 would be too narrow to be detected
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
    """Return masks of where a box of `shape` may have its upper left corner, and where it touches another box."""
    h, w = shape
    y, x = np.arange(size - h + 1)[:, None], np.arange(size - w + 1)  # (Y, 1), (X,)
    left, top, widths, heights = np.array(boxes, int).reshape(-1, 4).T[:, :, None, None]  # (K, 1, 1) each
    shared_x = np.minimum(x + w, left + widths) - np.maximum(x, left)  # (K, 1, X); negative: the gap
    shared_y = np.minimum(y + h, top + heights) - np.maximum(y, top)  # (K, Y, 1)
    near = ((shared_x >= 0) & (shared_y >= 0)).any(axis=0)
    shared = shared_x.clip(0) * shared_y.clip(0)  # (K, Y, X)
    return (shared <= max_overlap * np.minimum(w * h, widths * heights)).all(axis=0), near


def paint(rng: np.random.Generator, canvas: np.ndarray, category: int, ink: np.ndarray, x: int, y: int) -> Digit:
    """Paint a digit onto the canvas, in place, in a colour that differs from the pixels below."""
    h, w = ink.shape
    below = canvas[:, y : y + h, x : x + w]
    order = rng.permutation(len(_PALETTE))
    contrast = np.linalg.norm(_PALETTE[order] - below.mean(axis=(1, 2)), axis=1)
    colour = order[np.argmax(contrast > 130)]
    shade = (_PALETTE[colour] + rng.uniform(-16, 16, 3)).clip(0, 255).astype(np.float32)
    below += ink * (shade[:, None, None] - below)  # `below` is a view, so the canvas changes
    return Digit(category, (x, y, w, h), ink, list(COLOURS)[colour])


def photograph(rng: np.random.Generator, canvas: np.ndarray, noise: float) -> np.ndarray:
    """Return the canvas with noise as pixels `(H, W, 3)` uint8."""
    if noise:
        canvas = canvas + 255 * noise * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.ascontiguousarray(canvas.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
