"""Read JSON files of annotations of any size, one entry at a time; all loaders read their JSON here."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO


MAX_JSON_BYTES = 16 * 2**30  # the largest size of a file; Objects365 has about 5 GiB
MAX_ENTRY_CHARS = 2**26  # the largest entry of a list or value at the top level; COCO's have less than a million

Handler = Callable[[Any], None]

_CHUNK = 2**20  # characters that are read at once
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


def read_entries(file: str | Path, what: str, handlers: Mapping[str, Handler]) -> None:
    """Pass each entry of the lists at the file's top level that `handlers` names to its handler, in the file's order.

    An entry is forgotten when its handler returns, so a file may be far larger than memory. UTF-8, with or without a
    byte order mark, UTF-16 and UTF-32 are read.

    Args:
        file: a JSON file with an object at its top level.
        what: the expected content of the file, for an error; for example "COCO's boxes".
        handlers: the function that is called with each entry of a list, by the list's name. Other lists and values are
            skipped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is larger than `MAX_JSON_BYTES`, is no valid JSON, or lacks one of the lists. The
            message names the file and, for invalid JSON, the place of the fault.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no annotation file {file}{' (it is a folder)' if file.is_dir() else ''}.")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(
            f"{file} has {file.stat().st_size} bytes, but only up to {MAX_JSON_BYTES} are read "
            "(vision_rl.data.json_entries.MAX_JSON_BYTES)."
        )
    encoding = _encoding(file)
    with open(file, encoding=encoding) as stream:
        try:
            seen = _read_object(_Text(stream, file), what, handlers)
        except UnicodeError as error:
            raise ValueError(f"{file} is not a text in {encoding} ({error}): save it as UTF-8.") from error
    absent = [key for key in handlers if key not in seen]
    if absent:
        raise ValueError(f"{file} is not a file of {what}: it has no {', '.join(map(repr, absent))} at its top level.")


class _Text:
    """A window onto the text of a file: the text that has been read and not yet used."""

    def __init__(self, stream: TextIO, file: Path):
        self.stream, self.file = stream, file
        self.text, self.at, self.before = "", 0, 0  # the window, the place in it, and the characters in front of it

    def peek(self) -> str:
        """Return the next character that is no white space, or "" at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._read_more():
                return self.text[self.at : self.at + 1]

    def accept(self, character: str) -> bool:
        """Return whether the next character is `character`, and if so move behind it."""
        found = self.peek() == character
        self.at += found
        return found

    def expect(self, character: str) -> None:
        if not self.accept(character):
            found = self.peek()
            raise self.error(f"expected {character!r}, found {found!r}" if found else f"it ends before {character!r}")

    def value(self) -> Any:
        """Return the JSON value that comes next, and move behind it."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # The error may mean only that the window ends within the value: in a string, or just behind the error.
                cut = error.msg.startswith("Unterminated") or len(self.text) - error.pos < 16
                at_end = not cut or not self._read_more()
                if at_end:
                    raise self.error("it ends in the middle: was it cut?" if cut else error.msg) from error
            except RecursionError as error:
                raise self.error("it is nested too deeply") from error
            except ValueError as error:  # a number with thousands of digits
                raise self.error(str(error)) from error
            else:
                if len(self.text) - end > 3 or not self._read_more():  # else a number may be cut: 1 of 1e+5
                    self.at = end
                    return value

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.file} is not valid JSON: {reason} (character {self.before + self.at}).")

    def _read_more(self) -> bool:
        """Drop the used text from the window and read more text; return False at the end of the file."""
        rest = self.text[self.at :]
        if len(rest) > MAX_ENTRY_CHARS:
            raise ValueError(
                f"{self.file} has an entry at character {self.before + self.at} that is longer than {MAX_ENTRY_CHARS} "
                "characters (vision_rl.data.json_entries.MAX_ENTRY_CHARS)."
            )
        more = self.stream.read(max(_CHUNK, len(rest)))
        if more:
            self.text, self.before, self.at = rest + more, self.before + self.at, 0
        return bool(more)


def _read_object(text: _Text, what: str, handlers: Mapping[str, Handler]) -> set[str]:
    """Read the object at the top level, with the handlers of its lists, and return the object's keys."""
    if text.peek() == "":
        raise ValueError(f"{text.file} is empty.")
    if text.peek() == "[":
        raise ValueError(f"{text.file} is not a file of {what}: {_told_of_list(text)}")
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
        lines = " It holds several objects (JSON lines): write them as one." if text.peek() == "{" else ""
        raise text.error(f"it goes on after its end.{lines}")
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
    return "it is a list at its top level, but it must be an object with named lists."


def _encoding(file: Path) -> str:
    with open(file, "rb") as stream:
        start = stream.read(6)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"{file} is compressed ({name}): unpack it first.")
    return json.detect_encoding(start[:4])
