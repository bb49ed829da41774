"""What a reward may return. Neutral ground: tasks make these objects, the trainer reads them."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch

from vision_rl.arguments import check_number, described


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class TokenTargets:
    """Supervised targets for chosen tokens of the sampled completions, learned beside REINFORCE.

    This is how detection learns its confidences: the confidence token of a sampled box is taught the IoU that the
    reward measured (paper section 4.2; `detection_reward.py` of the authors' code). The loss of one sequence is the
    mean, over its listed positions, of the cross-entropy; sequences that learn are then averaged, and the result is
    added with `weight`.

    Targets that depend on what was sampled at the same position should be learned `among="candidates"`. Against the whole
    vocabulary they also reward the draw itself (a box that was drawn as present is to be present), which is 0 on average
    and noise in each step: in trials enough for long runs to collapse.

    `weight` is stated for `loss_reduction="mean"`, as the authors state it (0.3). Under `"sum"` the REINFORCE term
    is `max_completion_length` times larger, and so is this one: the balance of the two does not change.

    Args:
        positions: `LongTensor (K, 2)`, pairs (row of the completions, token position in it).
        ids: `LongTensor (K, C)`, the candidate tokens at each position.
        probabilities: `FloatTensor (K, C)`, the target probability of each candidate. Rows sum to 1; one of zeros teaches
            nothing and only counts in the mean over its sequence's positions.
        weight: factor of this loss.
        among: which softmax the cross-entropy is taken against: over the whole `"vocabulary"`, as released, or over the
            `"candidates"` of the position alone, whatever the other tokens' probabilities.
    """

    positions: torch.Tensor
    ids: torch.Tensor
    probabilities: torch.Tensor
    weight: float = 1.0
    among: Literal["vocabulary", "candidates"] = "vocabulary"

    def __post_init__(self):
        if not isinstance(self.among, str) or self.among not in ("vocabulary", "candidates"):
            raise ValueError(f"TokenTargets.among must be 'vocabulary' or 'candidates', got {self.among!r}.")
        for name in ("positions", "ids", "probabilities"):
            values = getattr(self, name)
            whole = name != "probabilities"
            good = isinstance(values, torch.Tensor) and values.dtype in (
                (torch.int64, torch.int32) if whole else _FLOATS
            )
            if not good:
                raise ValueError(
                    f"TokenTargets.{name} must be a tensor of {'integers' if whole else 'floats'}; it is {described(values)}."
                )
        check_number("TokenTargets.weight", self.weight)
        count = self.positions.shape[0] if self.positions.ndim else 0
        if self.positions.ndim != 2 or self.positions.shape[1] != 2:
            raise ValueError(
                f"TokenTargets.positions must have the shape (K, 2), a row and a token each; its shape is "
                f"{tuple(self.positions.shape)}."
            )
        if self.ids.shape != self.probabilities.shape or self.ids.ndim != 2 or len(self.ids) != count:
            raise ValueError(
                f"TokenTargets.ids and .probabilities must both have the shape (K, C) with K = {count} positions; their "
                f"shapes are "
                f"{tuple(self.ids.shape)} and {tuple(self.probabilities.shape)}."
            )
        if self.among == "candidates" and self.ids.shape[1] < 2:
            raise ValueError(
                "TokenTargets.ids has one candidate per position, whose probability among='candidates' is always 1: give at "
                "least two, or choose among='vocabulary'."
            )

    def select(self, chosen: torch.Tensor) -> Self:
        """Return the targets at the positions for which the mask `chosen (K,)` is true."""
        return replace(
            self, positions=self.positions[chosen], ids=self.ids[chosen], probabilities=self.probabilities[chosen]
        )

    def to(self, device: torch.device) -> Self:
        """Return the targets with their tensors on a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("positions", "ids", "probabilities")}
        return replace(self, **tensors)


@dataclass
class RewardOutput:
    """The rewards of a batch of `R` completions, and what else is known: a reward returns it instead of a plain list.

    Args:
        rewards: one number a completion, `None` where the reward does not apply.
        token_targets: supervised targets, or `None`.
        prefix_rewards: `FloatTensor (R, T)`, what the reward would be if the completion ended before token t, T at least
            the length of the longest one; or `None`. What was earned before a token cannot be due to it: so the token
            learns from the difference, with less noise and the same expected gradient. Any reward that adds up along the
            sequence can give them. What lies behind a completion's end is not read.
    """

    rewards: list[float | None]
    token_targets: TokenTargets | None = None
    prefix_rewards: torch.Tensor | None = None


class OfProcessor:
    """A reward or metric whose arguments repeat facts of the processor, such as how many classes there are.

    The trainers use `for_processor(processor)` of it: what was left out (`None`) is taken from the processor, what was given
    is compared with it. No other sizes than the model's are scored with in silence.
    """

    processor_facts: tuple[str, ...] = ()  # attributes of both

    def for_processor(self, processor: Any) -> Self:
        """A copy that knows them. Raises `ValueError` for one that the processor knows otherwise, or that neither knows."""
        fitted = copy.copy(self)
        for name in self.processor_facts:
            given, fact = getattr(self, name), getattr(processor, name, None)
            if given is None and fact is None:
                raise ValueError(
                    f"{type(self).__name__} needs {name}, which {type(processor).__name__} does not have: pass {name}= to the "
                    f"{type(self).__name__}."
                )
            if given is None:
                setattr(fitted, name, fact)
            elif fact is not None:
                check_same_fact(type(self).__name__, name, given, fact)
        return fitted


def check_same_fact(whose: str, name: str, given: Any, fact: Any) -> None:
    """An argument that repeats a fact of the processor repeats it rightly. Raises `ValueError`."""
    if given != fact:
        raise ValueError(
            f"{whose} has {name}={given!r}, but the processor has {name}={fact!r}: use the processor's value."
        )


# TRL's contract: reward(completions=, completion_ids=, **columns) -> one float (or None) a completion.
RewardFunc = Callable[..., list[float | None] | RewardOutput]


class SavedReward(ABC):
    """A reward with data of its own, such as document frequencies, which is saved in the model's folder.

    `VisionRewardTrainer` calls `save_pretrained` whenever it saves the model.
    """

    @abstractmethod
    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes what the reward needs into a folder of its own below `reward/`."""


def as_conversations(texts: list, role: str) -> list[list[dict[str, str]]]:
    """Each text as a list of one message, which many of TRL's rewards read: `completion[0]["content"]`."""
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(
                f"completions_format='conversational' is for text, but a completion is a {type(text).__name__}."
            )
    return [[{"role": role, "content": text}] for text in texts]


def completion_texts(completions: list) -> list[str]:
    """Texts, from completions of either format: plain, or a list of messages each."""
    return [text[0]["content"] if isinstance(text, list) else text for text in completions]
