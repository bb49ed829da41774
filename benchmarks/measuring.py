"""What the benchmarks share: a clock, peak memory, and figures as JSON lines and a Markdown table."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch.profiler import ProfilerActivity, profile


Clock = Callable[[], float]
MIB = 2**20


def clock_of(device: str = "cpu", kind: Literal["cpu", "wall"] = "wall") -> Clock:
    """A clock: seconds of CPU time of this process or of wall time. On a GPU it waits until the device is done.

    CPU time is for machines that others use as well. It leaves out waiting and worker processes, and it adds up
    threads, so take it with one thread only.
    """
    if not device.startswith("cuda"):
        return time.process_time if kind == "cpu" else time.perf_counter

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, now: Clock) -> dict[str, list[float]]:
    """Seconds of each run in each round; a first round does not count. In turns, because a slow minute slows them all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = now()
            run()
            seconds[name].append(now() - start)
    return {name: values[1:] for name, values in seconds.items()}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as long the slow one takes: the median of the ratios of the single rounds."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def compared(
    other: str, theirs: Callable[[], object], ours: Callable[[], object], count: int, rounds: int, now: Clock
) -> dict[str, float]:
    """Columns of a table for runs over `count` things: things a second by the other code and by ours, and the ratio."""
    seconds = in_turns({"theirs": theirs, "ours": ours}, rounds, now)
    return {
        f"{other}, a second": count / min(seconds["theirs"]),
        "vision_rl, a second": count / min(seconds["ours"]),
        "times": ratio(seconds["theirs"], seconds["ours"]),
    }


@dataclass
class Peak:
    """The most bytes in use at once, beyond those that were in use at the beginning."""

    bytes: int = 0

    @property
    def mib(self) -> float:
        return self.bytes / MIB


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Measures the memory of a block; the peak can be read when the block has ended.

    On the CPU PyTorch's profiler records each allocation and release of PyTorch's allocator, those inside of an
    operation included. Memory that libraries allocate themselves is not counted. This is slow: do not take times
    inside the block.
    """
    peak = Peak()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated() - before
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield peak
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    in_use = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        in_use += event["args"]["Bytes"]
        peak.bytes = max(peak.bytes, in_use)


def report(benchmark: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print one JSON line for each row, then all rows as a Markdown table. All rows must have the same keys."""
    rows = [{key: _rounded(value) for key, value in row.items()} for row in rows]
    for row in rows:
        print(json.dumps({"benchmark": benchmark, **row}), flush=True)
    columns = list(rows[0])
    print()
    for cells in (columns, ["---"] * len(columns), *(row.values() for row in rows)):
        print("|", " | ".join("" if cell is None else str(cell) for cell in cells), "|")
    print()


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
