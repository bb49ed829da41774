"""Folders of photos, also nested. Grey and broken photos are found, once only, and by several processes."""

import datasets
import numpy as np
import pytest
from PIL import Image

from vision_rl.data.photos import load_photos
from vision_rl.tasks.colorization import grey_photos, without_grey


COLOUR, GREY = (200, 30, 30), (90, 90, 90)


@pytest.fixture
def folder(tmp_path):
    """A folder like ImageNet's, with a folder for each class."""
    for name, colour in (("n01/a.JPEG", COLOUR), ("n01/b.JPEG", GREY), ("n02/deep/c.png", COLOUR), ("d.jpg", COLOUR)):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(tmp_path / "train" / name)
    for name in ("readme.txt", "n01/._a.JPEG", ".git/x.png"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_text("no photo")
    return tmp_path / "train"


def names(rows, folder) -> list[str]:
    paths = rows.cast_column("image", datasets.Image(decode=False))["image"]
    return [path["path"].removeprefix(f"{folder}/") for path in paths]


def test_photos_are_found_in_nested_folders_and_in_order(folder):
    rows = load_photos(folder)
    assert names(rows, folder) == ["d.jpg", "n01/a.JPEG", "n01/b.JPEG", "n02/deep/c.png"]
    assert rows[3]["image"].size == (20, 20) and rows.cache_files == load_photos(folder).cache_files != []


def test_a_photo_that_comes_or_goes_is_noticed_in_nested_folders_too(folder):
    assert len(load_photos(folder)) == 4
    Image.new("RGB", (20, 20)).save(folder / "n02" / "deep" / "e.png")
    assert names(load_photos(folder), folder)[-1] == "n02/deep/e.png"
    (folder / "n01" / "a.JPEG").unlink()
    assert len(load_photos(folder)) == 4


def test_folders_without_photos_and_links_out_of_them_are_refused(folder, tmp_path, caplog):
    (folder / "n01" / "empty").mkdir()
    with pytest.raises(ValueError, match="There are no photos in"):
        load_photos(folder / "n01" / "empty")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_photos(folder / "no")
    Image.new("RGB", (20, 20)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="1 of 5 photos are symbolic links out of their folder"):
        load_photos(folder)
    assert len(load_photos(folder, follow_symlinks=True)) == 5
    assert len(load_photos(folder, on_bad_row="skip")) == 4 and "1 of 5 photos are symbolic links" in caplog.text


def test_only_files_that_are_decoded_as_pictures_are_photos_and_empty_ones_are_told(folder, caplog):
    for name in ("licence.pdf", "clip.mpg", "features.h5", "n01/wind.grib"):
        (folder / name).write_bytes(b"no photo")
    assert len(load_photos(folder)) == 4
    (folder / "empty.png").touch()
    with pytest.raises(ValueError, match=r"1 of 5 photos are empty files; the first: .*empty\.png"):
        load_photos(folder)
    assert len(load_photos(folder, on_bad_row="skip")) == 4 and "1 of 5 photos are empty files" in caplog.text


def test_grey_photos_are_left_out_and_looked_for_once(folder, monkeypatch):
    rows = load_photos(folder)
    assert names(without_grey(rows), folder) == ["d.jpg", "n01/a.JPEG", "n02/deep/c.png"]
    monkeypatch.setattr(grey_photos, "is_grey", None)  # a second search would fail
    assert names(without_grey(load_photos(folder)), folder) == ["d.jpg", "n01/a.JPEG", "n02/deep/c.png"]


def test_several_processes_find_the_same(folder):
    assert names(without_grey(load_photos(folder), num_proc=2), folder) == ["d.jpg", "n01/a.JPEG", "n02/deep/c.png"]


def test_photos_that_cannot_be_read_stop_the_search_or_are_left_out_and_either_way_counted(folder, caplog):
    (folder / "d.jpg").write_bytes(b"no photo")
    whole = (folder / "n02" / "deep" / "c.png").read_bytes()
    (folder / "n02" / "deep" / "c.png").write_bytes(whole[: len(whole) - 30])
    rows = load_photos(folder)
    with pytest.raises(
        ValueError, match=r"2 of 4 photos cannot be read; the first: row 0, .*d\.jpg \(.*; row 3, .*c\.png"
    ):
        without_grey(rows)
    assert names(without_grey(rows, on_bad_row="skip"), folder) == ["n01/a.JPEG"] and "2 of 4 photos" in caplog.text


def test_photos_in_memory_and_in_other_columns_are_looked_at_too():
    pixels = [np.full((8, 8, 3), colour, np.uint8) for colour in (COLOUR, GREY)]
    rows = datasets.Dataset.from_dict({"photo": [Image.fromarray(array) for array in pixels], "name": ["a", "b"]})
    assert without_grey(rows, image_column="photo")["name"][:] == ["a"]
