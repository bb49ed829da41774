"""Threads that compute rewards while the model draws the next samples."""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future


class RewardWorkers:
    """Runs calls in `count` threads, in the order of `submit`.

    Threads, not processes: what a reward is given (images, segmentations, whole columns) would be pickled anew each
    step, a reward would have to be picklable, and those that take long (numpy, torch, remote calls) release the
    interpreter's lock. Daemon threads, unlike those of `ThreadPoolExecutor`: a reward that hangs does not keep the
    interpreter from exiting.
    """

    def __init__(self, count: int):
        calls: queue.SimpleQueue = queue.SimpleQueue()
        for number in range(count):
            threading.Thread(target=_work, args=(calls,), name=f"vision_rl rewards {number}", daemon=True).start()
        self.count, self._calls = count, calls
        weakref.finalize(self, _stop, calls, count)

    def __reduce__(self):
        """Copies and pickles have threads of their own."""
        return RewardWorkers, (self.count,)

    def submit(self, function: Callable, *args) -> Future:
        future: Future = Future()
        self._calls.put((future, function, args))
        return future


def _work(calls: queue.SimpleQueue) -> None:
    while (call := calls.get()) is not None:
        future, function, args = call
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(*args))
        except BaseException as error:  # a SystemExit too: whoever waits for the result must learn of it
            future.set_exception(error)
        del call, future, function, args  # no batch is kept while waiting for the next call


def _stop(calls: queue.SimpleQueue, count: int) -> None:
    for _ in range(count):
        calls.put(None)
