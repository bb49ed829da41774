"""The OCR rewards as an evaluate module: `evaluate.load(vision_rl.metric_path("ocr_reward"))`."""

import datasets
import evaluate

from vision_rl import metric_module
from vision_rl.citation import CITATION
from vision_rl.tasks.ocr.rewards import character_accuracy_reward, exact_match_reward


_DESCRIPTION = """
What reward tuning pays for a transcript, row by row. `character_accuracy` is 1 minus the edit distance to the
reference as a share of its length, not below 0; `exact_match` is 1 for a text without an error, else 0.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the texts that were read.
    references (list of str): the true texts, one a prediction.
    kind (str): "character_accuracy" (default) or "exact_match".
Returns:
    reward (float): the mean reward.
    rewards (list of float): the reward of each prediction, from 0 to 1.
Examples:
    >>> reward = evaluate.load(vision_rl.metric_path("ocr_reward"))
    >>> reward.compute(predictions=["4071", "12"], references=["4079", "12"])
    {'reward': 0.875, 'rewards': [0.75, 1.0]}
    >>> reward.compute(predictions=["4071", "12"], references=["4079", "12"], kind="exact_match")
    {'reward': 0.5, 'rewards': [0.0, 1.0]}
"""


class OCRReward(metric_module.MetricModule):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, kind="character_accuracy"):
        rewards_of = {"character_accuracy": character_accuracy_reward, "exact_match": exact_match_reward}
        if kind not in rewards_of:
            raise ValueError(f"kind must be one of {', '.join(map(repr, rewards_of))}; it is {kind!r}.")
        rewards = rewards_of[kind](predictions, references)
        return {"reward": sum(rewards) / len(rewards), "rewards": rewards}
