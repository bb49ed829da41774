"""What may be a reward: a function in TRL's form, a module, a text classifier, an evaluate module; its name; what of it is saved."""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from vision_rl.rewards import OfProcessor, SavedReward
from vision_rl.trainer.modules import (
    check_facts,
    for_processor,
    gives_rewards,
    is_combination,
    is_evaluate_module,
    is_ours,
    load_module,
    module_path,
    of_compute,
)
from vision_rl.trainer.reward_models import TextRewardModel


class ModuleReward(OfProcessor):
    """An evaluate module as a reward in TRL's form: its computation on the batch, without the Arrow files of `compute`.

    Args:
        module: with `rewards` in its result.
        name: in messages.
        options: of its `compute`.

    Raises:
        TypeError: for options that its `compute` does not take.
    """

    def __init__(self, module: Any, name: str, options: Mapping[str, Any]):
        self.module, self.name, self.options = module, name, dict(options)
        try:
            inspect.signature(module._compute).bind(predictions=[], references=[], **options)
        except TypeError as error:
            raise TypeError(f"The evaluate module of the reward `{name}` cannot be called so: {error}.") from None

    def __call__(self, completions, completion_ids, references=None, **kwargs) -> list:
        if is_ours(self.module):
            result = self.module.of_completions(completions, completion_ids, references, **self.options)
        else:
            result = self.module._compute(predictions=completions, references=references, **self.options)
        if "rewards" not in result:
            raise TypeError(_no_rewards(self.name, ", ".join(sorted(result))))
        return result["rewards"]

    def for_processor(self, processor) -> "ModuleReward":
        if is_ours(self.module):
            check_facts(self.name, self.options, processor)
        return ModuleReward(for_processor(self.module, processor), self.name, self.options)


def as_function(reward, name: str, processing_class=None) -> Callable:
    """A callable in TRL's form.

    Raises:
        TypeError: for what is no reward, an evaluate module without `rewards` among them.
    """
    reward, options = of_compute(reward), {}
    if isinstance(reward, functools.partial) and of_compute(reward.func) is not reward.func:
        reward, options = of_compute(reward.func), reward.keywords
    path = module_path(reward) if isinstance(reward, str) else None
    if path is not None:
        reward = load_module(path)
    if isinstance(reward, PreTrainedModel | str):
        return TextRewardModel(reward, processing_class)
    if processing_class is not None:
        raise ValueError(
            f"reward_processing_classes has an entry for the reward `{name}`, a {type(reward).__name__}, but only a model of "
            "transformers, or the name of one, takes one. Write None in its place."
        )
    if is_combination(reward):
        raise TypeError(
            f"The reward `{name}` is a combination of several: give its modules one by one, reward_funcs=[first, second], "
            "and their weights as reward_weights."
        )
    if is_evaluate_module(reward):
        if not gives_rewards(reward):
            raise TypeError(_no_rewards(name, "numbers of the whole set"))
        return ModuleReward(reward, name, options)
    if not callable(reward):
        raise TypeError(f"The reward `{name}` is a {type(reward).__name__}, not a function of completions.")
    return reward


def _no_rewards(name: str, given: str) -> str:
    return (
        f"The evaluate module `{name}` gives {given}; a reward needs `rewards`, one number per completion. Pass a metric as "
        "compute_metrics."
    )


def names_of(rewards: Sequence) -> list[str]:
    """Two rewards of one name would share their log keys: the second becomes `name_2`."""
    unique: list[str] = []
    for name in map(_name_of, rewards):
        candidates = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        unique.append(next(candidate for candidate in candidates if candidate not in unique))
    return unique


def source_of(function: Callable) -> str:
    """Name where a reward's code is, or which model it is, for whoever asks later what a model was tuned for."""
    if isinstance(function, functools.partial):
        return source_of(function.func)
    if isinstance(function, TextRewardModel):
        return function.name
    if isinstance(function, ModuleReward):
        return source_of(function.module)
    named: Any = function if inspect.isroutine(function) else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def saved_rewards(rewards: Sequence) -> list[SavedReward]:
    """Return the rewards that have data of their own to save. Raises `ValueError` for two of a class."""
    saved = [reward for reward in map(_saved_reward, rewards) if reward is not None]
    kinds = [type(reward) for reward in saved]
    if len(set(kinds)) < len(kinds):
        twice = next(kind.__name__ for kind in kinds if kinds.count(kind) > 1)
        raise ValueError(
            f"Two rewards are of the class {twice}: saved beside the model, one would overwrite the other."
        )
    return saved


def _saved_reward(reward) -> SavedReward | None:
    """The reward that is saved: itself, or the one inside a partial function or an evaluate module's `reward`."""
    if isinstance(reward, functools.partial):
        return _saved_reward(reward.func)
    if isinstance(reward, ModuleReward):
        reward = getattr(reward.module, "reward", None)
    return reward if isinstance(reward, SavedReward) else None


def _name_of(reward) -> str:
    if isinstance(reward, functools.partial):
        return _name_of(reward.func)
    reward = of_compute(reward)
    if isinstance(reward, PreTrainedModel):
        reward = reward.config._name_or_path or type(reward).__name__
    if isinstance(reward, str):
        return Path(reward).name
    return getattr(reward, "__name__", None) or getattr(reward, "name", None) or type(reward).__name__
