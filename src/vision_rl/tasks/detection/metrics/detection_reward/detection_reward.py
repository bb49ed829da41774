"""The detection reward as an evaluate module: `evaluate.load(vision_rl.metric_path("detection_reward"))`."""

import copy

import datasets
import evaluate

from vision_rl import metric_module
from vision_rl.citation import CITATION
from vision_rl.rewards import check_same_fact
from vision_rl.tasks.detection.rewards import class_weights, detection_reward, stack


OPTIONS = (
    "num_bins",
    "num_labels",
    "class_counts",
    "thresholds",
    "duplicate_weight",
    "released_total",
    "false_positive_weight",
)


_DESCRIPTION = """
What reward tuning pays for the tokens of a set of boxes: matched true boxes minus 0.3 for each duplicate, weighted by
class, the mean over thresholds of the IoU. Not divided by the number of boxes.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of list of int): the token ids of each answer: y0, x0, y1, x1, class, confidence of each box.
    references (list of list of int): the true boxes in the same form, one list an answer.
    num_bins (int): of the processor; a coordinate has num_bins + 1 levels. Default 1000.
    num_labels (int): number of classes. Default 80.
    class_counts (list of int): how often each class occurs in the training set, for the weights. Default: all weigh 1.
    thresholds (list of float): of the IoU. Default 0.5, 0.55, ..., 0.95.
    duplicate_weight (float): default 0.3.
    released_total (bool): the total of the authors' code, whose keys collide. Default False.
    false_positive_weight (float): of a box that is neither match nor duplicate. Default 0, the paper's.
    All but the first two may also be given to `evaluate.load`. As a reward of a trainer the module scores the tokens of its
    completions, with the processor's num_bins and num_labels.
Returns:
    reward (float): the mean reward.
    rewards (list of float): the reward of each answer.
Examples:
    >>> reward = evaluate.load(vision_rl.metric_path("detection_reward"))
    >>> box = [3, 3, 503, 503, 1004, 2]
    >>> reward.compute(predictions=[box, box + box], references=[box, box], thresholds=[0.5])
    {'reward': 0.8499999940395355, 'rewards': [1.0, 0.699999988079071]}
"""


class DetectionReward(metric_module.MetricModule):
    def _info(self):
        ids = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def __init__(self, *args, **kwargs):
        self.options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        super().__init__(*args, **kwargs)

    def for_processor(self, processor):
        fitted = copy.copy(self)
        fitted.options = {**self.options}
        for name in ("num_bins", "num_labels"):
            fact = getattr(processor, name, None)
            if fact is None:
                raise ValueError(
                    f"detection_reward needs the {name} of a DetectionProcessor, not {type(processor).__name__}."
                )
            check_same_fact("detection_reward", name, fitted.options.setdefault(name, fact), fact)
        return fitted

    def of_completions(self, completions, completion_ids, references, **options):
        target_ids = [truth["target_ids"] for truth in references]
        return self._compute(predictions=completion_ids, references=target_ids, **options)

    def _compute(self, predictions, references, **options):
        options = self.options | options
        counts = options.pop("class_counts", None)
        weights = None if counts is None else class_weights(counts)
        if weights is not None and len(weights) != (num_labels := options.get("num_labels", 80)):
            raise ValueError(f"class_counts has {len(weights)} numbers for num_labels={num_labels} classes.")
        found, true = stack("predictions", predictions), stack("references", references)
        scored = detection_reward(found[:, None], true, class_weights=weights, **options)
        rewards = scored.rewards[:, 0].tolist()
        return {"reward": sum(rewards) / len(rewards), "rewards": rewards}
