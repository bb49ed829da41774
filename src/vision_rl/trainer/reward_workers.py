"""Threads that compute rewards while the model draws the next samples."""

import logging
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future


logger = logging.getLogger(__name__)


class RewardWorkers:
    """Runs calls in `count` threads, in the order of `submit`.

    Threads, not processes: what a reward is given (images, segmentations, whole columns) would be pickled anew each
    step, a reward would have to be picklable, and those that take long (numpy, torch, remote calls) release the
    interpreter's lock. Daemon threads, unlike those of `ThreadPoolExecutor`: a reward that hangs does not keep the
    interpreter from exiting.
    """

    def __init__(self, count: int):
        self.count = count
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._calls: list[_Call] = []  # that are not done
        self._threads = [_Worker(self._waiting, number) for number in range(count)]
        weakref.finalize(self, _stop, self._waiting, count)

    def __reduce__(self):
        """Copies and pickles have threads of their own."""
        return RewardWorkers, (self.count,)

    def submit(self, function: Callable, *args) -> Future:
        self._calls = [call for call in self._calls if not call.future.done()]
        self.check()
        call = _Call(function, args)
        self._calls.append(call)
        self._waiting.put(call)
        return call.future

    def check(self) -> None:
        """Threads that have died are replaced; whoever waits for what one was computing gets an error."""
        dead = [worker for worker in self._threads if not worker.is_alive()]
        for worker in dead:
            logger.warning("The thread `%s` has died; another takes its place.", worker.name)
            self._replace(worker)
        for call in self._calls if dead else []:
            if call.worker is None:
                self._waiting.put(call)  # it may have died between taking a call and beginning it
            elif call.worker in dead and not call.future.done():
                call.future.set_exception(RuntimeError(f"The thread `{call.worker.name}` that computed it has died."))

    def leave(self, future: Future) -> None:
        """Wait for this call no longer: it is cancelled, or its thread left to it and replaced."""
        if future.cancel():
            return
        for call in self._calls:
            if call.future is future and call.worker in self._threads and not future.done():
                call.worker.left = True
                self._replace(call.worker)

    def _replace(self, worker: "_Worker") -> None:
        place = self._threads.index(worker)
        self._threads[place] = _Worker(self._waiting, place)


class _Call:
    def __init__(self, function: Callable, args: tuple):
        self.function, self.args = function, args
        self.future: Future = Future()
        self._owner: dict[str, _Worker] = {}

    @property
    def worker(self) -> "_Worker | None":
        return self._owner.get("worker")

    def compute(self, worker: "_Worker") -> None:
        """Run the call in the thread of `worker`, if no other thread has begun it."""
        if self._owner.setdefault("worker", worker) is not worker or not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.function(*self.args))
        except BaseException as error:  # a SystemExit too: whoever waits for the result must learn of it
            self.future.set_exception(error)
        del self.function, self.args  # no batch is kept while waiting for the next call


class _Worker(threading.Thread):
    def __init__(self, waiting: queue.SimpleQueue, number: int):
        super().__init__(name=f"vision_rl rewards {number}", daemon=True)
        self.waiting, self.left = waiting, False
        self.start()

    def run(self) -> None:
        while not self.left and (call := self.waiting.get()) is not None:
            call.compute(self)
            del call


def _stop(waiting: queue.SimpleQueue, count: int) -> None:
    for _ in range(count):
        waiting.put(None)
