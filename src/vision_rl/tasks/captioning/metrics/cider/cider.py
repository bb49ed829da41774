"""coco-caption's metrics as an evaluate module: `evaluate.load(vision_rl.metric_path("cider"))`."""

import datasets
import evaluate

from vision_rl import metric_module
from vision_rl.tasks.captioning.coco_captions import coco_captions
from vision_rl.tasks.captioning.ngrams import DocumentFrequency


_DESCRIPTION = """
CIDEr-D of captions, with BLEU-1 to 4 and ROUGE-L of the same tokens, all as coco-caption computes them, without Java.
Higher is better; papers print CIDEr-D times 100.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): one caption an image.
    references (list of list of str): the true captions of each image.
    document_frequency (str or DocumentFrequency): or the file that one was saved to. Default: counted over the references, as in coco-caption.
Returns:
    cider (float): CIDEr-D, from 0 to 10.
    bleu_1, bleu_2, bleu_3, bleu_4, rouge_l (float): from 0 to 1.
    unfinished (float): the share of captions that end with a word such as "a" or "with".
    mean_length (float): words of a caption.
    per_caption_cider, per_caption_rouge_l (list of float): of each caption.
Examples:
    >>> cider = evaluate.load(vision_rl.metric_path("cider"))
    >>> references = [["a dog runs on grass", "a dog on the grass"], ["two cats sleep", "two sleeping cats"]]
    >>> result = cider.compute(predictions=["A dog on the grass.", "two dogs"], references=references)
    >>> round(result["cider"], 3), round(result["bleu_4"], 3), round(result["rouge_l"], 3), result["unfinished"]
    (2.828, 0.687, 0.695, 0.0)
"""

_CITATION = """
@inproceedings{vedantam2015cider,
    title = {{CIDEr}: Consensus-based image description evaluation},
    author = {Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
    booktitle = {Conference on Computer Vision and Pattern Recognition},
    year = {2015}
}
@article{chen2015microsoft,
    title = {Microsoft {COCO} captions: Data collection and evaluation server},
    author = {Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and Doll{\\'a}r,
              Piotr and Zitnick, C. Lawrence},
    journal = {arXiv:1504.00325},
    year = {2015}
}
"""


class Cider(metric_module.MetricModule):
    def _info(self):
        texts = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)}),
        )

    def _compute(self, predictions, references, document_frequency=None):
        if isinstance(document_frequency, str):
            document_frequency = DocumentFrequency.load(document_frequency)
        return coco_captions(predictions, references, document_frequency)
