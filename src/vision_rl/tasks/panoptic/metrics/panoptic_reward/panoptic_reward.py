"""The panoptic reward as an evaluate module: `evaluate.load(vision_rl.metric_path("panoptic_reward"))`."""

import datasets
import evaluate

from vision_rl.citation import CITATION
from vision_rl.tasks.panoptic import arrow
from vision_rl.tasks.panoptic.rewards import PanopticReward


_DESCRIPTION = """
What reward tuning pays for a panoptic map: the sum of the IoU of matched segments, minus 0.3 for each predicted segment that
matches none. Not divided by the number of segments.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of dict): one an image: `segmentation`, an array or list (H, W) of segment ids where 0 is void;
        `segments_info`, a list of dicts with `id` and `category_id`. Or pairs of the two.
    references (list of dict): the same; `iscrowd` in `segments_info` marks crowds.
    false_positive_weight (float): default 0.3.
Returns:
    reward (float): the mean reward.
    rewards (list of float): the reward of each image.
Examples:
    >>> reward = evaluate.load(vision_rl.metric_path("panoptic_reward"))
    >>> segments_info = [{"id": 7, "category_id": 1}, {"id": 8, "category_id": 2}]
    >>> prediction = {"segmentation": [[7, 8, 8, 8]], "segments_info": segments_info}
    >>> reference = {"segmentation": [[7, 7, 7, 8]], "segments_info": segments_info}
    >>> reward.compute(predictions=[reference, prediction], references=[reference, reference])
    {'reward': 0.7, 'rewards': [2.0, -0.6]}
"""


class PanopticRewardModule(arrow.SegmentationMetric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(dict.fromkeys(("predictions", "references"), arrow.SEGMENTATION_FEATURES)),
        )

    def _compute(self, predictions, references, false_positive_weight=0.3):
        reward = PanopticReward(false_positive_weight)
        rewards = reward(list(map(arrow.as_pair, predictions)), list(map(arrow.as_pair, references)))
        return {"reward": sum(rewards) / len(rewards), "rewards": rewards}
