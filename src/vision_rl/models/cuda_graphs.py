"""Decode steps as CUDA graphs: captured once, replayed at every later token and in every later rollout.

A GPU computes a step of a small decoder in less time than Python takes to launch its kernels; a replay launches all of
them at once. THE CAPTURE HAS NOT BEEN RUN ON A GPU YET: the tests run this module on a CPU, with a graph that replays
recorded operations.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from vision_rl.models.decoding import EagerRunner


logger = logging.getLogger(__name__)
T = TypeVar("T")

DEVICE = "cuda"  # the type of device that has CUDA graphs
MAX_KEPT = 2  # writers whose buffers stay in memory: one for training, and one for evaluation


class CudaGraphRunner(EagerRunner):
    """Runs the first step of a shape eagerly, captures the second one, and replays the graph for all later ones.

    A capture takes as long as some steps, so there are few shapes: lengths are multiples of 64, and images and rows
    are dropped by halves. A graph holds the addresses of the tensors that it reads and writes, so it is valid only as
    long as the tensors of its `Decoding` and the weights stay at their place in memory.
    """

    bucket = 64
    shrink = 0.5
    works = True  # False once a capture has failed in this process
    _pool: Any = None
    _stream: Any = None

    def __init__(self):
        super().__init__(check_every=8)
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}

    def run(self, shape: Hashable, step: Callable[[], None]) -> None:
        if not CudaGraphRunner.works:
            return step()
        if shape not in self.graphs:
            self.graphs[shape] = None
            return step()  # the eager step allocates what is made on first use, such as cuBLAS workspaces
        graph = self.graphs[shape]
        if graph is None:
            try:
                graph = self.graphs[shape] = self._capture(step)
            except RuntimeError as error:  # a failed capture has computed nothing
                CudaGraphRunner.works = False
                self.graphs.clear()
                logger.warning(
                    "A decode step could not be captured as a CUDA graph. Steps are no longer captured in this process, "
                    "which makes sampling slower: %s",
                    error,
                )
                return step()
        graph.replay()

    def size(self, needed: int, current: int) -> int:
        while (current + 1) // 2 >= needed and current > 1:
            current = (current + 1) // 2
        return current

    @classmethod
    def _capture(cls, step: Callable[[], None]) -> "torch.cuda.CUDAGraph":
        """Capture the step and return its graph.

        `torch.cuda.graph` is not used: it would wait for the GPU and free cached memory at each capture, and after a
        capture that fails it would leave the capture's stream as the current one.
        """
        if cls._stream is None:
            cls._pool, cls._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        cls._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(cls._stream):
            graph.capture_begin(pool=cls._pool, capture_error_mode="thread_local")
            try:
                with without_autocast_cache():
                    step()
            except BaseException:
                _end_broken(graph)
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(cls._stream)
        return graph


def _end_broken(graph: "torch.cuda.CUDAGraph") -> None:
    """End a capture that has failed, and suppress the error that CUDA raises for it: the first error is the cause."""
    with suppress(RuntimeError):
        graph.capture_end()


class KeptWriters:
    """The last `MAX_KEPT` writers of a decoder, by key. A copy of the decoder, with other weights, has no writers."""

    def __init__(self):
        self.kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the kept writer of `key`, or call `make` for a new one and keep it.

        The key must tell everything that the writer's steps depend on, except the values of the weights.
        """
        if key not in self.kept:
            self.kept[key] = make()
        self.kept.move_to_end(key)
        while len(self.kept) > MAX_KEPT:
            self.kept.popitem(last=False)
        return self.kept[key]

    def __deepcopy__(self, memo) -> "KeptWriters":
        return KeptWriters()

    def __reduce__(self):
        return KeptWriters, ()


def kept_writers(decoder: nn.Module) -> KeptWriters:
    """Return the `KeptWriters` of `decoder`, an attribute of the decoder that is made at the first call."""
    if "_kept_writers" not in vars(decoder):
        vars(decoder)["_kept_writers"] = KeptWriters()
    return vars(decoder)["_kept_writers"]


def addresses(decoder: nn.Module) -> Hashable:
    """Return what a captured step depends on: the addresses of the decoder's tensors, and the active adapters."""
    tensors = (*decoder.parameters(), *decoder.buffers())
    adapters = (module for module in decoder.modules() if isinstance(module, BaseTunerLayer))
    return (
        tuple(tensor.data_ptr() for tensor in tensors),
        tuple((layer.disable_adapters, *layer.active_adapters) for layer in adapters),
    )


@contextmanager
def without_autocast_cache() -> Iterator[None]:
    """Turn autocast's cache of weight casts off inside the context.

    A cast that is made during a capture lies in the graph's memory, which the next replay overwrites.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
