"""The CIDEr reward as an evaluate module: `evaluate.load(metric_path("cider_reward"), document_frequency=file)`."""

import copy

import datasets
import evaluate

from vision_rl import metric_module
from vision_rl.citation import CITATION
from vision_rl.tasks.captioning.ngrams import DocumentFrequency
from vision_rl.tasks.captioning.rewards import CiderReward


_DESCRIPTION = """
What reward tuning pays for a caption: its CIDEr-D, with the document frequencies of the training set, so that a reward does
not depend on which other captions it is computed with. The end of a caption counts as a word where the frequencies
were counted so.
"""

_KWARGS_DESCRIPTION = """
Args:
    document_frequency (str or DocumentFrequency): of `evaluate.load`. The file that `DocumentFrequency.save` wrote; a tuned
        model's folder has it as reward/cider/document_frequency.npz.
    predictions (list of str): one caption an image.
    references (list of list of str): the true captions of each image.
Returns:
    reward (float): the mean reward.
    rewards (list of float): the reward of each caption, from 0 to 10.
Examples:
    >>> from vision_rl.tasks.captioning import DocumentFrequency
    >>> captions = [["a dog runs on grass", "a dog on the grass"], ["two cats sleep", "two sleeping cats"]]
    >>> frequency = DocumentFrequency.from_references(captions, append_eos=True)
    >>> reward = evaluate.load(vision_rl.metric_path("cider_reward"), document_frequency=frequency)
    >>> result = reward.compute(predictions=["a dog on the grass", "a dog on the"], references=captions[:1] * 2)
    >>> [round(value, 2) for value in result["rewards"]]
    [6.07, 3.6]
"""


class CiderRewardModule(metric_module.MetricModule):
    def __init__(self, *args, document_frequency=None, **kwargs):
        super().__init__(*args, **kwargs)
        if document_frequency is None:
            raise ValueError(
                "Say how common each n-gram is: evaluate.load(path, document_frequency=file), where the file was written "
                "by DocumentFrequency.from_references(training_captions, append_eos=True).save(file)."
            )
        if not isinstance(document_frequency, DocumentFrequency):
            document_frequency = DocumentFrequency.load(document_frequency)
        self.reward = CiderReward(document_frequency, document_frequency.append_eos)

    def _info(self):
        texts = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)}),
        )

    def for_processor(self, processor):
        fitted = copy.copy(self)
        fitted.reward = self.reward.for_processor(processor)
        return fitted

    def of_completions(self, completions, completion_ids, references):
        return {
            "rewards": self.reward(completions, references, completion_ids)
        }  # which tell whether a caption has ended

    def _compute(self, predictions, references):
        rewards = self.reward(predictions, references)
        return {"reward": sum(rewards) / len(rewards), "rewards": rewards}
