"""When greedy decoding may leave a box out: not wherever absent is the likeliest id, but where it is likely."""

from transformers import LogitsProcessor

from vision_rl.arguments import check_number
from vision_rl.tasks.detection.rewards import ABSENT


class StopThreshold(LogitsProcessor):
    """Rules absent out where its probability is not above `threshold`; for our greedy decoding and for `generate`.

    Args:
        threshold: 0..1; with 1 no box is ever absent.

    Raises:
        ValueError: for a threshold that is no probability.
    """

    def __init__(self, threshold: float):
        check_number("stop_threshold", threshold, least=0, most=1)
        self.threshold = threshold

    def __call__(self, input_ids, scores):
        """`scores (R, V)`, logits or log-probabilities, the same but for those of absent."""
        unlikely = scores.float().softmax(-1)[:, ABSENT] <= self.threshold
        scores = scores.clone()
        scores[:, ABSENT].masked_fill_(unlikely, float("-inf"))
        return scores
