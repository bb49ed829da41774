"""CIDEr as the reward of captioning (paper, section 4.4)."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from huggingface_hub import snapshot_download

from vision_rl.arguments import naming_arguments
from vision_rl.manifest import loading
from vision_rl.rewards import OfProcessor, SavedReward, check_same_fact, completion_texts
from vision_rl.tasks.captioning.cider import cider_d, plain_cider
from vision_rl.tasks.captioning.ngrams import DocumentFrequency


logger = logging.getLogger(__name__)

_SCORES: dict[str, Callable[..., np.ndarray]] = {"cider_d": cider_d, "plain_cider": plain_cider}
_FOLDER = Path("reward", "cider")


class CiderReward(SavedReward, OfProcessor):
    """CIDEr-D of each caption, with the training set's document frequencies.

    The end of a caption counts as a word: without that, tuned models learn to break off, "a man with a", since the
    words that they leave out cost more than they bring.

    Args:
        document_frequency: `DocumentFrequency.from_references(train_captions, append_eos=True)`.
        append_eos: as the frequencies were counted.
        eos_token_id: the tokenizer's; `None`: that of the trainer's processor. Without any, a caption that was cut off at
            `max_completion_length` counts as ended, which a training with `append_eos` warns of.
        score: `cider_d` or `plain_cider`.

    Raises:
        ValueError: for frequencies that were counted with another `append_eos`.
    """

    def __init__(
        self,
        document_frequency: DocumentFrequency,
        append_eos: bool = True,
        eos_token_id: int | None = None,
        score: Callable[..., np.ndarray] = cider_d,
    ):
        if not isinstance(document_frequency, DocumentFrequency):
            raise TypeError(
                f"document_frequency is a {type(document_frequency).__name__}; it must be a DocumentFrequency, such as "
                "DocumentFrequency.load(path) of a saved file."
            )
        if document_frequency.append_eos != append_eos:
            raise ValueError(
                f"The document frequencies were counted with append_eos={document_frequency.append_eos}, but this reward needs "
                f"append_eos={append_eos}: make them with DocumentFrequency.from_references(references, "
                f"append_eos={append_eos})."
            )
        if score not in _SCORES.values():
            raise ValueError(f"score must be vision_rl.tasks.captioning.cider_d or plain_cider; it is {score!r}.")
        self.document_frequency, self.append_eos = document_frequency, append_eos
        self.eos_token_id, self.score = eos_token_id, score
        self._warned = False

    def for_processor(self, processor) -> Self:
        fitted, end = copy.copy(self), processor.tokenizer.eos_token_id
        if self.eos_token_id is None:
            fitted.eos_token_id = end
        elif end is not None:
            check_same_fact("CiderReward", "eos_token_id", self.eos_token_id, end)
        return fitted

    @naming_arguments
    def __call__(
        self,
        completions: list[str] | list[list[dict]],
        references: list[list[str]],
        completion_ids: list[list[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs,
    ) -> list[float]:
        """One score a completion. How long captions are is logged beside it: a tuned model writes shorter ones.

        Args:
            completions: captions, plain or as a list of one message each.
            references: the true captions of each completion's image.
            completion_ids: the tokens of each, which tell whether it ended (`eos_token_id`).
            log_metric: the trainer's.
            kwargs: the other columns that a trainer passes; not used.
        """
        append_eos: bool | list[bool] = self.append_eos
        if self.append_eos and completion_ids is not None:
            if self.eos_token_id is not None:
                append_eos = [self.eos_token_id in ids for ids in completion_ids]
            elif not self._warned:
                logger.warning(
                    "CiderReward does not know the end token, so captions that are cut off at max_completion_length are paid "
                    "as if they had ended: pass eos_token_id=tokenizer.eos_token_id."
                )
                self._warned = True
        texts = completion_texts(completions)
        if log_metric is not None and texts:
            log_metric("words/mean", sum(len(text.split()) for text in texts) / len(texts))
        return self.score(texts, references, self.document_frequency, append_eos).tolist()

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `reward/cider/` into the folder: the options and the document frequencies."""
        folder = Path(save_directory) / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        name = next(name for name, score in _SCORES.items() if score is self.score)
        options = {"append_eos": self.append_eos, "eos_token_id": self.eos_token_id, "score": name}
        (folder / "config.json").write_text(json.dumps(options, indent=2) + "\n")
        self.document_frequency.save(folder / "document_frequency.npz")

    @classmethod
    def from_pretrained(cls, save_directory: str | Path, revision: str | None = None) -> "CiderReward":
        """The reward that was saved in a model's folder, or pushed with the model to the Hub.

        Args:
            save_directory: the folder or the Hub name.
            revision: branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError: if there is none.
            DamagedFolder: if its files are not those that the trainer saved.
        """
        folder = Path(save_directory) / _FOLDER
        if not Path(save_directory).is_dir() and str(save_directory).count("/") == 1:
            pattern = f"{_FOLDER.as_posix()}/*"
            folder = Path(snapshot_download(str(save_directory), revision=revision, allow_patterns=pattern)) / _FOLDER
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{save_directory} has no {_FOLDER}: no CiderReward was saved there.")
        with loading(folder):
            options = json.loads((folder / "config.json").read_text())
            frequency = DocumentFrequency.load(folder / "document_frequency.npz")
            return cls(frequency, options["append_eos"], options["eos_token_id"], _SCORES[options["score"]])
