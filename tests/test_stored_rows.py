"""Annotations are read once. Later starts and other processes find the rows on disk, until a file changes."""

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import datasets
import pyarrow as pa
import pytest
from PIL import Image

from vision_rl.data import stored_rows
from vision_rl.data.coco import category_ids, load_coco_detection


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vision_rl"


@pytest.fixture
def folder(tmp_path, cache):
    """Two images and a file with two boxes, one of which leaves its image."""
    (tmp_path / "images").mkdir()
    for name in ("0.png", "1.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / name)
    write(tmp_path, [[1, 1, 9, 9], [60, 1, 9, 9]])
    return tmp_path / "images", tmp_path / "a.json"


def write(folder, boxes):
    content = {
        "images": [{"id": index, "file_name": f"{index}.png"} for index in range(2)],
        "annotations": [{"id": i, "image_id": 0, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "x"}],
    }
    (folder / "a.json").write_text(json.dumps(content))


@pytest.fixture
def num_read(monkeypatch):
    """A function that says how often a JSON has been read."""
    from vision_rl.data import coco_boxes, coco_categories

    calls = []
    for module in (coco_boxes, coco_categories):
        read = module.read_entries
        monkeypatch.setattr(module, "read_entries", lambda *args, read=read: calls.append(args) or read(*args))
    return lambda: len(calls)


def test_the_json_is_read_once_and_what_is_wrong_is_told_at_every_start(folder, num_read, caplog):
    first = load_coco_detection(*folder)
    again = load_coco_detection(*folder)
    assert num_read() == 1 and again.cache_files == first.cache_files != []
    assert again[:]["objects"] == first[:]["objects"] and again.features == first.features
    assert category_ids(folder[1]) == [1] and num_read() == 1
    assert [record.message.count("1 of 2 boxes reach out") for record in caplog.records] == [1, 1]


def test_it_is_read_again_when_it_or_an_image_has_changed(folder, num_read):
    images, annotations = folder
    rows = load_coco_detection(*folder)
    assert rows[0]["objects"]["bbox"] == [[1, 1, 9, 9], [60, 1, 4, 9]]
    write(annotations.parent, [[2, 2, 20, 9]])
    assert load_coco_detection(*folder)[0]["objects"]["bbox"] == [[2, 2, 20, 9]] and num_read() == 2
    Image.new("RGB", (10, 48)).save(images / "0.png")
    assert load_coco_detection(*folder)[0]["objects"]["bbox"] == [[2, 2, 8, 9]] and num_read() == 3
    (images / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are not there; the first: .*1\.png"):
        load_coco_detection(*folder)
    assert rows[0]["objects"]["bbox"] == [[1, 1, 9, 9], [60, 1, 4, 9]]  # rows that were loaded before keep their boxes


def test_an_image_that_was_missing_and_is_there_now_is_a_row(folder):
    images, _ = folder
    kept = (images / "1.png").read_bytes()
    (images / "1.png").unlink()
    for _ in range(2):
        assert load_coco_detection(*folder, on_bad_row="skip")["image_id"][:] == [0]
    (images / "1.png").write_bytes(kept)
    assert load_coco_detection(*folder, on_bad_row="skip")["image_id"][:] == [0, 1]


def test_other_options_are_other_rows(folder, num_read):
    load_coco_detection(*folder)
    load_coco_detection(*folder, frame="shown")
    load_coco_detection(*folder, on_bad_row="skip")
    assert num_read() == 3


def without_batches(whole: bytes) -> bytes:
    """The stream cut off after its schema, which Arrow takes for a stream without rows."""
    stream = pa.ipc.open_stream(whole)
    buffer = pa.BufferOutputStream()
    pa.ipc.new_stream(buffer, stream.schema).close()
    return buffer.getvalue().to_pybytes()


def test_a_damaged_store_is_made_anew(folder, cache, num_read):
    load_coco_detection(*folder)
    for content in (
        lambda whole: b"",
        lambda whole: whole[:500],
        lambda whole: whole[:-2000],
        lambda whole: b"x" * 999,
        without_batches,
    ):
        (file,) = cache.glob("boxes-*.arrow")
        whole, before = file.read_bytes(), num_read()
        file.write_bytes(content(whole))
        assert load_coco_detection(*folder)[0]["objects"]["bbox"] == [[1, 1, 9, 9], [60, 1, 4, 9]]
        assert num_read() == before + 1 and file.stat().st_size == len(whole)


def test_nothing_half_written_is_left_where_storing_fails(folder, cache, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored_rows.os, "replace", full)
    rows = load_coco_detection(*folder)
    assert rows[0]["objects"]["bbox"] == [[1, 1, 9, 9], [60, 1, 4, 9]] and not rows.cache_files
    assert "No space left on device" in caplog.text and "Set HF_DATASETS_CACHE to another folder" in caplog.text
    assert not [file for file in cache.iterdir() if file.suffix != ".lock"]


def test_where_nothing_can_be_written_rows_are_in_memory(folder, monkeypatch, caplog):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/no/such/folder")
    rows = load_coco_detection(*folder)
    assert len(rows) == 2 and rows[1]["image"].size == (64, 48) and "cannot be stored" in caplog.text


def test_many_at_once_read_it_once(folder, num_read):
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda _: load_coco_detection(*folder), range(4)))
    assert num_read() == 1 and all(len(one) == 2 for one in rows)


def test_another_process_finds_the_rows_and_what_was_made_of_them(folder, cache):
    script = (
        "import sys, datasets; from vision_rl.data.coco import load_coco_detection; datasets.disable_progress_bars()\n"
        "rows = load_coco_detection(*sys.argv[1:]).filter(lambda i: i == 1, input_columns='image_id')\n"
        "print(len(rows), rows.cache_files[0]['filename'], rows._fingerprint)"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache.parent)}
    command = [sys.executable, "-c", script, *map(str, folder)]
    printed = [subprocess.check_output(command, env=environment, text=True) for _ in range(2)]
    assert printed[0] == printed[1] and printed[0].startswith("1 ")


def test_it_is_made_of_files_of_this_moment_also_with_a_shuffle_and_a_selection(folder):
    rows = load_coco_detection(*folder).shuffle(seed=0).select([0])
    assert rows[0]["image"].size == (64, 48)


def test_logging_names_the_file(folder, caplog):
    with caplog.at_level(logging.WARNING):
        load_coco_detection(*folder)
    assert caplog.records[0].message.startswith(str(folder[1]))
