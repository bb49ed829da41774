"""A text classifier as a reward."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vision_rl.rewards import completion_texts


class TextRewardModel(nn.Module):
    """A sequence classifier with one output, which scores decoded texts, as TRL takes one.

    Tokens are added and texts cut as the tokenizer has it. `VisionRewardTrainer` makes one of each model of transformers
    among its rewards, or of the name or path of one; make it yourself for another `batch_size`.

    Args:
        model: an `AutoModelForSequenceClassification` with `num_labels=1`, or its name or path.
        processing_class: its tokenizer; default: the one beside the model.
        batch_size: most texts at once.

    Raises:
        ValueError: the model has more than one output, or its tokenizer neither a padding nor an end token.
        TypeError: in the call, for completions that are not text.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        processing_class: PreTrainedTokenizerBase | None = None,
        batch_size: int = 64,
    ):
        super().__init__()
        if isinstance(model, str):
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                model, num_labels=1, trust_remote_code=False
            )
        else:
            self.model = model
        config = self.model.config
        self.name, self.batch_size = config._name_or_path or type(self.model).__name__, batch_size
        if config.num_labels != 1:
            raise ValueError(
                f"The reward model `{self.name}` has {config.num_labels} outputs, but a reward is one number."
            )
        self.tokenizer: Any = processing_class or AutoTokenizer.from_pretrained(
            config._name_or_path, trust_remote_code=False
        )
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise ValueError(f"The tokenizer of the reward model `{self.name}` has no pad_token: set it.")
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config.pad_token_id = self.tokenizer.pad_token_id  # the last token before it is the one that is read

    def forward(self, completions, **kwargs) -> list[float]:
        texts = completion_texts(completions)
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(
                    f"The reward model `{self.name}` scores text, but a completion is a {type(text).__name__}."
                )
        rewards: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            inputs = self.tokenizer(
                texts[start : start + self.batch_size], padding=True, truncation=True, return_tensors="pt"
            )
            with torch.no_grad():
                logits = self.model(**inputs.to(self.model.device)).logits  # (n, 1)
            rewards += logits[:, 0].float().tolist()
        return rewards
