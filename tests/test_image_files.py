"""Image files are found only inside of their folder, and their headers are read without decoding the pixels."""

import os
import struct
import zlib

import pytest
from PIL import Image, ImageOps

from vision_rl.data.bad_rows import BadRows
from vision_rl.data.image_files import find_images, read_headers, state_of


@pytest.fixture
def bad_rows():
    return BadRows("a.json", "skip")


def told(bad_rows) -> str:
    return " ".join(bad_rows.settle({"images": 9}))


@pytest.fixture
def folder(tmp_path):
    """The folder `images/` with pictures. Beside it lies a picture that no name may reach."""
    for name in ("images/1.png", "images/a b&c.png", "images/train/2.png", "secret.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("1.png", "1.png"),
        ("./train/../1.png", "1.png"),
        ("train/2.png", "train/2.png"),
        ("train\\2.png", "train/2.png"),
        ("data/images/train/2.png", "train/2.png"),
        ("C:\\data\\images\\train\\2.png", "train/2.png"),
        ("http://images.cocodataset.org/val2017/1.png", "1.png"),
        ("a%20b%26c.png", "a b&c.png"),
        ("a b&c.png", "a b&c.png"),
    ],
)
def test_a_file_is_found_as_tools_write_its_name(folder, bad_rows, name, found):
    assert find_images(folder, [name], bad_rows) == [str(folder / found)] and told(bad_rows) == ""


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "train/../../secret.png",
        "..\\secret.png",
        "%2e%2e/secret.png",
        "{tmp}/secret.png",
        "/etc/hostname",
        "..",
    ],
)
def test_no_name_leaves_the_folder(folder, bad_rows, name):
    assert find_images(folder, [name.format(tmp=folder.parent)], bad_rows) == [None]
    assert "1 of 9 images have a file name that leads out of its folder" in told(bad_rows)


def test_a_path_from_the_root_is_good_inside_the_folder(folder, bad_rows):
    assert find_images(folder, [str(folder / "1.png")], bad_rows) == [str(folder / "1.png")]


@pytest.mark.parametrize("name", ["no.png", "train", "a\0.png", "\ud800.png", "x" * 5000, "train/"])
def test_what_is_no_file_is_not_there(folder, bad_rows, name):
    assert find_images(folder, [name], bad_rows) == [None] and "1 of 9 images are not there" in told(bad_rows)


def test_links_out_of_the_folder_are_followed_only_where_that_is_allowed(folder, tmp_path, bad_rows):
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "elsewhere" / "3.png")
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    os.symlink("1.png", folder / "inner.png")
    os.symlink(folder, tmp_path / "also_images")
    names = ["link.png", "linked/3.png", "inner.png"]
    assert find_images(folder, names, bad_rows) == [None, None, str(folder / "inner.png")]
    assert "2 of 9 images are symbolic links out of their folder (follow_symlinks=True allows them)" in told(bad_rows)
    allowed = find_images(folder, names, BadRows("a.json", "raise"), follow_symlinks=True)
    assert allowed == [str(folder / name) for name in names]
    assert find_images(tmp_path / "also_images", ["1.png"], bad_rows) == [str(tmp_path / "also_images" / "1.png")]


def test_two_images_are_not_one_file_once_folders_are_left_out(folder, bad_rows):
    found = find_images(folder, ["a/1.png", "b/1.png", "c/train/2.png"], bad_rows)
    assert found == [None, None, str(folder / "train" / "2.png")]
    assert "2 of 9 images do not exist under their name" in told(bad_rows)


def test_a_file_of_two_images_is_neithers_where_each_must_have_its_own(folder, bad_rows):
    names = ["1.png", "./1.png", "train/2.png", "a/1.png", "train\\2.png", "a b&c.png"]
    each = [str(folder / name) for name in ("1.png", "1.png", "train/2.png", "train/2.png")]
    shared = find_images(folder, names, BadRows("a.json", "skip"))
    assert shared == [*each[:3], None, each[3], str(folder / "a b&c.png")]
    assert find_images(folder, names, bad_rows, one_each=True) == [*[None] * 5, str(folder / "a b&c.png")]
    sentences = told(bad_rows)
    assert "4 of 9 images share their file with another" in sentences and f"'./1.png' is {each[0]}" in sentences
    assert "1 of 9 images do not exist under their name" in sentences
    assert find_images(folder, ["1.png", "a/1.png"], bad_rows, one_each=True) == [each[0], None]


def test_a_folder_that_is_not_there_is_said_at_once(tmp_path, bad_rows):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        find_images(tmp_path / "no", ["1.png"], bad_rows)


# Headers


def with_text_behind_the_pixels(file) -> None:
    """Moves the EXIF of a PNG behind its pixels."""
    content = file.read_bytes()
    start = content.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", content[start : start + 4])[0]
    chunk, rest = content[start : start + length], content[:start] + content[start + length :]
    end = rest.index(b"IEND") - 4
    file.write_bytes(rest[:end] + chunk + rest[end:])


@pytest.mark.parametrize("orientation", [None, 0, 1, 3, 6, 8, 9])
@pytest.mark.parametrize("kind", ["jpg", "png", "late.png", "webp", "tif"])
def test_a_header_tells_the_size_that_the_decoded_picture_has(tmp_path, bad_rows, orientation, kind):
    file, exif = tmp_path / f"a.{kind}", Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(file, exif=exif)
    if kind == "late.png" and orientation is not None:
        with_text_behind_the_pixels(file)
    headers = read_headers([str(file), None], bad_rows)
    assert headers.sizes.tolist() == [[30, 20], [0, 0]] and headers.readable.tolist() == [True, False]
    with Image.open(file) as picture:
        picture.load()
        assert headers.shown[0].tolist() == list(ImageOps.exif_transpose(picture).size)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header says that it has `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify image file"),
        (b"not a picture", "cannot identify image file"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "a.png"),
        (b"\xff\xd8\xff\xe1\x00", "a.png"),
        (bomb(60_000), "PIL.Image.MAX_IMAGE_PIXELS is the limit"),
    ],
)
def test_what_is_no_picture_and_what_is_a_bomb_is_told_with_its_file(tmp_path, bad_rows, content, message):
    (tmp_path / "a.png").write_bytes(content)
    assert not read_headers([str(tmp_path / "a.png")], bad_rows).readable.any()
    sentence = told(bad_rows)
    assert "1 of 9 images cannot be read" in sentence and "a.png" in sentence and message in sentence


def test_the_state_of_files_changes_with_any_of_them(tmp_path):
    paths = [str(tmp_path / name) for name in ("a", "b")]
    states = [state_of(paths)]
    for step in (
        lambda: (tmp_path / "a").write_text("1"),
        lambda: (tmp_path / "a").write_text("22"),
        lambda: os.utime(tmp_path / "a", ns=(1, 1)),
        lambda: (tmp_path / "b").write_text("1"),
        lambda: (tmp_path / "a").unlink(),
    ):
        step()
        states.append(state_of(paths))
    assert len(set(states)) == len(states) and state_of(paths) == states[-1]
