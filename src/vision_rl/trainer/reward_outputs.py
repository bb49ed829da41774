"""What a reward returned, checked: an error names the reward, and the row where there is one."""

from dataclasses import dataclass

import numpy as np
import torch

from vision_rl.rewards import RewardOutput, TokenTargets


NAN = float("nan")
LARGEST = torch.finfo(torch.float32).max  # of the rewards that are learned from


@dataclass(frozen=True)
class CheckedOutput:
    """One reward's output for `N` completions.

    Args:
        rewards: `(N,)` float32, NaN where it does not apply.
        problems: what is wrong with a completion's reward, by the completion's number; NaN stands in for it.
        token_targets: or `None`.
        prefix_rewards: `(N, T+1)` or `None`; behind the end of a completion all of its reward is earned.
    """

    rewards: torch.Tensor
    problems: dict[int, str]
    token_targets: TokenTargets | None = None
    prefix_rewards: torch.Tensor | None = None


def checked_output(name: str, output, completion_ids: list[list[int]]) -> CheckedOutput:
    """Raises `TypeError` or `ValueError` for what is wrong with the whole; what is wrong with one reward is kept."""
    output = output if isinstance(output, RewardOutput) else RewardOutput(output)
    rewards, problems = _as_tensor(name, output.rewards, len(completion_ids))
    targets, prefixes = output.token_targets, output.prefix_rewards
    if targets is not None:
        _check_token_targets(name, targets, completion_ids)
    if prefixes is not None:
        prefixes = _checked_prefixes(name, prefixes, rewards, completion_ids)
    return CheckedOutput(rewards, problems, targets, prefixes)


def shown(value: object) -> str:
    """A completion as a message shows it: shortened, also if its `repr` fails."""
    try:
        text = repr(value)
    except Exception as error:
        return f"<a {type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= 300 else f"{text[:300]}..."


def _as_tensor(name: str, rewards, count: int) -> tuple[torch.Tensor, dict[int, str]]:
    if isinstance(rewards, torch.Tensor | np.ndarray):
        rewards = rewards.tolist()
    if not isinstance(rewards, list | tuple):
        raise TypeError(f"The reward `{name}` returned a {type(rewards).__name__}; it must return a list of floats.")
    if len(rewards) != count:
        raise ValueError(
            f"The reward `{name}` returned {len(rewards)} rewards for {count} completions; it must return one per completion."
        )
    numbers, problems = [], {}
    for i, value in enumerate(rewards):
        number, problem = (NAN, None) if value is None else _number(value)
        numbers.append(number)
        if problem is not None:
            problems[i] = problem
    return torch.tensor(numbers, dtype=torch.float32), problems


def _number(value) -> tuple[float, str | None]:
    """The value as a float, and what is wrong with it, if anything."""
    try:
        number = NAN if isinstance(value, str | bytes) else float(value)
    except OverflowError:
        return NAN, "a number beyond float32's range"
    except Exception:  # whatever a class of the reward's own does
        return NAN, f"a {type(value).__name__}"
    if isinstance(value, str | bytes):
        return NAN, f"a {type(value).__name__}"
    if number - number != 0:  # NaN and infinities
        return NAN, f"{number}"
    return (number, None) if abs(number) <= LARGEST else (NAN, f"{number}, beyond float32's limit {LARGEST:.1e},")


def _check_token_targets(name: str, targets: TokenTargets, completion_ids: list[list[int]]) -> None:
    """Check that every position is a token of a completion, end token included, and that the targets are distributions."""
    lengths = torch.tensor([len(ids) for ids in completion_ids])
    rows, tokens = targets.positions.cpu().unbind(1)
    outside = (rows < 0) | (rows >= len(lengths)) | (tokens < 0)
    outside |= tokens >= lengths[rows.clamp(0, len(lengths) - 1)]
    if outside.any():
        row, token = targets.positions[outside.nonzero()[0, 0]].tolist()
        has = (
            f"that completion has {lengths[row]} tokens"
            if 0 <= row < len(lengths)
            else f"there are {len(lengths)} completions"
        )
        raise ValueError(f"The reward `{name}` gave a token target for completion {row}, token {token}, but {has}.")
    probabilities = targets.probabilities.float()
    sums = probabilities.sum(1)
    distribution = (probabilities > -1e-3).all(1) & (((sums - 1).abs() < 1e-3) | (sums == 0))
    if not distribution.all():
        raise ValueError(
            f"The reward `{name}` gave token targets with the probabilities {probabilities[~distribution][0].tolist()}: "
            "they must sum to 1, or all be 0 where nothing is to be learned."
        )
    ids = targets.ids.sort(1).values
    if (ids[:, 0] < 0).any() or (targets.among == "candidates" and (ids[:, 1:] == ids[:, :-1]).any()):
        raise ValueError(
            f"The reward `{name}` gave token targets with an id below 0, or with the same id twice at one position."
        )


def _checked_prefixes(name: str, prefixes, rewards: torch.Tensor, completion_ids: list[list[int]]) -> torch.Tensor:
    """The prefix rewards as one tensor `(N, T+1)`, checked against `rewards (N,)`."""
    try:
        prefixes = torch.as_tensor(prefixes, dtype=torch.float32).cpu()
    except (ValueError, TypeError, RuntimeError, OverflowError, RecursionError) as error:
        raise TypeError(f"The reward `{name}` gave prefix_rewards that are not numbers: {error}") from error
    lengths = torch.tensor([len(ids) for ids in completion_ids])
    longest = int(lengths.max())
    if prefixes.ndim != 2 or len(prefixes) != len(lengths) or prefixes.shape[1] < longest:
        raise ValueError(
            f"The reward `{name}` gave prefix_rewards of the shape {tuple(prefixes.shape)}; it must be ({len(lengths)}, T), "
            f"with one row per completion and one number per token; the longest completion has {longest} tokens."
        )
    prefixes = torch.nn.functional.pad(prefixes[:, :longest], (0, 1))
    behind = torch.arange(longest + 1) >= lengths[:, None]
    prefixes = torch.where(behind | rewards.isnan()[:, None], rewards[:, None], prefixes)
    broken = ~prefixes.isfinite() & ~rewards.isnan()[:, None]
    if broken.any():
        row, token = broken.nonzero()[0].tolist()
        raise ValueError(
            f"The reward `{name}` gave a prefix reward of {prefixes[row, token]} for completion {row}, token {token}; it "
            "must be finite."
        )
    return prefixes
