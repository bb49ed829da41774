"""The reward of panoptic segmentation (paper, section 4.1)."""

from collections.abc import Callable, Sequence

from vision_rl.arguments import check_number, naming_arguments
from vision_rl.tasks.panoptic.quality import SegmentMatches, match_segments
from vision_rl.tasks.panoptic.segments import Segmentation, map_and_segments, resized


class PanopticReward:
    """Per image, the sum of the matched segments' IoU minus 0.3 for each predicted segment that fits none.

    What fits, and what void and crowds excuse, is as in panoptic quality; the paper does not say it. Segments that are
    missed cost nothing but their IoU, and the mean over classes does not enter: neither is known of a single image.
    The comparison is at the completion's size, the model's in the paper: a reference of another size is brought to it.

    Args:
        false_positive_weight: what such a segment costs.
    """

    def __init__(self, false_positive_weight: float = 0.3):  # section 4.1
        check_number("false_positive_weight", false_positive_weight)
        if false_positive_weight < 0:
            raise ValueError(f"false_positive_weight must not be negative; it is {false_positive_weight}.")
        self.false_positive_weight = false_positive_weight

    def score(self, prediction: Segmentation, reference: Segmentation) -> float:
        """The reward of one `(map, segments_info)`; see `match_segments` for what both must be."""
        return self._worth(_matched(prediction, reference))

    @naming_arguments
    def __call__(
        self,
        completions: Sequence[Segmentation],
        references: Sequence[Segmentation],
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs,
    ) -> list[float]:
        """One reward a completion; logs how many segments match and how many are false positives, and the matches' IoU.

        Args:
            completions: `(map, segments_info)` each.
            references: the true ones.
            log_metric: given by the trainer.
            kwargs: the other columns that a trainer passes; not used.
        """
        matches = [_matched(*pair) for pair in zip(completions, references, strict=True)]
        if log_metric is not None and matches:
            num_matches = sum(len(found.matched) for found in matches)
            log_metric("matches/mean", num_matches / len(matches))
            log_metric("matches/iou", sum(float(found.ious.sum()) for found in matches) / max(num_matches, 1))
            log_metric("false_positives/mean", sum(len(found.spurious) for found in matches) / len(matches))
        return [self._worth(found) for found in matches]

    def _worth(self, found: SegmentMatches) -> float:
        return float(found.ious.sum()) - self.false_positive_weight * len(found.spurious)


def _matched(prediction: Segmentation, reference: Segmentation) -> SegmentMatches:
    return match_segments(prediction, resized(reference, map_and_segments(prediction)[0].shape))
