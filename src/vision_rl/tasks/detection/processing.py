"""Boxes as tokens: the processor of detection (paper, section 4.2; tokens of the authors' `detection_reward.py`)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, LogitsProcessorList

from vision_rl.arguments import check_rows, check_sizes, id_rows, naming_arguments
from vision_rl.columns import sampled_rows
from vision_rl.data.coco import category_ids, category_names
from vision_rl.data.coco_categories import category_files
from vision_rl.pictures import as_images, rgb_image
from vision_rl.processing import ORIGINAL_SIZE, VisionProcessor, check_return_tensors, image_size, whole_image_size
from vision_rl.tasks.detection.augmentation import mirrored, scale_jittered
from vision_rl.tasks.detection.drawing import draw as draw_boxes
from vision_rl.tasks.detection.objects import Objects, read_column, read_objects
from vision_rl.tasks.detection.rewards import ABSENT, HIGH, LOW, NUM_SPECIAL, TOKENS_PER_BOX, read_tokens
from vision_rl.tasks.detection.stopping import StopThreshold
from vision_rl.tasks.detection.units import other_form, other_unit


logger = logging.getLogger(__name__)

SCORES = ("confidence", "likelihood", "class")
PADDING = (128, 128, 128)  # of a letterboxed image


class DetectionProcessor(VisionProcessor):
    """Rows with `image` and `objects: {"bbox": [[x, y, w, h], ...], "category": [...]}` to tokens, and tokens to boxes.

    Each box is six tokens, y0, x0, y1, x1, class, confidence; a sequence has `max_boxes` of them and no end token. Ids:

    | ids | meaning |
    |---|---|
    | 0 | confidence: absent; also fills the other five tokens of an absent box |
    | 1, 2 | confidence: present, low and high |
    | 3 ... num_bins + 3 | coordinate level 0 ... num_bins |
    | num_bins + 4 ... | class 0, 1, ... |

    MLE learns absent boxes as well: 0 is a target, weighted by `absent_weight`. The confidence of a true box is drawn from
    the two ids, so that tuning finds both in use. Crowd regions (`objects["iscrowd"]`) are not learned, but kept in the
    references. Boxes are clipped to the image, and those without area left out.

    Args:
        image_processor: a transformers image processor; its `size` is the model's frame.
        categories: the names of the classes; `objects["category"]` has names of these, or their places.
        num_bins: of a coordinate, which then has num_bins + 1 levels. Paper: 1000.
        max_boxes: an image; of more, the largest are learned. Paper: 100.
        box_order: "random", anew each epoch, or "sorted" by y0 and then x0.
        resize: "stretch" the image to the frame, or "letterbox" it: keep its shape and fill up on the right or below.
        score: of a decoded box. "confidence": p(high) / (p(low) + p(high)). "likelihood": the geometric mean of the
            probabilities of its six tokens, for models that have not learned confidences. "class": the probability of
            its class times that of a box at all, which is 1 - P(absent) at its first token; it needs no learned
            confidences either, and the corners may be as uncertain as they are.
        stop_threshold: greedy decoding leaves a box out only where the model gives that more than this probability. 0:
            wherever absent is the likeliest id. 1: never, all `max_boxes` are written. MLE spreads the probability of a box
            over many corners, so that absent may be the likeliest id long before it is likely. `generate` is given
            `logits_processor`; samples are drawn without.
        absent_weight: of the tokens of absent boxes in the MLE loss, where others weigh 1.
        trust_boxes: take boxes for what they should be also where they look like another unit or form.
        category_ids: COCO's id of each category, for its results; `None`: their places.
        flip: whether MLE mirrors half of the training images.
        scale_jitter: a range such as (0.3, 2.0), Pix2Seq's: MLE sees training images from so far away or so near
            (`vision_rl.tasks.detection.augmentation`). `None`: as they are. Tuning always does.

    Raises:
        ValueError: for options out of range; in use, for rows that cannot be learned from.
    """

    pipeline_tag = "object-detection"
    target_columns = ("objects",)
    watched_ids = (LOW, HIGH, ABSENT)

    def __init__(
        self,
        image_processor,
        categories: Sequence[str],
        num_bins: int = 1000,
        max_boxes: int = 100,
        box_order: Literal["random", "sorted"] = "random",
        resize: Literal["stretch", "letterbox"] = "stretch",
        score: Literal["confidence", "likelihood", "class"] = "confidence",
        absent_weight: float = 1.0,
        trust_boxes: bool = False,
        category_ids: Sequence[int | str] | None = None,
        flip: bool = False,
        scale_jitter: Sequence[float] | None = None,
        stop_threshold: float = 0.0,
        **kwargs,
    ):
        super().__init__(image_processor, **kwargs)
        if isinstance(categories, str | Mapping) or not all(isinstance(name, str) for name in categories):
            raise TypeError(
                f"categories must be a list of names, class 0 first; they are {categories!s:.200}. Of a dict id2label that is "
                "list(id2label.values()); of COCO's categories it is their names, and category_ids are their ids."
            )
        self.categories = list(categories)
        self.category_ids = list(range(len(categories)) if category_ids is None else category_ids)
        if len(self.category_ids) != len(self.categories) or len(set(self.category_ids)) != len(self.category_ids):
            raise ValueError(
                f"category_ids must be an id for each of the {len(self.categories)} categories, all different; they are "
                f"{self.category_ids}."
            )
        self.num_bins, self.max_boxes, self.absent_weight = num_bins, max_boxes, absent_weight
        self.box_order, self.resize, self.score, self.trust_boxes = box_order, resize, score, trust_boxes
        self.flip, self.scale_jitter = flip, None if scale_jitter is None else list(scale_jitter)
        if scale_jitter is not None and not (len(scale_jitter) == 2 and 0 < scale_jitter[0] <= scale_jitter[1]):
            raise ValueError(f"scale_jitter must be a range such as (0.3, 2.0); it is {scale_jitter}.")
        if not self.categories or len(set(self.categories)) != len(self.categories):
            raise ValueError(f"categories must be at least one name, all different; they are {self.categories}.")
        if num_bins < 1 or max_boxes < 1 or absent_weight < 0:
            raise ValueError(
                f"num_bins and max_boxes must be positive, and absent_weight must not be negative; they are "
                f"num_bins={num_bins}, max_boxes={max_boxes} and absent_weight={absent_weight}."
            )
        for name, choices in (
            ("box_order", ("random", "sorted")),
            ("resize", ("stretch", "letterbox")),
            ("score", SCORES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}; it is {getattr(self, name)!r}.")
        self.stop_threshold = StopThreshold(stop_threshold).threshold
        height, width = whole_image_size(image_processor, "boxes")
        self.frame = (width, height)  # pixels of the model's input

    @property
    def num_labels(self) -> int:
        return len(self.categories)

    @property
    def id2label(self) -> dict[int, str]:
        """The categories' names, which the trainers write into the model's config."""
        return dict(enumerate(self.categories))

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIAL + self.num_bins + 1 + self.num_labels

    @property
    def completion_length(self) -> int:  # type: ignore[override]
        return TOKENS_PER_BOX * self.max_boxes

    @property
    def logits_processor(self) -> LogitsProcessorList | None:  # type: ignore[override]
        """What applies `stop_threshold` in `model.generate(..., logits_processor=...)`; None where it is 0."""
        return LogitsProcessorList([StopThreshold(self.stop_threshold)]) if self.stop_threshold else None

    def tokens_from(self, old: "DetectionProcessor") -> list[int]:  # type: ignore[override]
        """Levels of another number of bins are the nearest ones; classes are told by their names, in any case."""
        levels = [NUM_SPECIAL + round(k * old.num_bins / self.num_bins) for k in range(self.num_bins + 1)]
        place = {name.casefold(): NUM_SPECIAL + old.num_bins + 1 + i for i, name in enumerate(old.categories)}
        return [*range(NUM_SPECIAL), *levels, *(place.get(name.casefold(), -1) for name in self.categories)]

    # --- rows to tokens ---------------------------------------------------------------------------------------------

    @naming_arguments
    def __call__(  # type: ignore[override]
        self, images, seeds=None, objects: Sequence[dict] | None = None, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        check_return_tensors(return_tensors)
        images = as_images(images)
        if objects is not None:
            check_rows(images=images, objects=objects, **({} if seeds is None else {"seeds": seeds}))
        if objects is not None and seeds is not None and (self.flip or self.scale_jitter is not None):
            views = zip(images, objects, seeds, strict=True)
            images, objects = zip(*(self._augmented(*view) for view in views), strict=True)
        framed = [self._framed(image) for image in images]
        batch = {"pixel_values": self.image_processor(framed, return_tensors="pt")["pixel_values"]}
        if objects is not None:
            rows = zip(images, objects, [None] * len(objects) if seeds is None else seeds, strict=True)
            labels = [self._labels(image_size(image), row, seed) for image, row, seed in rows]
            batch["labels"] = torch.tensor(np.stack(labels))  # (B, 6 * max_boxes)
            if self.absent_weight != 1:
                present = read_tokens(batch["labels"], self.num_bins, self.num_labels).present
                weights = torch.where(present, 1.0, self.absent_weight)
                batch["label_weights"] = weights.repeat_interleave(TOKENS_PER_BOX, dim=1)
        return BatchFeature(batch)

    def _augmented(self, image: Image.Image, objects: Any, seed: int) -> tuple[Image.Image, dict]:
        """Another view of a row, a function of its seed."""
        row, rng = read_objects(objects, self.categories), np.random.default_rng([seed, 1])  # not the order's draws
        bbox = row.boxes * np.tile(np.divide(image.size, image_size(image)), 2)
        if self.flip and rng.random() < 0.5:
            image, bbox = mirrored(image, bbox)
        if self.scale_jitter is not None:
            image, bbox = scale_jittered(image, bbox, self.scale_jitter, rng)
        if ORIGINAL_SIZE in image.info:  # of the photo; the boxes are now in the pixels of the view
            image = image.copy()
            del image.info[ORIGINAL_SIZE]
        return image, {"bbox": bbox.tolist(), "category": row.labels.tolist(), "iscrowd": row.iscrowd.tolist()}

    def _framed(self, image: Image.Image) -> Image.Image:
        """The image for the image processor: itself, to be stretched, or on a canvas of the frame's shape."""
        if self.resize == "stretch":
            return image
        scale = self.frame[0] / self._extent(image.size)[0]
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new("RGB", self.frame, PADDING)
        canvas.paste(image.resize(size, Image.Resampling.BICUBIC))
        return canvas

    def _extent(self, size: tuple[float, float]) -> tuple[float, float]:
        """Width and height of the frame in pixels of the image: larger than the image where it is letterboxed."""
        if self.resize == "stretch":
            return size
        scale = max(size[0] / self.frame[0], size[1] / self.frame[1])
        return self.frame[0] * scale, self.frame[1] * scale

    def _labels(self, size: tuple[int, int], objects: dict, seed: int | None) -> np.ndarray:
        """The ids `(6 * max_boxes,)` that are learned, absent boxes last."""
        boxes, labels, _, iscrowd = self._read(size, objects)
        boxes, labels = boxes[~iscrowd], labels[~iscrowd]
        if len(boxes) > self.max_boxes:
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            largest = np.sort(np.argsort(-areas, kind="stable")[: self.max_boxes])
            boxes, labels = boxes[largest], labels[largest]
        confidence = np.full(len(boxes), HIGH)
        if self.box_order == "sorted":
            order = np.lexsort((boxes[:, 0], boxes[:, 1]))
            boxes, labels = boxes[order], labels[order]
        if seed is not None:
            rng = np.random.default_rng(seed)
            confidence = rng.integers(LOW, HIGH + 1, len(boxes))
            if self.box_order == "random":
                order = rng.permutation(len(boxes))
                boxes, labels = boxes[order], labels[order]
        ids = np.full(self.completion_length, ABSENT)
        ids[: TOKENS_PER_BOX * len(boxes)] = self._write(size, boxes, labels, confidence).reshape(-1)
        return ids

    def _write(self, size, boxes: np.ndarray, labels: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """Ids `(n, 6)` of `boxes (n, 4)` in pixels."""
        extent = np.tile(self._extent(size), 2)
        levels = np.rint(boxes / extent * self.num_bins).astype(np.int64).clip(0, self.num_bins) + NUM_SPECIAL
        classes = labels + NUM_SPECIAL + self.num_bins + 1
        return np.column_stack([levels[:, [1, 0, 3, 2]], classes, confidence])

    def _read(self, size, objects: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The row's boxes `(n, 4)` xyxy clipped to the image, their labels, areas and crowd flags; none without area."""
        row = read_objects(objects, self.categories)
        start, extent = row.boxes[:, :2], row.boxes[:, 2:]
        corners = np.concatenate([start, start + extent], axis=1).clip(0, np.tile(size, 2))
        area = np.where(np.isnan(row.area), extent.prod(1), row.area)
        solid = ((corners[:, 2:] > corners[:, :2]) & (extent > 0)).all(1)
        return corners[solid], row.labels[solid], area[solid], row.iscrowd[solid]

    @naming_arguments
    def get_references(self, rows: list[dict]) -> list[dict[str, Any]]:
        """The true boxes in pixels, crowds included, as COCO has them; and as `target_ids`, which rewards read."""
        references = []
        for row in rows:
            size = image_size(row["image"])
            boxes, labels, area, iscrowd = self._read(size, row["objects"])
            solid = ~iscrowd
            target_ids = self._write(size, boxes[solid], labels[solid], np.full(int(solid.sum()), HIGH))
            references.append(
                {
                    "boxes": boxes,
                    "labels": labels,
                    "area": area,
                    "iscrowd": iscrowd,
                    "target_ids": target_ids.reshape(-1).tolist(),
                }
            )
        return references

    def says_the_same(self, completion: dict[str, np.ndarray], reference: dict[str, Any]) -> bool:
        """Whether decoded labels are the true boxes: as many, each with an IoU above 0.5 with one of its class."""
        true, found = reference["boxes"][~reference["iscrowd"]], completion["boxes"]
        if len(found) != min(len(true), self.max_boxes):
            return False
        low, high = (
            pick(found[:, None, part], true[None, :, part])
            for pick, part in ((np.maximum, slice(0, 2)), (np.minimum, slice(2, 4)))
        )
        overlap = (high - low).clip(0).prod(-1)  # (N, M)
        of_found, of_true = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (found, true))
        same = completion["labels"][:, None] == reference["labels"][~reference["iscrowd"]]
        good = same & (2 * overlap > of_found[:, None] + of_true - overlap)
        return bool(good.any(1).all())

    def take_options(self, options) -> None:
        """Take the id of each category from the files that the options name: by its name, as files count differently."""
        files = category_files(options)
        if options.categories_file is not None:
            files = files[:1]
        ids = {file: category_ids(file, self.categories) for file in files}
        if any(each != ids[files[0]] for each in ids.values()):
            raise ValueError(
                f"{' and '.join(map(str, files))} have other ids for the same categories, so that those of the results are not "
                "known: give categories_file, the one of the two whose ids results shall have."
            )
        if ids:
            self.category_ids = ids[files[0]]

    def take_saved(self, saved, options) -> None:
        """Take the ids of the same categories, if the options name no file that has some."""
        same = isinstance(saved, DetectionProcessor) and saved.categories == self.categories
        if same and not category_files(options):
            self.category_ids = saved.category_ids

    def check_dataset(self, dataset, columns: dict[str, str]) -> None:
        """Check the boxes before training: categories, values, too many boxes, other units and forms."""
        if "objects" not in columns:
            return
        column = columns["objects"]
        named = isinstance(dataset, datasets.Dataset) and column in dataset.features
        names = category_names(dataset, column) if named else None
        if names is not None and names != self.categories:
            raise ValueError(
                f"The data set's categories are {names}, but the processor's are {self.categories}: both must be the same."
            )
        objects = read_column(dataset, column, self.categories)
        surplus = np.maximum(np.bincount(objects.rows[~objects.iscrowd]) - self.max_boxes, 0)
        if surplus.any():
            logger.warning(
                "%d rows have more than max_boxes=%d boxes: of these rows, the smallest boxes (%d in all) are not learned.",
                (surplus > 0).sum(),
                self.max_boxes,
                surplus.sum(),
            )
        extent = objects.boxes[:, 2:]
        for what, which in (
            ("have no area and are left out", (extent <= 0).any(1)),
            ("are less than a pixel wide and high", ((extent > 0) & (extent < 1)).all(1)),
        ):
            if which.any():
                logger.warning("%d boxes %s.", which.sum(), what)
        self._check_form(dataset, columns, objects)

    @naming_arguments
    def count_classes(self, dataset, column: str = "objects") -> list[int]:
        """How often each category occurs in a training set, crowds apart: for `AveragePrecisionReward`."""
        objects = read_column(dataset, column, self.categories, sample=False)
        return np.bincount(objects.labels[~objects.iscrowd], minlength=self.num_labels).tolist()

    def _check_form(self, dataset, columns: dict[str, str], objects: Objects) -> None:
        """Opens some images: are the boxes x, y, width, height in their pixels? Boxes that leave theirs are clipped."""
        odd = other_unit(objects.boxes, columns["objects"])
        boxes, sizes = [np.zeros((0, 4))], [np.zeros((0, 2))]
        for index in sampled_rows(dataset) if odd is None else ():
            row = dataset[index]
            boxes.append(read_objects(row[columns["objects"]], self.categories).boxes)
            size = image_size(rgb_image(row[columns["image"]], index))
            sizes.append(np.tile(np.array(size, np.float64), (len(boxes[-1]), 1)))
        looked_at, of_image = np.concatenate(boxes), np.concatenate(sizes)
        ends = objects.boxes[:, :2] + objects.boxes[:, 2:]
        odd = odd or other_form(looked_at, of_image, float(ends.max(initial=0)), columns["objects"])
        if odd and not self.trust_boxes:
            raise ValueError(
                f"{odd} (If the boxes are right, pass trust_boxes=True to the processor, or --trust_boxes true to a command.)"
            )
        leaving = (looked_at[:, :2] < -1).any(1) | (looked_at[:, :2] + looked_at[:, 2:] > of_image + 1).any(1)
        if leaving.any():
            logger.warning("%d of %d boxes leave their image and are clipped.", leaving.sum(), len(looked_at))

    # --- tokens to boxes --------------------------------------------------------------------------------------------

    @naming_arguments
    def batch_decode(
        self, sequences, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Boxes of ids alone, which know no confidences: all have score 1. See `post_process_object_detection` for these.

        Args:
            sequences: N rows of ids, such as `model.generate` returns, with the token that starts the decoder, or without. Of a
                box that was cut nothing is read.
            image_sizes: N pairs (width, height). Default: boxes are in 0..1 of the model's frame.
        """
        sequences = id_rows("sequences", sequences)
        if image_sizes is None:
            return [self._decode(self._without_start(ids), extent=(1.0, 1.0)) for ids in sequences]
        check_sizes("image_sizes", image_sizes)
        check_rows(sequences=sequences, image_sizes=image_sizes)
        return [
            self._decode(self._without_start(ids), self._extent(size), size)
            for ids, size in zip(sequences, image_sizes, strict=True)
        ]

    @naming_arguments
    def decode(self, ids, image_size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """One completion, as `batch_decode` reads it."""
        return self.batch_decode([ids], None if image_size is None else [image_size])[0]

    def draw(self, image, completion, reference=None, width=None) -> Image.Image:
        """The boxes on the image, right, wrong and missed ones told apart."""
        return draw_boxes(image, completion, reference, width, self.categories)

    def _without_start(self, ids) -> np.ndarray:
        """The ids without the token with which `generate` starts, also where its answer was cut.

        That is the id of absent unless a user has set another one, and an absent box has six of these: so one more in front of
        a box is the start. No box begins with the id of a confidence.
        """
        num_absent = int(np.argmax(np.append(ids, -1) != ABSENT))  # in front of the first box
        whole = len(ids) % TOKENS_PER_BOX == 1
        more = num_absent % TOKENS_PER_BOX  # than whole absent boxes have
        starts = more == 1 or (more > 1 and whole) or (len(ids) > 0 and ids[0] in (LOW, HIGH))
        return ids[1:] if starts else ids

    @naming_arguments
    def post_process_object_detection(
        self, outputs, threshold: float = 0.5, target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Boxes with scores, in the form that transformers' detectors have.

        Args:
            outputs: of `model.generate(pixel_values, logits_processor=processor.logits_processor,
                return_dict_in_generate=True, output_logits=True)`; without a `stop_threshold`, `output_scores=True` does.
            threshold: boxes with a score above it are kept.
            target_sizes: (height, width) of each image. Default: boxes are in 0..1 of the model's frame.

        Returns:
            A dict an image: `scores (n,)`, `labels (n,)` and `boxes (n, 4)`, x0, y0, x1, y1.

        Raises:
            ValueError: for outputs without them.
        """
        logits = getattr(outputs, "logits", None)
        if logits is None and not self.stop_threshold:  # which would have changed the scores
            logits = getattr(outputs, "scores", None)
        if logits is None:
            raise ValueError(
                "Scores of boxes are computed from the model's probabilities: call model.generate(pixel_values, "
                f"return_dict_in_generate=True, output_{'logits' if self.stop_threshold else 'scores'}=True)."
            )
        logps = (
            torch.stack(logits, dim=1).float().log_softmax(-1).cpu()
        )  # (N, T, V), or of all beams (N * beams, T, V)
        ids = outputs.sequences[:, -logps.shape[1] :].cpu()  # (N, T)
        beams = getattr(outputs, "beam_indices", None)
        if beams is not None:  # the row of each token
            logps = logps[beams[:, : ids.shape[1]].clamp(min=0).cpu(), torch.arange(ids.shape[1])]
        if target_sizes is not None:
            check_sizes("target_sizes", target_sizes)
        sizes = (
            [(1.0, 1.0)] * len(ids) if target_sizes is None else [(w, h) for h, w in np.asarray(target_sizes).tolist()]
        )
        found = self._decode_scored(
            ids.tolist(),
            logps.gather(-1, ids[..., None]).squeeze(-1),
            logps[..., list(self.watched_ids)],
            [(1.0, 1.0) if target_sizes is None else self._extent(size) for size in sizes],
            sizes,
        )
        kept = [image["scores"] > threshold for image in found]
        return [
            {name: torch.from_numpy(image[name][keep]) for name in ("scores", "labels", "boxes")}
            for image, keep in zip(found, kept, strict=True)
        ]

    @naming_arguments
    def decode_completions(
        self, sequences, *, per_token_logps, watched_logps, image_sizes
    ) -> list[dict[str, np.ndarray]]:
        """Boxes in the image's pixels: `boxes (n, 4)` x0, y0, x1, y1, `labels (n,)`, `scores (n,)`.

        Corners are put in order and clipped to the image. The scores are made as `score` says, of `per_token_logps (N, T)`
        and of `watched_logps (N, T, 3)`, those of low, high and absent.
        """
        check_sizes("image_sizes", image_sizes)
        extents = [self._extent(size) for size in image_sizes]
        return self._decode_scored(sequences, per_token_logps, watched_logps, extents, image_sizes)

    def _decode_scored(self, sequences, per_token_logps, watched_logps, extents, sizes) -> list[dict[str, np.ndarray]]:
        decoded, sequences = [], id_rows("sequences", sequences)
        for i, (ids, extent, size) in enumerate(zip(sequences, extents, sizes, strict=True)):
            scores = self._scores(i, len(ids) // TOKENS_PER_BOX, per_token_logps, watched_logps)
            if scores.isnan().any():
                raise ValueError(
                    f"The log-probabilities of completion {i} are not finite (per_token_logps, watched_logps): its boxes "
                    "would have the score NaN."
                )
            decoded.append(self._decode(ids, extent, size, scores.numpy()))
        return decoded

    def _scores(self, i: int, num_boxes: int, per_token_logps, watched_logps) -> torch.Tensor:
        """The scores of the `num_boxes` boxes of completion `i`."""

        def of_boxes(logps: torch.Tensor) -> torch.Tensor:
            return logps[i, : num_boxes * TOKENS_PER_BOX].double().unflatten(0, (num_boxes, TOKENS_PER_BOX))

        if self.score == "likelihood":
            return of_boxes(per_token_logps).mean(1).exp()  # (n, 6) before the mean
        watched = of_boxes(watched_logps)  # (n, 6, 3)
        if self.score == "confidence":
            return torch.sigmoid(watched[:, 5, 1] - watched[:, 5, 0])
        return of_boxes(per_token_logps)[:, 4].exp() * -torch.expm1(watched[:, 0, 2])  # P(class) (1 - P(absent))

    def _decode(self, ids, extent, size=(1.0, 1.0), scores: np.ndarray | None = None) -> dict[str, np.ndarray]:
        tokens = read_tokens(torch.from_numpy(ids), self.num_bins, self.num_labels)
        present = tokens.present.numpy()
        corners = tokens.levels.numpy()[present][:, [1, 0, 3, 2]] / self.num_bins * np.tile(extent, 2)
        low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])
        boxes = np.concatenate([low, high], axis=1).clip(0, np.tile(size, 2))
        return {
            "boxes": boxes,
            "labels": tokens.labels.numpy()[present],
            "scores": np.ones(len(boxes)) if scores is None else scores[present],
        }
