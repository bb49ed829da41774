"""Annotation files of any size are read one entry at a time, and other files are refused with their name."""

import gzip
import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vision_rl.data import json_entries
from vision_rl.data.json_entries import read_entries


@pytest.fixture
def written(tmp_path) -> Callable:
    """A function that writes bytes or text into a file, and returns the entries that are read from its lists."""

    def read(content: bytes | str, *keys: str) -> dict[str, list]:
        file = tmp_path / "a.json"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        found: dict[str, list] = {key: [] for key in keys}
        read_entries(file, "boxes", {key: entries.append for key, entries in found.items()})
        return found

    return read


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.text(max_size=3), VALUES, max_size=3),
    st.lists(VALUES, max_size=5),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.integers(1, 40),
)
def test_entries_are_those_of_pythons_json_wherever_the_window_ends(
    written, monkeypatch, other, entries, indent, ascii, window
):
    monkeypatch.setattr(json_entries, "_CHUNK", window)
    content = {**other, "wanted": entries, "last": [1.5, 20]}
    text = json.dumps(content, indent=indent, ensure_ascii=ascii)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:  # a lone surrogate can be escaped but not encoded
        encoded = json.dumps(content, indent=indent).encode()
    assert written(encoded, "wanted", "last") == {"wanted": entries, "last": [1.5, 20]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_every_encoding_of_unicode_is_read(written, encoding):
    text = json.dumps({"images": [{"file_name": "Müller 写真.png"}]}, ensure_ascii=False)
    assert written(text.encode(encoding), "images") == {"images": [{"file_name": "Müller 写真.png"}]}


def test_nan_and_infinity_are_numbers_that_the_loaders_judge(written):
    (entry,) = written('{"a": [[NaN, -Infinity, 1e999]]}', "a")["a"]
    assert entry[0] != entry[0] and entry[1:] == [float("-inf"), float("inf")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        ('{"images": "Müller"}'.encode("cp1252"), "is not a text in utf-8 .*: save it as UTF-8"),
        ("写".encode("utf-16")[:-1] + b"\x00", "a.json is no"),
        (gzip.compress(b'{"a": []}', mtime=0), r"is compressed \(gzip\): unpack it"),
        (b"PK\x03\x04zip", r"is compressed \(zip\)"),
        ('{"a": [1, 2', "it ends in the middle: was it cut|it ends before"),
        ('{"a": [{"b": "text', "it ends in the middle: was it cut"),
        ('{"a": [1, 2], "b": {"c": ', "it ends in the middle: was it cut"),
        ('{"a": [1 2]}', r"expected '\]', found '2' \(character 9\)"),
        ('{"a": [1, ]}', "is not valid JSON"),
        ('{"a": [1],}', "is not valid JSON"),
        ("{'a': [1]}", "is not valid JSON"),
        ('{"a": [nan]}' + " " * 100, "is not valid JSON"),
        ('{"a": [' + "[" * 100_000 + "]" * 100_000 + "]}", "nested too deeply"),
        ('{"a": [' + "9" * 10_000 + "]}", "is not valid JSON: .*digits"),
        ('{"a": []}\n{"a": []}', "JSON lines"),
        ('{"a": []} rest', "it goes on after its end"),
        ('{"a": [1], "a": [2]}', "has 'a' twice"),
        ('{"a": {"1": {}}}', "'a' is a dict; it must be a list"),
        ('{"a": null}', "'a' is a NoneType; it must be a list"),
        ('{"b": [], "c": 1}', "is not a file of boxes: it has no 'a' at its top level"),
        ("[]", "is a list at its top level"),
        ('[{"image_id": 1, "score": 0.5}]', "is a list of results"),
        ("17", "expected '{', found '1'"),
        ('"images"', "expected '{'"),
    ],
)
def test_what_is_no_such_file_is_refused_with_its_name(written, content, message):
    with pytest.raises(ValueError, match=message) as error:
        written(content, "a")
    assert "a.json" in str(error.value)


def test_a_folder_and_a_file_that_is_not_there_are_refused(tmp_path):
    for path, message in ((tmp_path, "it is a folder"), (tmp_path / "no.json", "There is no annotation file")):
        with pytest.raises(FileNotFoundError, match=message):
            read_entries(path, "boxes", {"a": list})


def test_files_and_entries_have_a_limit(written, monkeypatch):
    monkeypatch.setattr(json_entries, "MAX_ENTRY_CHARS", 2**21)
    with pytest.raises(ValueError, match="longer than 2097152 characters"):
        written('{"a": ["' + "x" * 5 * 2**20 + '"]}', "a")
    monkeypatch.setattr(json_entries, "MAX_JSON_BYTES", 20)
    with pytest.raises(ValueError, match="has 28 bytes, but only up to 20 are read"):
        written('{"a": ["123456789", "1234"]}', "a")


def test_a_broken_file_is_refused_without_being_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(json_entries, "_CHUNK", 100)
    file = tmp_path / "a.json"
    file.write_text('{"a": [{"b" 1}' + ", 1" * 100_000)
    window = []
    more = json_entries._Text._read_more
    monkeypatch.setattr(json_entries._Text, "_read_more", lambda text: window.append(0) or more(text))
    with pytest.raises(ValueError, match="not valid JSON"):
        read_entries(file, "boxes", {"a": list})
    assert len(window) < 5
