"""A CUDA graph without a GPU: it records the operations of a step and replays them on the same tensors.

It has the rules of a GPU: a capture computes nothing; a replay runs no Python code of ours, and reads and writes the
addresses of the capture; the host may not read a value during a capture; a capture in which something fails raises at
its end.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vision_rl.models import cuda_graphs
from vision_rl.models.cuda_graphs import CudaGraphRunner


FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "unique")  # operations that wait for the device


class FakeStream:
    def wait_stream(self, other) -> None:
        assert isinstance(other, FakeStream)


class Streams:
    """The part of `torch.cuda` that is about streams."""

    def __init__(self):
        self.default = self.current = FakeStream()

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


class RecordedGraph:
    """Takes the place of `torch.cuda.CUDAGraph`."""

    captured: list["RecordedGraph"] = []
    fails_at_end = False
    streams: Streams

    def __init__(self):
        self.replays = 0

    def capture_begin(self, pool, capture_error_mode) -> None:
        assert pool is not None and capture_error_mode == "thread_local"
        assert self.streams.current is not self.streams.default, "CUDA captures no default stream"
        self.recorder = Recorder()
        self.recorder.__enter__()

    def capture_end(self) -> None:
        self.recorder.__exit__(None, None, None)
        self.recorder.undo()
        if self.recorder.failed or self.fails_at_end:
            raise RuntimeError("the capture was invalidated")
        self.captured.append(self)

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, recorded in self.recorder.calls:
            places = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
            for tensor, result in zip(tensors(recorded), tensors(function(*args, **kwargs)), strict=True):
                if tensor.untyped_storage().data_ptr() not in places:  # neither a view nor in place
                    tensor.copy_(result)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.before, self.failed = [], {}, False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(name in function.name() for name in FORBIDDEN):
            self.failed = True
            raise RuntimeError(f"{function.name()}: operation not permitted when stream is capturing")
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(value):
                    place = tensor.untyped_storage()
                    self.before.setdefault(place.data_ptr(), (place, place.clone()))
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, result))
        return result

    def undo(self) -> None:
        """Restore the tensors: a capture computes nothing."""
        for place, before in self.before.values():
            place.copy_(before)


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def a_cpu_that_captures(monkeypatch) -> Streams:
    """Lets `sample` capture its steps on a CPU for the rest of a test."""
    streams = Streams()
    monkeypatch.setattr(RecordedGraph, "streams", streams, raising=False)
    monkeypatch.setattr(RecordedGraph, "captured", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", streams.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams.current)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(cuda_graphs, "DEVICE", "cpu")
    for name, value in (("works", True), ("_stream", None), ("_pool", None)):
        monkeypatch.setattr(CudaGraphRunner, name, value)
    return streams
