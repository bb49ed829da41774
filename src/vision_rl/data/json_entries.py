"""JSON files of annotations of any size, read an entry at a time; the one place that reads them."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO


MAX_JSON_BYTES = 16 * 2**30  # of a file; Objects365 has about 5
MAX_ENTRY_CHARS = 2**26  # of one entry of a list, or one value at the top; COCO's largest has less than a million

Handler = Callable[[Any], None]

_CHUNK = 2**20  # characters
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


def read_entries(file: str | Path, what: str, handlers: Mapping[str, Handler]) -> None:
    """Gives each entry of the lists that `handlers` names, at the file's top level, to its handler, in the file's order.

    An entry is forgotten when its handler has seen it, so that a file may be far larger than memory. UTF-8, with or without
    a mark at the start, UTF-16 and UTF-32 are read.

    Args:
        file: a JSON file with an object at its top level.
        what: it should hold, for the error: "boxes".
        handlers: what is called with each entry, a list's name each. Other lists and values are passed over.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for anything but valid JSON with these lists, with the file and the place in it.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no annotation file {file}{' (it is a folder)' if file.is_dir() else ''}.")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(
            f"{file} has {file.stat().st_size} bytes; up to {MAX_JSON_BYTES} are read "
            "(vision_rl.data.json_entries.MAX_JSON_BYTES)."
        )
    encoding = _encoding(file)
    with open(file, encoding=encoding) as stream:
        try:
            seen = _read_object(_Text(stream, file), what, handlers)
        except UnicodeError as error:
            raise ValueError(f"{file} is no text in {encoding} ({error}): save it as UTF-8.") from error
    absent = [key for key in handlers if key not in seen]
    if absent:
        raise ValueError(f"{file} is no file of {what}: it has no {', '.join(map(repr, absent))} at its top level.")


class _Text:
    """A window onto the text of a file: what has been read of it and not been used."""

    def __init__(self, stream: TextIO, file: Path):
        self.stream, self.file = stream, file
        self.text, self.at, self.before = "", 0, 0  # place in the window, and characters in front of it

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._read_more():
                return self.text[self.at : self.at + 1]

    def accept(self, character: str) -> bool:
        """Whether the next one is this; then it is used."""
        found = self.peek() == character
        self.at += found
        return found

    def expect(self, character: str) -> None:
        if not self.accept(character):
            found = self.peek()
            raise self.error(f"expected {character!r}, found {found!r}" if found else f"it ends before {character!r}")

    def value(self) -> Any:
        """The JSON value that comes next."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # The window may end within the value: in a string, or a few characters behind the error.
                cut = error.msg.startswith("Unterminated") or len(self.text) - error.pos < 16
                at_end = not cut or not self._read_more()
                if at_end:
                    raise self.error("it ends in the middle: was it cut?" if cut else error.msg) from error
            except RecursionError as error:
                raise self.error("it is nested too deeply") from error
            except ValueError as error:  # a number of thousands of digits
                raise self.error(str(error)) from error
            else:
                if len(self.text) - end > 3 or not self._read_more():  # else a number may go on: 1, 1e+5
                    self.at = end
                    return value

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.file} is not valid JSON: {reason} (character {self.before + self.at}).")

    def _read_more(self) -> bool:
        """Moves the window on to where it was used up to, and enlarges it. False at the end of the file."""
        rest = self.text[self.at :]
        if len(rest) > MAX_ENTRY_CHARS:
            raise ValueError(
                f"{self.file} has an entry of more than {MAX_ENTRY_CHARS} characters at character {self.before + self.at} "
                "(vision_rl.data.json_entries.MAX_ENTRY_CHARS)."
            )
        more = self.stream.read(max(_CHUNK, len(rest)))
        if more:
            self.text, self.before, self.at = rest + more, self.before + self.at, 0
        return bool(more)


def _read_object(text: _Text, what: str, handlers: Mapping[str, Handler]) -> set[str]:
    """Walks through the object at the top level; the keys that it has."""
    if text.peek() == "":
        raise ValueError(f"{text.file} is empty.")
    if text.peek() == "[":
        raise ValueError(f"{text.file} is no file of {what}: {_told_of_list(text)}")
    text.expect("{")
    seen: set[str] = set()
    more = not text.accept("}")
    while more:
        if text.peek() != '"':
            text.expect('"')
        key = text.value()
        text.expect(":")
        if key in handlers and key in seen:
            raise ValueError(f"{text.file} has {key!r} twice at its top level.")
        seen.add(key)
        if text.accept("["):
            _read_list(text, handlers.get(key, _pass_over))
        else:
            value = text.value()
            if key in handlers:
                raise ValueError(f"{text.file}: {key!r} is a {type(value).__name__}; it must be a list.")
        more = text.accept(",")
        if not more:
            text.expect("}")
    if text.peek():
        lines = " It has one object after another (JSON lines): make it one." if text.peek() == "{" else ""
        raise text.error(f"it goes on behind its end.{lines}")
    return seen


def _read_list(text: _Text, handler: Handler) -> None:
    more = not text.accept("]")
    while more:
        handler(text.value())
        more = text.accept(",")
        if not more:
            text.expect("]")


def _pass_over(entry: Any) -> None:
    pass


def _told_of_list(text: _Text) -> str:
    text.expect("[")
    first = text.value() if text.peek() not in ("", "]") else None
    if isinstance(first, dict) and "score" in first:
        return "it is a list of results (they have a `score`), not of annotations."
    return "it is a list at its top level, and needs an object with named lists there."


def _encoding(file: Path) -> str:
    with open(file, "rb") as stream:
        start = stream.read(6)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"{file} is compressed ({name}): unpack it first.")
    return json.detect_encoding(start[:4])
