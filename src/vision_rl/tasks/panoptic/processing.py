"""Panoptic maps for a model that writes codes: the processor of panoptic segmentation (paper, section 4.1; UViM)."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers import BatchFeature

from vision_rl.arguments import check_rows, naming_arguments
from vision_rl.columns import arrow_chunks, check_values, column_values, flat_fields, sampled_rows
from vision_rl.data.coco_categories import category_files
from vision_rl.data.panoptic import panoptic_categories
from vision_rl.pictures import as_images, random_box, rgb_image
from vision_rl.processing import DenseProcessor, check_return_tensors, whole_image_size
from vision_rl.tasks.panoptic.decoding import decode_logits, to_segmentation
from vision_rl.tasks.panoptic.drawing import draw as draw_segments
from vision_rl.tasks.panoptic.row_values import segment_ids, segments_of
from vision_rl.tasks.panoptic.segments import (
    VOID,
    Segmentation,
    Segments,
    distinct_ids,
    places_of,
    read_segments,
    resize_nearest,
    unlisted_ids,
)


logger = logging.getLogger(__name__)

NOT_LEARNED = -1  # as an instance: one-hot it is all zeros


class PanopticProcessor(DenseProcessor):
    """Rows with `image`, `segmentation` and `segments_info` to what stage I learns, and what it gives back to segments.

    A panoptic map is not predicted pixel by pixel. A network of its own, stage I of UViM, makes `code_len` codes of an
    image and its map, and the map of image and codes. The model here, stage II, writes the codes: a token is a code
    plus 1, since 0 starts the decoder, and there is no end token.

    `segmentation` is a PNG in COCO's colours (id = R + 256 G + 65536 B), as a picture or an array `(H, W, 3)`, or an
    integer map `(H, W)`; 0 is void. `segments_info` is a list of dicts with `id`, `category_id` and, for crowds,
    `iscrowd`. Stage I learns crowds as it learns other segments, as in the authors' code, which has no word on them;
    references keep the flag, so that metric and reward excuse predictions there.

    Args:
        image_processor: a transformers image processor; its `size` is the model's.
        categories: dicts with `id`, `name` and `isthing`, as in COCO's JSON; class 0 of a dense map is void, class c
            the category at place c - 1.
        max_instances: channels of the instance head, that of void included. Of an image with more segments the last in
            canonical order, those at the bottom, are not learned as instances. Paper: 100.
        num_codes: of the stage I model. Paper: 4096.
        code_len: codes of an image. Paper: 256.
        flip: whether `dense` mirrors half of the images, given seeds.
        crop_area: a range such as (0.05, 1.0): `dense` cuts out so large a part of the image, given seeds, with a ratio
            of width to height in 0.75..1.33, as stage I is trained by the authors. `None` does not.
        min_fraction: predicted instances that cover at most this share of an image become void. The authors' is 0.

    Raises:
        ValueError: for options out of range; in use, for rows that cannot be learned from.
    """

    pipeline_tag = "image-segmentation"
    target_columns = ("segmentation", "segments_info")

    def __init__(
        self,
        image_processor,
        categories: Sequence[Mapping[str, Any]],
        max_instances: int = 100,
        num_codes: int = 4096,
        code_len: int = 256,
        flip: bool = True,
        crop_area: tuple[float, float] | None = None,
        min_fraction: float = 0.0,
        **kwargs,
    ):
        super().__init__(image_processor, **kwargs)
        self.categories = [dict(category) for category in categories]
        self.max_instances, self.num_codes, self.code_len = max_instances, num_codes, code_len
        self.flip, self.crop_area = flip, None if crop_area is None else list(crop_area)
        self.min_fraction = min_fraction
        for category in self.categories:
            if not {"id", "name", "isthing"} <= set(category):
                raise ValueError(f"A category needs `id`, `name` and `isthing`; this one has {category}.")
            if category["isthing"] not in (0, 1):
                raise ValueError(
                    f"`isthing` of the category {category['id']} is {category['isthing']!r}; it must be 0 or 1."
                )
        if not self.categories or len(set(self.category_ids)) < len(self.categories):
            raise ValueError(f"categories must be at least one, with different ids; the ids are {self.category_ids}.")
        if max_instances < 2 or num_codes < 1 or code_len < 1:
            raise ValueError(
                "max_instances must be at least 2 (void and one more), and num_codes and code_len must be positive; they are "
                f"{max_instances}, {num_codes} and {code_len}."
            )
        if crop_area is not None and not (len(crop_area) == 2 and 0 < crop_area[0] <= crop_area[1] <= 1):
            raise ValueError(f"crop_area must be a range of shares such as (0.05, 1.0); it is {crop_area}.")
        if not 0 <= min_fraction < 1:
            raise ValueError(
                f"min_fraction must be a share of the image, at least 0 and below 1; it is {min_fraction}."
            )
        whole_image_size(image_processor, "maps")

    @property
    def category_ids(self) -> list[int]:
        """The category id of class 1, 2, ..."""
        return [category["id"] for category in self.categories]

    @property
    def id2label(self) -> dict[int, str]:
        """The categories' names by their ids, which the trainers write into the model's config."""
        return {category["id"]: category["name"] for category in self.categories}

    @property
    def num_classes(self) -> int:
        """Channels of the semantic head: the categories and void."""
        return len(self.categories) + 1

    @property
    def outputs(self) -> dict[str, int]:
        return {"semantics": self.num_classes, "instances": self.max_instances}

    @property
    def model_size(self) -> tuple[int, int]:
        """Height and width of what the model sees and of the dense maps."""
        return whole_image_size(self.image_processor, "maps")

    # --- rows to tensors --------------------------------------------------------------------------------------------

    @naming_arguments
    def __call__(
        self,
        images,
        seeds=None,
        codes: Sequence[Sequence[int]] | None = None,
        return_tensors: str | None = "pt",
        **targets,
    ) -> BatchFeature:
        """Make stage II's inputs: `pixel_values (B, 3, H, W)` and, given `codes` that count from 0, `labels (B, code_len)`.

        Images are as they are, whatever the seeds: codes that were made before belong to the image that is not mirrored.
        """
        check_return_tensors(return_tensors)
        unknown = set(targets) - set(self.target_columns)
        if unknown:
            raise TypeError(f"PanopticProcessor does not take {', '.join(sorted(unknown))}.")
        if codes is None and targets:
            raise ValueError(
                "A model that writes codes cannot learn from maps: let stage I turn them into codes (completion_decoder="
                "UViMDecoder(stage1, processor)), or give the data set a column `codes`."
            )
        pictures = as_images(images)
        batch = {"pixel_values": self.image_processor(pictures, return_tensors="pt")["pixel_values"]}
        if codes is not None:
            check_rows(images=pictures, codes=codes)
            batch["labels"] = self.labels_of(codes)
        return BatchFeature(batch)

    @naming_arguments
    def dense(
        self, images, seeds=None, *, segmentation: Sequence = (), segments_info: Sequence = (), **targets
    ) -> BatchFeature:
        """Make stage I's inputs: image and maps at the model's size, mirrored and cropped alike.

        Args:
            images: B RGB images.
            seeds: one integer a row, the source of mirroring and crops; `None`: neither.
            segmentation: B panoptic maps, each of its image's size.
            segments_info: B lists of segments.

        Returns:
            `pixel_values (B, 3, H, W)` and `targets`, a dict of `semantics` and `instances`, `LongTensor (B, H, W)`.
            Semantics are 1 + the category's place; instances are 1, 2, ... in canonical order; void is 0 in both. An
            instance beyond `max_instances` is -1 in `instances`.
        """
        pictures, semantics, instances = [], [], []
        seeds = [None] * len(images) if seeds is None else seeds
        for image, values, infos, seed in zip(images, segmentation, segments_info, seeds, strict=True):
            segments = self._read(image.size, values, infos)
            ids = segments.map
            if seed is not None:
                image, ids = self._augmented(image, ids, np.random.default_rng(seed))
            semantic, instance = self._labels(segments, resize_nearest(ids, self.model_size))
            instance = canonical_instances(instance)  # last: what was cut off has no number
            pictures.append(image)
            semantics.append(semantic)
            instances.append(np.where(instance < self.max_instances, instance, NOT_LEARNED))
        return BatchFeature(
            {
                "pixel_values": self.image_processor(pictures, return_tensors="pt")["pixel_values"],
                "targets": {
                    "semantics": torch.tensor(np.stack(semantics), dtype=torch.long),
                    "instances": torch.tensor(np.stack(instances), dtype=torch.long),
                },
            }
        )

    def _labels(self, segments: Segments, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class and instance of each pixel of `ids (H, W)`: 1 + the place of the category, and of the segment; 0 is void."""
        classes = places_of(segments.categories, np.array(self.category_ids)) + 1
        instances = places_of(ids, np.append(VOID, segments.ids))
        return np.append(0, classes)[instances], instances

    def _read(self, size: tuple[int, int], values, infos) -> Segments:
        """The row's map and segments, checked: of the image's size, all ids listed, categories known."""
        segments = read_segments((segment_ids(values), segments_of(infos)))
        height, width = segments.map.shape
        if (width, height) != size:
            raise ValueError(
                f"The map has {width} x {height} pixels (width x height), but its image has {size[0]} x {size[1]}: both must "
                "have the same size."
            )
        self._check_categories(segments.categories.tolist())
        unlisted = unlisted_ids(segments)
        if len(unlisted):
            raise ValueError(
                f"{len(unlisted)} segment ids of the map are not in segments_info; the first is {unlisted[0]}. List them, "
                f"or make their pixels {VOID}, which is void. Was the map saved as JPEG, resized, or converted?"
            )
        return segments

    def _check_categories(self, ids: list) -> None:
        unknown = [category_id for category_id in ids if category_id not in self.category_ids]
        if unknown:
            raise ValueError(
                f"{len(unknown)} segments have a category_id that is not among those of the processor's categories, "
                f"{self.category_ids}; the first is {unknown[0]}."
            )

    def _augmented(self, image: Image.Image, ids: np.ndarray, rng: np.random.Generator):
        if self.flip and rng.random() < 0.5:
            image, ids = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ids[:, ::-1]
        if self.crop_area is not None:
            x0, y0, x1, y1 = random_box(image.size, self.crop_area, rng)
            image, ids = image.crop((x0, y0, x1, y1)), ids[y0:y1, x0:x1]
        return image, ids

    # --- what completions are compared with -------------------------------------------------------------------------

    @naming_arguments
    def get_references(self, rows: list[dict]) -> list[Segmentation]:
        """The true maps at the images' own size, as `(map (H, W), segments_info)`, crowds marked.

        `PanopticReward` brings them to the size of a completion, the model's, and `PanopticQuality` a completion to
        theirs: as in the paper, whose reward is on the model's output and whose metric on the image.
        """
        references: list[Segmentation] = []
        for row in rows:
            segments = self._read(row["image"].size, row["segmentation"], row["segments_info"])
            fields = (segments.ids.tolist(), segments.categories.tolist(), segments.iscrowd.astype(int).tolist())
            infos = [
                {"id": segment, "category_id": category, "iscrowd": crowd}
                for segment, category, crowd in zip(*fields, strict=True)
            ]
            references.append((segments.map, infos))
        return references

    def take_options(self, options) -> None:
        """Check that the files of the options mean by each `category_id` what the processor means by it: maps have no names."""
        own = {category["id"]: category for category in self.categories}
        for file in category_files(options):
            for category in panoptic_categories(file):
                known = own.get(category["id"], category)
                if any(category[field] != known[field] for field in ("name", "isthing")):
                    raise ValueError(
                        f"The category of id {category['id']} is {category['name']!r} (isthing {category['isthing']}) in "
                        f"{file}, but the processor's is {known['name']!r} (isthing {known['isthing']}): both must be the same."
                    )

    def check_dataset(self, dataset, columns: dict[str, str]) -> None:
        """Check the segments before training: categories, ids, sizes, and more segments than instances."""
        if not {"segmentation", "segments_info"} <= set(columns):
            return
        surplus = np.array(self._count_segments(dataset, columns["segments_info"])) - (self.max_instances - 1)
        if (surplus > 0).any():
            logger.warning(
                "%d rows have more than max_instances - 1 = %d segments: %d segments of them are not learned as "
                "instances of their own.",
                (surplus > 0).sum(),
                self.max_instances - 1,
                surplus.clip(0).sum(),
            )
        opened = sampled_rows(dataset)
        self.check_opened(((index, dataset[index]) for index in opened), columns, len(opened))

    def _count_segments(self, dataset, column: str) -> list[int]:
        """How many segments each row has, in no order; raises for rows whose segments are not what they must be."""
        counts: list[int] = []

        def odd_rows() -> Iterator[tuple[int, Any]]:
            chunks = arrow_chunks(dataset, column)
            if chunks is None:
                yield from column_values(dataset, column)
                return
            for first, chunk in chunks:
                count, odd = self._usual(chunk)
                counts.extend(count[~odd].tolist())
                yield from ((first + i, chunk[i].as_py()) for i in np.flatnonzero(odd).tolist())

        def check(infos: Any) -> None:
            segments = segments_of(infos)
            self._check_categories([segment["category_id"] for segment in segments])
            counts.append(len(segments))

        check_values(odd_rows(), column, len(dataset), check)
        return counts

    def _usual(self, chunk: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """How many segments each row has, and whether one of them is not of whole numbers and a known category."""
        fields = flat_fields(chunk)
        known: dict[str, Any] = {"id": None, "category_id": self.category_ids, "iscrowd": (0, 1)}
        fields = {name: fields[name] for name in known if name in fields}
        if not {"id", "category_id"} <= set(fields):
            return np.zeros(len(chunk), int), np.ones(len(chunk), bool)
        count = fields["id"][0]
        odd = np.any([count < 0, *(lengths != count for lengths, _ in fields.values())], axis=0)
        for name, (lengths, values) in fields.items():
            row = np.repeat(np.arange(len(chunk)), np.maximum(lengths, 0))
            if not pa.types.is_integer(values.type):
                odd[row] = True
                continue
            numbers = values.cast(pa.int64()).fill_null(-1).to_numpy()
            odd[row[numbers < 0 if known[name] is None else ~np.isin(numbers, known[name])]] = True
        return count, odd

    def check_opened(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], columns: dict[str, str], num_rows: int
    ) -> None:
        """Check of opened rows that maps have the images' sizes and their segments' ids, and that every segment has a pixel."""
        if not {"segmentation", "segments_info"} <= set(columns):
            return
        without_pixels = []

        def read(row: tuple[int, Mapping[str, Any]]) -> None:
            index, values = row
            image = rgb_image(values[columns["image"]], index)
            segments = self._read(image.size, values[columns["segmentation"]], values[columns["segments_info"]])
            absent = segments.ids[places_of(segments.ids, distinct_ids(segments.map)) < 0]
            without_pixels.append((index, absent))

        def refuse(absent: np.ndarray) -> None:
            if len(absent):
                raise ValueError(
                    f"{len(absent)} segments have no pixel in the map; the first is {absent[0]}. Each would count as missed: "
                    "leave them out."
                )

        numbered = ((index, (index, row)) for index, row in rows)
        check_values(numbered, columns["segmentation"], num_rows, read)
        check_values(iter(without_pixels), columns["segments_info"], num_rows, refuse)

    # --- stage I's output to segments -------------------------------------------------------------------------------

    @naming_arguments
    def from_dense(self, outputs: dict[str, torch.Tensor], pixel_values: torch.Tensor) -> list[Segmentation]:
        """Logits `semantics (N, H, W, C)` and `instances (N, H, W, max_instances)` to N pairs `(map, segments_info)`.

        The maps have the model's size: rewards compare there, `PanopticQuality` and `resized` bring them to the image's.
        """
        labels = decode_logits(outputs["semantics"], outputs["instances"], self.min_fraction).cpu().numpy()
        return [to_segmentation(of_image, self.category_ids) for of_image in labels]

    def draw(self, image, completion, reference=None, width=None) -> Image.Image:
        """The segments on the image, right, wrong and missed ones told apart."""
        return draw_segments(image, completion, reference, width, self.categories)

    def batch_decode(self, sequences) -> list:
        raise NotImplementedError(
            "Turning codes into a panoptic map takes the stage I network and the image: give the trainer completion_decoder="
            "UViMDecoder(stage1, processor)."
        )


def canonical_instances(instances: np.ndarray) -> np.ndarray:
    """Instances `(H, W)` numbered 1, 2, ... from top to bottom, by mean column + H * mean row; 0 stays.

    So the same picture has one numbering, whatever the order of its annotations (`make_canonical` of the authors' code).
    """
    height, width = instances.shape
    key = np.arange(width) + height * np.arange(height)[:, None]  # (H, W)
    flat = instances.reshape(-1)
    counts = np.bincount(flat)
    counts[0] = 0
    present = np.flatnonzero(counts)
    mean_key = np.bincount(flat, key.reshape(-1))[present] / counts[present]
    number = np.zeros(len(counts), np.int64)
    number[present[np.argsort(mean_key, kind="stable")]] = np.arange(1, len(present) + 1)
    return number[instances]
