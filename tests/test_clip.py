# SPDX-License-Identifier: Apache-2.0
"""A clip is saved whole or not at all, keeps its length in every format, and shows itself."""

import base64
import re

import av
import numpy as np
import pytest
from PIL import Image

from jaxvid.clip import Clip, aside
from jaxvid.io.video_file import read_metadata
from jaxvid.pipeline import Pipeline
from jaxvid.types import InputError

FPS = 16


@pytest.fixture(scope="module")
def clip():
    frames = np.zeros((37, 32, 48, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, i : i + 8] = (230, 40, 40)
        frame[i % 32] = (50, 90, 230)
    recipe = {"story": ((0.0, "a red bar"), (1.5, "a red bar goes on & on")), "seed": 7, "version": "x"}
    return Clip(frames, FPS, recipe=recipe)


def test_repr_says_what_it_is(clip):
    assert (
        repr(clip) == "Clip(37 frames, 2.31 s at 16 fps, 48x32, 'a red bar | a red bar goes on & on', seed 7)"
    )
    assert len(clip) == 37


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
)
def test_only_uint8_rgb_frames_are_a_clip(frames):
    with pytest.raises(InputError, match="uint8"):
        Clip(frames, FPS)


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_fps_is_positive(fps):
    with pytest.raises(InputError, match="fps"):
        Clip(np.zeros((1, 4, 4, 3), np.uint8), fps)


@pytest.mark.parametrize("kind", [".gif", ".webp"])
def test_animations_keep_their_running_time_and_recipe(clip, tmp_path, kind):
    path = clip.save(tmp_path / f"x{kind}")
    with Image.open(path) as image:
        assert image.size == (48, 32)
        total, worst = 0, 0
        for n in range(image.n_frames):
            image.seek(n)
            image.load()
            total += image.info["duration"]
            worst = max(worst, np.abs(np.asarray(image.convert("RGB"), int) - clip.frames[n]).mean())
        assert image.n_frames == len(clip)
    assert abs(total - 1000 * clip.seconds) <= 10
    assert worst < 8
    assert read_metadata(path)["seed"] == 7


def test_contact_sheet_shows_the_frames(clip, tmp_path):
    path = clip.contact_sheet(tmp_path / "x.png", every=0.5, columns=3)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 4 + 3 * (96 + 4)
    frame = clip.frames[int(0.25 * FPS)]
    # below the row's sentence
    np.testing.assert_array_equal(sheet[20 : 20 + 64, 4 : 4 + 96], frame.repeat(2, 0).repeat(2, 1))
    with_text, without = (
        sheet,
        np.asarray(Image.open(clip.contact_sheet(tmp_path / "y.png", every=0.5, columns=3, captions=False))),
    )
    assert with_text.shape[0] == without.shape[0] + 16 * 2  # one sentence in each row


@pytest.mark.parametrize("name", ["x.txt", "x", "x.avi"])
def test_unknown_endings_are_refused(clip, tmp_path, name):
    with pytest.raises(InputError, match="mp4"):
        clip.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_unwritable_output_is_one_line_and_leaves_nothing(clip, tmp_path):
    with pytest.raises(InputError, match="cannot write") as caught:
        clip.save(tmp_path / "missing" / "x.webp")
    assert "\n" not in str(caught.value)


def test_aside_keeps_the_old_file_when_the_writing_fails(tmp_path):
    path = tmp_path / "x.gif"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), aside(path) as part:
        part.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.gif"]


def test_mp4_and_notebook(clip, tmp_path):
    path = clip.save(tmp_path / "x.mp4")
    with av.open(str(path)) as box:
        assert sum(1 for _ in box.decode(video=0)) == len(clip)
    page = clip._repr_html_()
    data = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    assert data[4:8] == b"ftyp"
    assert "a red bar goes on &amp; on" in page


@pytest.mark.parametrize("path", [5, b"x.mp4", ["x.mp4"]])
def test_what_is_no_path_is_an_input_error(path):
    clip = Clip(np.zeros((2, 4, 4, 3), np.uint8), 8)
    for call in (clip.save, clip.contact_sheet, Pipeline.load):
        with pytest.raises(InputError, match=f"of type {type(path).__name__}; give a path"):
            call(path)
