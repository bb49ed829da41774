"""A reward that a server computes: JSON over HTTP, with limits to time and size, and errors that say what came back."""

import contextlib
import http.client
import inspect
import json
import math
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch


class RemoteRewardError(OSError):
    """The server gave no usable answer."""


class RemoteReward:
    """Asks a server for the rewards: `POST {"id", "completions", <columns>...}`, answered by `{"id", "rewards"}`.

    `rewards` is a list of numbers, `null` where the reward does not apply, one a completion. `id` names the question: it is
    the same each time that a question is asked again, so that a server can tell, and an answer to another question is not
    taken for one to this. Only JSON is sent and read (arrays and tensors as lists), and nothing else is ever loaded.

    A question is asked again, after 0.5, 1, 2, ... seconds, where the connection fails, the time is up, the server says
    429 or 5xx, or what it answers is not as above; not for another status. Each question has a connection of its own, so
    that any number of threads may ask. `examples/reward_server.py` is a server.

    Args:
        url: `http://` or `https://`.
        columns: what is sent beside the completions: `references`, `completion_ids`, columns of the data set.
        timeout: seconds for one answer, from the first byte sent to the last one read.
        retries: times that a question is asked again.
        batch: most completions a question.
        headers: sent along, for example `{"Authorization": "Bearer ..."}`. No message shows them.
        most_bytes: of a question, and of an answer.
        name: under which it is logged.

    Raises:
        ValueError: for options out of range, and for completions or columns that are larger than `most_bytes`.
        TypeError: for completions or columns that are not JSON, such as images.
        RemoteRewardError: an `OSError`; no usable answer, with what was asked and what came back.
    """

    def __init__(
        self,
        url: str,
        columns: Sequence[str] = ("references",),
        timeout: float = 30.0,
        retries: int = 3,
        batch: int = 64,
        headers: Mapping[str, str] | None = None,
        most_bytes: int = 2**24,
        name: str = "RemoteReward",
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(f"url must begin with http:// or https:// and name a host; it is {url!r}.")
        if timeout <= 0 or retries < 0 or batch < 1 or most_bytes < 1:
            raise ValueError(
                f"timeout, batch and most_bytes must be positive, and retries must not be negative; they are "
                f"timeout={timeout}, batch={batch}, most_bytes={most_bytes} and retries={retries}."
            )
        self.url, self.columns, self.timeout, self.retries, self.batch = url, tuple(columns), timeout, retries, batch
        self.headers, self.most_bytes, self.name = dict(headers or {}), most_bytes, name
        # asked for by name, so that a column that is not there is told before training
        names = [*dict.fromkeys(["completions", *columns]), "kwargs"]
        kinds = [inspect.Parameter.KEYWORD_ONLY] * (len(names) - 1) + [inspect.Parameter.VAR_KEYWORD]
        self.__signature__ = inspect.Signature([*map(inspect.Parameter, names, kinds)])

    def __call__(self, completions: list, **kwargs) -> list[float | None]:
        missing = [name for name in self.columns if name not in kwargs]
        if missing:
            raise ValueError(
                f"RemoteReward should send the columns {missing}, but it is given only {sorted(kwargs)}: add them to the "
                "data set, or leave them out of `columns`."
            )
        sent = {"completions": completions, **{name: kwargs[name] for name in self.columns}}
        rewards: list[float | None] = []
        for start in range(0, len(completions), self.batch):
            part = {name: list(values[start : start + self.batch]) for name, values in sent.items()}
            rewards += self._ask(part)
        return rewards

    def _ask(self, part: dict[str, list]) -> list[float | None]:
        """The rewards of at most `batch` completions."""
        question = uuid.uuid4().hex
        body = self._as_json({"id": question, **part})
        count = len(part["completions"])
        problem: Exception | None = None
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            try:
                return _read(self._post(body), question, count)
            except (OSError, http.client.HTTPException, _Unusable) as error:
                problem = error
                if isinstance(error, _Refused):
                    break
        times = "" if attempt == 0 else f" (asked {attempt + 1} times)"
        raise RemoteRewardError(
            f"POST {self._shown_url()} with {count} completions ({len(body):,} bytes){times}: {_text_of(problem)}"
        ) from problem

    def _as_json(self, question: dict) -> bytes:
        try:
            body = json.dumps(question, default=_as_lists, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"RemoteReward cannot send this as JSON: {error}") from error
        if len(body) > self.most_bytes:
            raise ValueError(
                f"A question with {len(question['completions'])} completions has {len(body):,} bytes, more than most_bytes="
                f"{self.most_bytes:,}: lower `batch`, or send fewer `columns`."
            )
        return body

    def _post(self, body: bytes) -> bytes:
        """The answer's bytes, within `timeout` seconds however slowly they come."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        late = threading.Event()
        begun = time.monotonic()
        try:
            connection.connect()
            sock = connection.sock

            def end() -> None:
                late.set()
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

            timer = threading.Timer(max(0.0, begun + self.timeout - time.monotonic()), end)
            timer.daemon = True
            timer.start()
            try:
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("POST", path, body, {**self.headers, "Content-Type": "application/json"})
                response = connection.getresponse()
                answer = response.read(self.most_bytes + 1)
            finally:
                timer.cancel()
        except TimeoutError:  # of the socket
            late.set()
        except (OSError, ValueError, http.client.HTTPException):
            if not late.is_set():
                raise
        finally:
            connection.close()
        if late.is_set():
            raise TimeoutError(f"no answer within {self.timeout} s")
        if response.status != 200:
            again = response.status == 429 or response.status >= 500
            raise (_Unusable if again else _Refused)(
                f"status {response.status} {response.reason}: {_start_of(answer)}"
            )
        if len(answer) > self.most_bytes:
            raise _Unusable(f"the answer has more than most_bytes={self.most_bytes:,} bytes")
        return answer

    def _shown_url(self) -> str:
        """The server's address without what may be a secret in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


class _Unusable(Exception):
    """An answer that is not as it should be."""


class _Refused(_Unusable):
    """One that would be no other if the question were asked again."""


def _read(answer: bytes, question: str, count: int) -> list[float | None]:
    try:
        read = json.loads(answer, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _Unusable(f"the answer is not JSON: {_start_of(answer)}") from None
    if not isinstance(read, dict) or not isinstance(read.get("rewards"), list):
        raise _Unusable(f'the answer is not an object with a list "rewards": {_start_of(answer)}')
    if read.get("id") != question:
        raise _Unusable(f'the answer is to another question: its "id" is {read.get("id")!r:.100}, not {question!r}')
    if len(read["rewards"]) != count:
        raise _Unusable(f"the answer has {len(read['rewards'])} rewards for {count} completions")
    for i, reward in enumerate(read["rewards"]):
        if reward is not None and (type(reward) not in (int, float) or not _is_finite(reward)):
            raise _Unusable(f"reward {i} of the answer is {reward!s:.100}, not a finite number or null")
    return read["rewards"]


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond float64
        return False


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _as_lists(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    raise TypeError(
        f"RemoteReward sends JSON, which cannot hold a {type(value).__name__}: choose the columns that are sent by `columns`."
    )


def _start_of(answer: bytes) -> str:
    return repr(answer[:200])[1:] + ("..." if len(answer) > 200 else "")


def _text_of(problem: Exception | None) -> str:
    """A bare `ConnectionResetError()` has no text of its own."""
    return f"{problem}" if isinstance(problem, _Unusable | TimeoutError) else f"{type(problem).__name__}: {problem}"
