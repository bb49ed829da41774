"""Where the time of a step goes."""

import time
from collections import defaultdict, deque
from typing import Any

import torch
from transformers import TrainerCallback


class StepClock:
    """Seconds spent in each part of a step; one part at a time, and the next one ends the last.

    On a GPU the marks are events in its stream: the kernels of a part are counted under it, although they run later,
    and nothing waits for them until the seconds are read.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: deque = deque()  # (part, when it began)
        self._seconds: dict[str, float] = defaultdict(float)

    def enter(self, part: str | None) -> None:
        """Count the time from now on for `part`, or for no part if it is None."""
        now: Any = torch.cuda.Event(enable_timing=True) if self._on_gpu else time.perf_counter()
        if self._on_gpu:
            now.record()
        self._marks.append((part, now))
        while len(self._marks) > 1 and (not self._on_gpu or self._marks[1][1].query()):
            self._add_first()

    def read(self) -> dict[str, float]:
        """Return the seconds of each part since the last reading, without the part that is still running."""
        if self._on_gpu and self._marks:
            self._marks[-1][1].synchronize()
        while len(self._marks) > 1:
            self._add_first()
        seconds, self._seconds = self._seconds, defaultdict(float)
        return dict(seconds)

    def _add_first(self) -> None:
        part, start = self._marks.popleft()
        _, end = self._marks[0]
        if part is not None:
            self._seconds[part] += start.elapsed_time(end) / 1000 if self._on_gpu else end - start


class OptimizerClock(TrainerCallback):
    """Counts what is between Trainer's last callback before the optimiser's step and the first one after it."""

    def __init__(self, clock: StepClock):
        self.clock = clock

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.clock.enter("optimizer")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.clock.enter(None)
