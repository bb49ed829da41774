"""One call of a reward: begun at once, awaited later, and explained when it fails."""

import inspect
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

import torch
from torch import nn

from vision_rl.trainer import async_rewards
from vision_rl.trainer.reward_arguments import RewardArguments
from vision_rl.trainer.reward_outputs import shown
from vision_rl.trainer.reward_workers import RewardWorkers


logger = logging.getLogger(__name__)


class RewardCall:
    """A reward on one batch: an async one, or one for the `workers`, has begun; another has been computed.

    Args:
        name, function: the reward.
        arguments: of the batch.
        workers: threads for it; `None`: the thread that asks, at once.
        device: the current CUDA device of whichever thread computes it.
        find_failing_row: where it raises, call it again on parts of the batch, to name the completion that fails alone.
    """

    def __init__(
        self,
        name: str,
        function: Callable,
        arguments: RewardArguments,
        workers: RewardWorkers | None = None,
        device: torch.device | None = None,
        find_failing_row: bool = False,
    ):
        self.name, self.function, self.arguments, self.workers = name, function, arguments, workers
        self.find_failing_row = find_failing_row
        work = (compute, function, arguments, device)
        self._future = workers.submit(*work) if workers is not None else _computed(*work)

    @property
    def has_failed(self) -> bool:
        return self._future.done() and self._future.exception() is not None

    def result(self, timeout: float | None = None):
        """What the reward returned.

        Raises:
            RuntimeError: the reward raised; its name, the rows and its own error.
            TimeoutError: it was not ready after `timeout` seconds, and is waited for no longer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            output = self._wait(deadline)
            while isinstance(output, Future):  # of a worker, which has begun an async reward
                self._future = output
                output = self._wait(deadline)
            return output
        except _NotReady:
            self.leave()
            raise TimeoutError(
                f"The reward `{self.name}` was not ready after {timeout} s (reward_timeout), on the rows "
                f"{self._rows()}. Raise reward_timeout, or give the reward a time limit of its own."
            ) from None
        except Exception as error:
            raise RuntimeError(self._explained(error)) from error
        except BaseException as error:  # an exit, mostly
            if self._future.done():  # else it is the user's, who is tired of waiting
                logger.error("The reward `%s` raised %s: training ends.", self.name, type(error).__name__)
            raise

    def leave(self) -> None:
        """Wait for it no longer; what it blocks meanwhile, a thread or the event loop, is replaced."""
        future = self._future
        if _has_result(future) and isinstance(future.result(), Future):
            future = future.result()  # an async reward that a worker has begun
        if not future.done():
            future.cancel()
            if self.workers is not None:
                self.workers.leave(future)
            async_rewards.leave_if_blocked()

    def _wait(self, deadline: float | None):
        while True:
            left = 0.2 if deadline is None else min(0.2, deadline - time.monotonic())
            if wait([self._future], max(0.0, left)).done:
                return self._future.result()
            if deadline is not None and time.monotonic() >= deadline:
                raise _NotReady
            if self.workers is not None:
                self.workers.check()

    def _rows(self) -> str:
        rows = sorted(set(self.arguments.rows))
        return str(rows) if len(rows) <= 20 else f"{rows[:20]} and {len(rows) - 20} more"

    def _explained(self, error: Exception) -> str:
        where, culprit = f"on the rows {self._rows()}", None
        if self.find_failing_row and not isinstance(error, OSError):
            culprit = self._first_failing(error, 0, len(self.arguments.rows))
        if culprit is not None:
            completion = shown(self.arguments.lists["completions"][culprit])
            where = f"on row {self.arguments.rows[culprit]}, completion {completion}"
        return f"The reward `{self.name}` raised {type(error).__name__} {where}: {_text_of(error)}"

    def _first_failing(self, error: Exception, start: int, stop: int) -> int | None:
        """The first completion that alone fails in the same way, by bisection; `None` where only the batch does."""
        if stop - start == 1:
            return start
        middle = (start + stop) // 2
        for part in (start, middle), (middle, stop):
            try:
                output = compute(self.function, self.arguments.part(*part))
                if isinstance(output, Future):
                    output.result()
            except Exception as again:
                if type(again) is type(error):
                    return self._first_failing(error, *part)
        return None


class _NotReady(Exception):
    """A deadline has passed: unlike `TimeoutError`, no reward raises it."""


def compute(function: Callable, arguments: RewardArguments, device: torch.device | None = None):
    """The function's output, or the `Future` of it if the function is async; a module's in evaluation mode, without gradient."""
    async_rewards.set_cuda_device(device)
    if isinstance(function, nn.Module):
        with torch.no_grad():
            return function.eval()(**arguments.own())
    output = function(**arguments.own())
    return async_rewards.start(output, device) if inspect.isawaitable(output) else output


def _computed(function: Callable, *args) -> Future:
    """Make the call now, and keep its error for `result`."""
    future: Future = Future()
    try:
        output = function(*args)
    except Exception as error:
        future.set_exception(error)
    else:
        if isinstance(output, Future):
            return output
        future.set_result(output)
    return future


def _has_result(future: Future) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _text_of(error: Exception) -> str:
    try:
        return str(error)
    except Exception as broken:
        return f"(its text cannot be shown: str() raises {type(broken).__name__})"
