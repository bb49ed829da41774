"""One event loop for all async rewards of the process: their clients and semaphores belong to the loop that used them first."""

import asyncio
import logging
import threading
from collections.abc import Awaitable
from concurrent.futures import Future

import torch


logger = logging.getLogger(__name__)

_lock = threading.Lock()
_current: "_LoopThread | None" = None


def start(awaitable: Awaitable, device: torch.device | None = None) -> Future:
    """Begin to await it on the loop; the future is done when it is."""
    return asyncio.run_coroutine_threadsafe(_awaited(awaitable, device), _loop_thread().loop)


def leave_if_blocked(seconds: float = 0.5) -> None:
    """Leave the loop to what has blocked it, such as a `time.sleep` in an async reward: the next call gets a new one."""
    global _current
    with _lock:
        if _current is not None and not _current.answers(seconds):
            logger.warning(
                "An async reward blocks the event loop, which all async rewards share: it should await what takes long. "
                "Later calls run on a new loop."
            )
            _current = None


def set_cuda_device(device: torch.device | None) -> None:
    """Set the CUDA device of the calling thread. Otherwise a reward's "cuda" would be device 0 in every process."""
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)


async def _awaited(awaitable: Awaitable, device: torch.device | None):
    set_cuda_device(device)
    return await awaitable


def _loop_thread() -> "_LoopThread":
    global _current
    with _lock:
        if _current is None or not _current.is_alive():  # it is not after a fork
            _current = _LoopThread()
        return _current


class _LoopThread(threading.Thread):
    def __init__(self):
        super().__init__(name="vision_rl async rewards", daemon=True)
        self.loop = asyncio.new_event_loop()
        self.start()

    def run(self) -> None:
        while True:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue  # asyncio hands a task's exit to its future, and ends the loop too: the others still wait on it

    def answers(self, seconds: float) -> bool:
        """Whether the event loop still answers."""
        answered = threading.Event()
        self.loop.call_soon_threadsafe(answered.set)
        return answered.wait(seconds)
