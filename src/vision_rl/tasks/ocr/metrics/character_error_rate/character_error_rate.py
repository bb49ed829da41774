"""The character error rate as an evaluate module: `evaluate.load(vision_rl.metric_path("character_error_rate"))`."""

import datasets
import evaluate

from vision_rl import metric_module
from vision_rl.tasks.ocr.rewards import character_error_rate


_DESCRIPTION = """
The character error rate (CER) of transcripts: the insertions, deletions and substitutions of one character that turn
the predictions into the references, over the number of characters of the references. Lower is better; it exceeds 1
when the predictions are much too long. Beside it stands the share of predictions without any error.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the texts that were read.
    references (list of str): the true texts, one a prediction.
Returns:
    cer (float): edits per reference character over the whole corpus, so long texts weigh more than short ones.
    exact_match (float): share of predictions equal to their reference.
Examples:
    >>> cer = evaluate.load(vision_rl.metric_path("character_error_rate"))
    >>> cer.compute(predictions=["40719", "12"], references=["40719", "123"])
    {'cer': 0.125, 'exact_match': 0.5}
"""

_CITATION = """
@article{levenshtein1966binary,
    title = {Binary codes capable of correcting deletions, insertions, and reversals},
    author = {Levenshtein, Vladimir I.},
    journal = {Soviet Physics Doklady},
    volume = {10},
    number = {8},
    pages = {707--710},
    year = {1966}
}
"""


class CharacterErrorRate(metric_module.MetricModule):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        return character_error_rate(predictions, references)
