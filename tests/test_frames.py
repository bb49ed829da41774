"""Boxes may be measured on the photo as stored or as turned: the right reading is chosen, and undone in results."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vision_rl.data.frames import Frames, choose_frames, inverse, to_annotations, to_picture, turned, turned_map
from vision_rl.data.image_files import Headers


ORIENTATIONS = range(1, 9)


def shown_by_pillow(picture: Image.Image, orientation: int) -> np.ndarray:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture.save(file, "PNG", exif=exif)
    return np.asarray(ImageOps.exif_transpose(Image.open(file)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@given(data=st.data())
def test_boxes_and_maps_turn_as_pillow_turns_pictures(orientation, data):
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    shown = shown_by_pillow(Image.fromarray(pixels), orientation)
    box = turned(np.array([[x0, y0, x1, y1]]), np.array([[width, height]]), np.array([orientation]))
    rows, columns = np.nonzero(shown)
    assert box.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    assert (turned_map(pixels, orientation) == shown).all()
    assert (turned_map(turned_map(pixels, orientation), inverse(orientation)) == pixels).all()


@given(st.sampled_from(ORIENTATIONS), st.integers(2, 900), st.integers(2, 900), st.floats(0.3, 3), st.data())
def test_results_go_back_to_where_the_file_measures(orientation, width, height, scale, data):
    """A box that is turned into the picture as it is shown, and back, is the same box."""
    corner = st.tuples(st.floats(0, width), st.floats(0, height))
    (xa, ya), (xb, yb) = data.draw(corner), data.draw(corner)
    box = np.array([[min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)]])
    side = (height, width) if orientation >= 5 else (width, height)
    shown = np.array([[max(1, round(scale * length)) for length in side]])
    frames = Frames(np.array([[width, height]]), np.array([orientation]))
    moved = to_picture(box, frames, shown)
    frame = {"size": [width, height], "orientation": orientation, "image_size": shown[0].tolist()}
    np.testing.assert_allclose(to_annotations(moved, frame), box, atol=1e-9 * max(width, height))
    assert (moved >= -1e-9).all() and (moved[:, 2:] <= shown + 1e-6).all()


def chosen(stored, json_size, boxes, orientation=1, frame="auto", count=1):
    """Size and orientation of the chosen frame of `count` pictures, whether the choice is open, and the messages."""
    headers = Headers(np.array([stored] * count), np.array([orientation] * count))
    corners = np.array(boxes, float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    image_of = np.arange(len(boxes)) % count
    frames, conflicts = choose_frames(headers, np.array([json_size] * count), corners, image_of, frame)
    told = " ".join(conflict.what for conflict in conflicts)
    return frames.size[0].tolist(), int(frames.orientation[0]), any(c.is_open for c in conflicts), told


UNKNOWN = (0, 0)


@pytest.mark.parametrize(
    ("stored", "turned", "json_size", "boxes", "size", "orientation", "is_open"),
    [
        # stored 100 x 40, turned by 90 degrees to 40 x 100
        ((100, 40), 6, UNKNOWN, [[5, 60, 30, 30]], [40, 100], 1, False),
        ((100, 40), 6, (100, 40), [[5, 60, 30, 30]], [40, 100], 1, False),
        ((100, 40), 6, (40, 100), [[5, 5, 30, 30]], [40, 100], 1, False),
        ((100, 40), 6, (100, 40), [[60, 5, 30, 30]], [100, 40], 6, False),
        ((100, 40), 6, UNKNOWN, [[60, 5, 30, 30]], [100, 40], 6, False),
        ((100, 40), 6, (40, 100), [[60, 5, 30, 30]], [100, 40], 6, False),
        ((100, 40), 6, (100, 40), [[5, 5, 30, 30]], [40, 100], 1, True),
        ((100, 40), 6, UNKNOWN, [[5, 5, 30, 30]], [40, 100], 1, True),
        ((100, 40), 6, UNKNOWN, [[60, 60, 30, 30]], [40, 100], 1, True),
        # upside down or square: the sizes tell nothing
        ((100, 40), 3, (100, 40), [[5, 5, 30, 30]], [100, 40], 1, False),
        ((40, 40), 8, UNKNOWN, [[5, 5, 30, 30]], [40, 40], 1, False),
        # resized
        ((200, 200), 1, (100, 100), [[50, 50, 50, 50]], [200, 200], 1, True),
        ((50, 40), 1, (100, 80), [[50, 30, 50, 50]], [100, 80], 1, False),
        ((50, 40), 1, (100, 80), [[5, 3, 5, 5]], [50, 40], 1, True),
        ((50, 40), 1, (100, 80), [[90, 70, 30, 30]], [50, 40], 1, True),
        ((384, 256), 1, (640, 427), [[300, 200, 300, 200]], [640, 427], 1, False),
        ((200, 200), 1, (100, 100), [[150, 150, 50, 50]], [200, 200], 1, False),
        ((100, 100), 1, (100, 101), [[5, 5, 30, 30]], [100, 100], 1, False),
        # stored on its side, and resized
        ((50, 20), 6, (100, 40), [[60, 5, 30, 30]], [100, 40], 6, False),
        ((50, 20), 6, (40, 100), [[5, 60, 30, 30]], [40, 100], 1, False),
        # cut, squashed or turned before: boxes are used only if they fit the file and not the JSON
        ((80, 80), 1, (100, 80), [[5, 5, 30, 30]], [80, 80], 1, True),
        ((80, 80), 1, (100, 80), [[85, 5, 10, 30]], [80, 80], 1, True),
        ((100, 40), 1, (40, 100), [[60, 5, 30, 30]], [100, 40], 1, False),
    ],
)
def test_the_reading_is_taken_that_alone_fits_the_boxes(stored, turned, json_size, boxes, size, orientation, is_open):
    assert chosen(stored, json_size, boxes, turned)[:3] == (size, orientation, is_open)


def test_what_is_chosen_is_said_where_sources_differ_and_else_not():
    assert chosen((100, 40), (100, 40), [[5, 5, 30, 30]])[3] == ""
    assert chosen((100, 40), UNKNOWN, [[5, 60, 30, 30]], orientation=6)[3] == ""
    assert "only as shown" in chosen((100, 40), (100, 40), [[5, 60, 30, 30]], orientation=6)[3]
    assert 'frame="shown" or frame="json"' in chosen((200, 200), (100, 100), [[5, 5, 5, 5]])[3]
    assert 'frame="stored" if that is wrong' in chosen((40, 40), UNKNOWN, [[5, 5, 5, 5]], orientation=3)[3]
    assert "neither as shown nor as stored" in chosen((100, 40), UNKNOWN, [[60, 60, 30, 30]], orientation=6)[3]


def test_the_pictures_of_a_file_are_judged_together():
    """A tool treats all pictures alike: a box that tells decides for the others. One wrong box in two hundred may pass."""
    small, telling, wrong = [5, 3, 5, 5], [60, 50, 30, 20], [90, 70, 60, 60]
    assert chosen((50, 40), (100, 80), [small, telling], count=2)[:3] == ([100, 80], 1, False)
    assert chosen((50, 40), (100, 80), [telling] * 199 + [wrong], count=2)[:3] == ([100, 80], 1, False)
    assert chosen((50, 40), (100, 80), [telling] * 19 + [wrong], count=2)[2]


@pytest.mark.parametrize(
    ("frame", "size", "orientation"), [("shown", [40, 100], 1), ("stored", [100, 40], 6), ("json", [200, 80], 6)]
)
def test_what_is_said_to_be_so_is_believed(frame, size, orientation):
    assert chosen((100, 40), (200, 80), [[5, 5, 5, 5]], 6, frame) == (size, orientation, False, "")
    with pytest.raises(ValueError, match="frame must be one of"):
        chosen((100, 40), (100, 40), [[5, 5, 5, 5]], 6, "file")
