"""Decode steps as CUDA graphs: captured once, replayed at every later token and in every later rollout.

A step of a small decoder takes a GPU less time than Python takes to ask for it; a replay asks once for all of it. THE
CAPTURE HAS NOT BEEN RUN ON A GPU YET: the tests run all of this on a CPU, with a graph that replays recorded operations.
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

DEVICE = "cuda"  # the type of device that has them
MAX_KEPT = 2  # rollouts whose buffers stay in memory: that of training, and that of evaluation


class CudaGraphRunner(EagerRunner):
    """A step of a new shape runs as it is called, the next of that shape is captured, and all later ones replay it.

    Each capture takes some steps' worth of time, so shapes are few: lengths in steps of 64, and images and rows are
    dropped by halves. The graphs hold the addresses of what they read and write: they are as good as the `Decoding`
    whose steps they are, and the weights, stay where they are.
    """

    bucket = 64
    shrink = 0.5
    works = True  # until a capture fails in this process
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
            return step()  # allocates what is made on first use, such as cuBLAS workspaces
        graph = self.graphs[shape]
        if graph is None:
            try:
                graph = self.graphs[shape] = self._capture(step)
            except RuntimeError as error:  # nothing of the step has been computed
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
        """The step as a graph. `torch.cuda.graph` would wait for the GPU and give its free memory back each time.

        It would also leave the current stream to be the capture's where the capture fails.
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
    """End a capture in which something went wrong: that of its own which CUDA says then is not the news."""
    with suppress(RuntimeError):
        graph.capture_end()


class KeptWriters:
    """The last writers of a decoder, by their work. A copy of the decoder, whose weights lie elsewhere, has none."""

    def __init__(self):
        self.kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The one of this key, which says all that its steps depend on beside the weights' values; or a new one."""
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
    """Those of `decoder`, which live as long as it does."""
    if "_kept_writers" not in vars(decoder):
        vars(decoder)["_kept_writers"] = KeptWriters()
    return vars(decoder)["_kept_writers"]


def addresses(decoder: nn.Module) -> Hashable:
    """What a captured step has of the decoder: where its tensors lie, and which adapters are at work."""
    tensors = (*decoder.parameters(), *decoder.buffers())
    adapters = (module for module in decoder.modules() if isinstance(module, BaseTunerLayer))
    return (
        tuple(tensor.data_ptr() for tensor in tensors),
        tuple((layer.disable_adapters, *layer.active_adapters) for layer in adapters),
    )


@contextmanager
def without_autocast_cache() -> Iterator[None]:
    """Autocast keeps no casts: one that a capture has made lies in the graph's memory, which the next replay overwrites."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
