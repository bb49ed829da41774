"""Answers are stored as tensors and plain values: they come back as they were, and nothing is unpickled."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vision_rl.cli.plain import load_plain, save_plain


def test_answers_of_every_task_come_back_as_they_were(tmp_path):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    maps = np.arange(6, dtype=np.int32).reshape(2, 3)
    boxes = {"boxes": np.array([[0.5, 1, 2, 3]]), "labels": [1], "scores": torch.tensor([0.25])}
    save_plain(
        [picture, (maps, [{"id": 1, "isthing": True}]), boxes, "a caption", None, np.float32(0.5)], tmp_path / "a.pt"
    )
    again = load_plain(tmp_path / "a.pt")
    assert np.array_equal(np.asarray(again[0]), np.asarray(picture))
    assert (
        again[1][0].dtype == np.int32
        and np.array_equal(again[1][0], maps)
        and again[1][1] == [{"id": 1, "isthing": True}]
    )
    assert np.array_equal(again[2]["boxes"], boxes["boxes"]) and again[2]["scores"].tolist() == [0.25]
    assert again[3:] == ["a caption", None, 0.5]


class Marks:
    def __reduce__(self):
        return open, ("marker", "w")


def test_a_file_of_answers_runs_nothing_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("torch.pt", lambda path: torch.save(Marks(), path)),
        ("pickle.pt", lambda path: path.write_bytes(pickle.dumps(Marks()))),
    ):
        write(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is not a file of answers; delete it"):
            load_plain(tmp_path / name)
    assert not (tmp_path / "marker").exists()
    with pytest.raises(TypeError, match="holds a Marks"):
        save_plain([Marks()], tmp_path / "a.pt")
