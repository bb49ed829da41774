"""Rewards of detection: matches minus duplicates, on the tokens themselves (paper, section 4.2).

The matching is that of the authors' `configs/proj/reward_tune/detection_reward.py` in big_vision, which is not COCO's:
a prediction keeps the true box that it overlaps most, a true box keeps the prediction that overlaps it most, and every
other prediction of it is a duplicate. Predictions that overlap nothing cost nothing, unless `false_positive_weight` says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch

from vision_rl.arguments import check_number, check_rows, described, id_rows, naming_arguments
from vision_rl.rewards import OfProcessor, RewardOutput, TokenTargets


TOKENS_PER_BOX = 6  # y0, x0, y1, x1, class, confidence
ABSENT, LOW, HIGH = 0, 1, 2  # the ids of the confidence token; 0 is padding as well
NUM_SPECIAL = 3  # ids before the first coordinate
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
# The released code keeps its results under keys of one decimal, where the later of two thresholds wins.
RELEASED_SHARES = {0.5: 1, 0.6: 2, 0.7: 2, 0.85: 3, 0.95: 2}  # of ten


@dataclass
class BoxTokens:
    """Boxes read off token ids; every id means something in every slot, as in the released code.

    Args:
        levels: `(..., N, 4)`, y0, x0, y1, x1 in 0..num_bins, as they were written.
        labels: `(..., N)`, the class.
        present: `(..., N)` bool, whether the confidence token says so.
    """

    levels: torch.Tensor
    labels: torch.Tensor
    present: torch.Tensor


def read_tokens(ids: torch.Tensor, num_bins: int = 1000, num_labels: int = 80) -> BoxTokens:
    """The boxes of `ids (..., T)`; an incomplete box at the end is left out, ids of another kind are clipped."""
    num_boxes = ids.shape[-1] // TOKENS_PER_BOX
    fields = ids[..., : num_boxes * TOKENS_PER_BOX].unflatten(-1, (num_boxes, TOKENS_PER_BOX))  # (..., N, 6)
    levels = (fields[..., :4] - NUM_SPECIAL).clamp(0, num_bins)
    labels = (fields[..., 4] - (NUM_SPECIAL + num_bins + 1)).clamp(0, num_labels - 1)
    return BoxTokens(levels, labels, fields[..., 5] > ABSENT)


@dataclass
class DetectionRewards:
    """The worth of predicted boxes, for B images, G completions, N boxes each and K thresholds.

    Args:
        rewards: `(B, G)`, the total over the thresholds.
        rewards_per_threshold: `(B, G, K)`.
        num_matches: `(B, G, K)`, true boxes that are found.
        num_duplicates: `(B, G, K)`, further predictions of a true box that is found.
        rewards_per_box: `(B, G, N)`, what each box adds to the reward of the boxes before it.
        match_iou: `(B, G, N)`, IoU of a prediction with the true box that it keeps, 0 if that is not above 0.5. Duplicates
            keep theirs too, as in the released code.
        present: `(B, G, N)` bool.
    """

    rewards: torch.Tensor
    rewards_per_threshold: torch.Tensor
    num_matches: torch.Tensor
    num_duplicates: torch.Tensor
    rewards_per_box: torch.Tensor
    match_iou: torch.Tensor
    present: torch.Tensor

    def prefix_rewards(self, length: int) -> torch.Tensor:
        """The reward of the boxes before each token t, `(B, G, length)`: as if the completion ended there."""
        return _earned(self.rewards_per_box).repeat_interleave(TOKENS_PER_BOX, dim=-1)[..., :length]


@naming_arguments
def detection_reward(
    completion_ids: torch.Tensor,
    target_ids: torch.Tensor,
    num_bins: int = 1000,
    num_labels: int = 80,
    class_weights: torch.Tensor | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    duplicate_weight: float = 0.3,
    released_total: bool = False,
    false_positive_weight: float = 0.0,
) -> DetectionRewards:
    """The sum of `w[class]` over the matched true boxes, minus `duplicate_weight` times that of the duplicates.

    And minus `false_positive_weight` times that of the predictions which are neither, as the released code does not.

    A match is of the same class with an IoU above the threshold (strictly). The total is the mean over the thresholds, not
    divided by the number of boxes. Source: `reward_fn` of the authors' `detection_reward.py`.

    Args:
        completion_ids: `(B, G, T)`, tokens y0, x0, y1, x1, class, confidence of each box.
        target_ids: `(B, T')`, the true boxes in the same form.
        num_bins: 0..num_bins are the levels of a coordinate.
        num_labels: number of classes.
        class_weights: `(num_labels,)`; default all 1.
        thresholds: K of the IoU.
        duplicate_weight: 0.3 in the paper.
        released_total: as released, where keys collide: (r.5 + 2 r.6 + 2 r.7 + 3 r.85 + 2 r.95) / 10 of the ten thresholds.
        false_positive_weight: the price of a prediction that overlaps no true box of its class enough; 0 in the paper.
            Where labels are incomplete it also punishes what is merely not labelled.

    Raises:
        ValueError: for shapes that do not fit, and for `released_total` with other thresholds.
    """
    if completion_ids.ndim != 3 or target_ids.ndim != 2 or len(completion_ids) != len(target_ids):
        raise ValueError(
            f"completion_ids must be (B, G, T), and target_ids must be (B, T'); they are {tuple(completion_ids.shape)} and "
            f"{tuple(target_ids.shape)}."
        )
    for name, ids in (("completion_ids", completion_ids), ("target_ids", target_ids)):
        if ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name} must be integers; it is {described(ids)}.")
    _check_sizes(num_bins, num_labels)
    _check_options(thresholds, duplicate_weight, false_positive_weight)
    if class_weights is not None and class_weights.shape != (num_labels,):
        raise ValueError(f"class_weights must be ({num_labels},), one per class; it is {tuple(class_weights.shape)}.")
    if released_total and tuple(thresholds) != THRESHOLDS:
        raise ValueError(f"released_total is only defined for the thresholds {THRESHOLDS}; they are {thresholds}.")
    found = read_tokens(completion_ids, num_bins, num_labels)
    true = read_tokens(target_ids, num_bins, num_labels)
    kept_iou, kept_truth = _kept_truth(found, true, num_bins)  # (B, G, N)

    # One matching serves all thresholds: a prediction whose best IoU is above one keeps the same true box there. All
    # predictions of a true box weigh the same: it does not matter to the sum which of them is the match.
    limits = torch.tensor(thresholds, device=kept_iou.device)
    above = kept_iou[..., None] > limits  # (B, G, N, K)
    found_before = _best_before(kept_iou, kept_truth)[..., None] > limits
    finds, repeats = above & ~found_before, above & found_before
    weights = torch.ones(num_labels) if class_weights is None else class_weights.float()
    weight = weights.to(kept_iou.device)[found.labels][..., None]  # (B, G, N, 1)
    false = found.present[..., None] & ~above
    worth = finds.float() - duplicate_weight * repeats.float() - false_positive_weight * false.float()
    worth = weight * worth  # (B, G, N, K)
    if released_total:
        shares = torch.tensor([RELEASED_SHARES.get(t, 0) / 10 for t in thresholds], device=kept_iou.device)
        per_box = (worth * shares).sum(-1)
    else:
        per_box = worth.mean(-1)
    return DetectionRewards(
        rewards=_earned(per_box)[..., -1],
        rewards_per_threshold=worth.sum(-2),
        num_matches=finds.sum(-2),
        num_duplicates=repeats.sum(-2),
        rewards_per_box=per_box,
        match_iou=torch.where(kept_iou > 0.5, kept_iou, 0.0),
        present=found.present,
    )


def _check_sizes(num_bins: int, num_labels: int) -> None:
    check_number("num_bins", num_bins, least=1, most=2**24, whole=True)  # levels are exact in float32
    check_number("num_labels", num_labels, least=1, most=2**31 - 1, whole=True)


def _check_options(thresholds: Sequence[float], duplicate_weight: float, false_positive_weight: float) -> None:
    check_number("duplicate_weight", duplicate_weight)
    check_number("false_positive_weight", false_positive_weight, least=0)
    if not isinstance(thresholds, Sequence) or not thresholds:
        raise ValueError(f"thresholds must be a list of at least one IoU; they are {described(thresholds)}.")
    for threshold in thresholds:
        check_number("thresholds", threshold, least=0, most=1)


def _kept_truth(found: BoxTokens, true: BoxTokens, num_bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The true box of its class that each prediction overlaps most, the first of equals: IoU and index `(B, G, N)`."""
    if true.labels.shape[-1] == 0:
        return torch.zeros(found.labels.shape, device=found.labels.device), torch.zeros_like(found.labels)
    # In levels, whose areas are exact: the IoU at a threshold is not above it. The constant is the released one.
    iou = _box_iou(found.levels.float(), true.levels[:, None].float(), epsilon=1e-9 * num_bins**2)  # (B, G, N, M)
    labels = found.labels.masked_fill(~found.present, -1)  # so that an absent box is of no class
    true_labels = true.labels.masked_fill(~true.present, -2)[:, None]
    iou *= labels[..., :, None] == true_labels[..., None, :]
    kept = iou.argmax(-1, keepdim=True)
    return iou.gather(-1, kept).squeeze(-1), kept.squeeze(-1)


def _best_before(kept_iou: torch.Tensor, kept_truth: torch.Tensor) -> torch.Tensor:
    """The largest IoU of the earlier predictions of the same true box, 0 where there is none: `(B, G, N)`."""
    if kept_iou.shape[-1] == 0:
        return kept_iou
    order = kept_truth.argsort(dim=-1, stable=True)  # the predictions of a true box side by side, in their own order
    truth = 2.0 * kept_truth.gather(-1, order).double()  # no IoU reaches the numbers of the next true box
    best = (truth + kept_iou.gather(-1, order)).cummax(-1).values
    before = torch.nn.functional.pad(best[..., :-1], (1, 0)) - truth  # below 0 for the first of a true box
    return torch.zeros_like(kept_iou).scatter(-1, order, before.clamp(min=0).to(kept_iou))


def _earned(rewards_per_box: torch.Tensor) -> torch.Tensor:
    """The reward of the first 0, 1, ... N boxes: `(B, G, N+1)`."""
    return torch.nn.functional.pad(rewards_per_box.cumsum(-1), (1, 0))


def _box_iou(a: torch.Tensor, b: torch.Tensor, epsilon: float) -> torch.Tensor:
    """IoU `(..., N, M)` of `a (..., N, 4)` and `b (..., M, 4)`; a box written backwards has its absolute area."""
    top, left, bottom, right = a[..., :, None, :].unbind(-1)  # (..., N, 1) each
    other_top, other_left, other_bottom, other_right = b[..., None, :, :].unbind(-1)  # (..., 1, M)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp_(min=0)
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp_(min=0)
    intersection = height * width
    area_a, area_b = ((boxes[..., 2:] - boxes[..., :2]).prod(-1).abs() for boxes in (a, b))
    return intersection / (area_a[..., :, None] + area_b[..., None, :] - intersection + epsilon)


# --- as rewards of the trainer --------------------------------------------------------------------------------------


class _DetectionReward(OfProcessor):
    """The base of both rewards: scores each completion against its own reference."""

    processor_facts = ("num_bins", "num_labels")
    thresholds: tuple[float, ...]

    def __init__(
        self, num_bins: int | None, num_labels: int | None, duplicate_weight: float, false_positive_weight: float
    ):
        self.num_bins, self.num_labels = num_bins, num_labels
        self.duplicate_weight, self.false_positive_weight = duplicate_weight, false_positive_weight
        _check_sizes(1 if num_bins is None else num_bins, 1 if num_labels is None else num_labels)
        _check_options(self.thresholds, duplicate_weight, false_positive_weight)
        self.class_weights: torch.Tensor | None = None
        self.released_total = False

    def score(self, completion_ids, references, log_metric=None) -> DetectionRewards:
        """Score B completions, each against its own reference. The counts at the first threshold are logged."""
        check_rows(completion_ids=completion_ids, references=references)
        if self.num_bins is None or self.num_labels is None:
            raise ValueError(
                f"{type(self).__name__} does not know its num_bins and num_labels: a trainer takes them from its processor. "
                "Without a trainer, pass them."
            )
        scored = detection_reward(
            stack("completion_ids", completion_ids)[:, None],
            stack("references", [reference["target_ids"] for reference in references]),
            self.num_bins,
            self.num_labels,
            self.class_weights,
            self.thresholds,
            self.duplicate_weight,
            self.released_total,
            self.false_positive_weight,
        )
        if log_metric is not None:
            log_metric("boxes/mean", scored.present.sum(-1).float().mean())
            log_metric("matches/mean", scored.num_matches[..., 0].float().mean())
            log_metric("duplicates/mean", scored.num_duplicates[..., 0].float().mean())
        return scored

    def output(self, scored: DetectionRewards, completion_ids, targets: TokenTargets | None = None) -> RewardOutput:
        prefix_rewards = scored.prefix_rewards(max(map(len, completion_ids)))[:, 0]
        return RewardOutput(scored.rewards[:, 0].tolist(), targets, prefix_rewards)


class RecallReward(_DetectionReward):
    """True boxes that are found, minus 0.3 for each duplicate; every box counts the same (paper, section 4.2).

    The references are those of `DetectionProcessor`.

    Args:
        num_bins, num_labels: of the processor; `None`: the trainer's, which others must equal.
        thresholds: of the IoU; the mean is taken over them. The paper does not say which it used.
        duplicate_weight: 0.3 in the paper.
        false_positive_weight: of a box that is neither; see `detection_reward`.
    """

    @naming_arguments
    def __init__(
        self,
        num_bins: int | None = None,
        num_labels: int | None = None,
        thresholds: Sequence[float] = (0.5,),
        duplicate_weight: float = 0.3,
        false_positive_weight: float = 0.0,
    ):
        self.thresholds = tuple(thresholds)
        super().__init__(num_bins, num_labels, duplicate_weight, false_positive_weight)

    @naming_arguments
    def __call__(self, completion_ids, references, log_metric=None, **kwargs) -> RewardOutput:
        return self.output(self.score(completion_ids, references, log_metric), completion_ids)


class AveragePrecisionReward(_DetectionReward):
    """The stand-in for mAP of one image: weighted matches over ten thresholds, and confidences that learn the IoU.

    mAP is of a whole data set and needs confidences. So the reward is the mean over the thresholds of matches minus
    duplicates, rare classes counting more, and the confidence token of each sampled box is taught the IoU that was just
    measured: it is to be `HIGH` with that probability (paper, section 4.2; `detection_reward.py`).

    Args:
        num_bins, num_labels: of the processor; `None`: the trainer's, which others must equal.
        class_counts: how often each class occurs in the training set, for the weights; `None`: all classes weigh 1.
        thresholds: of the IoU.
        duplicate_weight: 0.3 in the paper.
        confidence_weight: of the confidence loss, 0.3 as released; 0 turns it off.
        confidence_among: `"candidates"`, or `"vocabulary"` as released; see `confidence_targets`.
        released_total: the total as released; see `detection_reward`.
        false_positive_weight: of a box that is neither match nor duplicate; see `detection_reward`.
    """

    @naming_arguments
    def __init__(
        self,
        num_bins: int | None = None,
        num_labels: int | None = None,
        class_counts: Sequence[int] | None = None,
        thresholds: Sequence[float] = THRESHOLDS,
        duplicate_weight: float = 0.3,
        confidence_weight: float = 0.3,
        released_total: bool = False,
        confidence_among: Literal["candidates", "vocabulary"] = "candidates",
        false_positive_weight: float = 0.0,
    ):
        self.thresholds = tuple(thresholds)
        super().__init__(num_bins, num_labels, duplicate_weight, false_positive_weight)
        check_number("confidence_weight", confidence_weight, least=0)
        self.class_weights = None if class_counts is None else class_weights(class_counts)
        self._check_class_counts()
        self.confidence_weight, self.confidence_among = confidence_weight, confidence_among
        self.released_total = released_total

    def for_processor(self, processor) -> Self:
        fitted = super().for_processor(processor)
        fitted._check_class_counts()
        return fitted

    def _check_class_counts(self) -> None:
        if (
            self.class_weights is not None
            and self.num_labels is not None
            and len(self.class_weights) != self.num_labels
        ):
            raise ValueError(
                f"class_counts has {len(self.class_weights)} numbers, but there are {self.num_labels} classes: give "
                "one per class."
            )

    @naming_arguments
    def __call__(self, completion_ids, references, log_metric=None, **kwargs) -> RewardOutput:
        scored = self.score(completion_ids, references, log_metric)
        targets = None
        if self.confidence_weight:
            targets = confidence_targets(
                scored.match_iou[:, 0], scored.present[:, 0], self.confidence_weight, self.confidence_among
            )
        return self.output(scored, completion_ids, targets)


@naming_arguments
def class_weights(class_counts: Sequence[int]) -> torch.Tensor:
    """Weights of mean 1, about inverse to the class's `class_counts`; none is more than 20 times as rare as all together."""
    numbers = torch.as_tensor(class_counts, dtype=torch.float64)
    if numbers.ndim != 1 or not ((numbers >= 0) & numbers.isfinite()).all():
        raise ValueError(f"class_counts must be numbers from 0, one per class; they are {described(class_counts)}.")
    if not numbers.any():
        raise ValueError("class_counts are all 0: count the boxes of the training set.")
    inverse = 1 / (numbers + 0.05 * numbers.sum())
    return (len(numbers) * inverse / inverse.sum()).float()


@naming_arguments
def confidence_targets(
    match_iou: torch.Tensor,
    present: torch.Tensor,
    weight: float = 0.3,
    among: Literal["candidates", "vocabulary"] = "candidates",
) -> TokenTargets:
    """The targets of the confidence tokens of `R` completions, from `match_iou (R, N)` and `present (R, N)`.

    A box that is present: `HIGH` with the probability of its IoU, else `LOW`. Among these two candidates an absent box
    learns nothing. Among the whole `"vocabulary"`, as released, an absent box also learns to be absent and a present one
    to be present. That is minus the log-probability of what was just drawn: 0 on average, if nothing but these three ids
    is ever drawn there, and the larger part of the loss.
    """
    num_rows, num_boxes = match_iou.shape
    rows, boxes = torch.meshgrid(torch.arange(num_rows), torch.arange(num_boxes), indexing="ij")
    iou = match_iou.cpu().flatten()
    present = present.cpu().flatten().float()
    probabilities = torch.stack([1 - present, present * (1 - iou), present * iou], dim=1)
    candidates = slice(1, None) if among == "candidates" else slice(None)
    return TokenTargets(
        positions=torch.stack([rows.flatten(), boxes.flatten() * TOKENS_PER_BOX + 5], dim=1),
        ids=torch.tensor([ABSENT, LOW, HIGH]).expand(len(iou), -1)[:, candidates],
        probabilities=probabilities[:, candidates],
        weight=weight,
        among=among,
    )


def stack(name: str, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Stack completions to `(R, T)`; shorter ones are filled with `ABSENT`."""
    if isinstance(sequences, torch.Tensor):
        return sequences
    rows = [torch.from_numpy(ids) for ids in id_rows(name, sequences)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=ABSENT)
