# SPDX-License-Identifier: Apache-2.0
"""What is written is what was given: count, size, colours, tags, metadata; and nothing half-done stays."""

from __future__ import annotations

import errno
import itertools
import os

import av
import numpy as np
import pytest
from PIL import Image

from jaxvid.io.video_file import VideoWriter, read_metadata, save_video
from jaxvid.types import InputError

COLOURS = [
    (230, 40, 40), (50, 180, 75), (50, 90, 230), (245, 225, 50), (240, 70, 200), (70, 220, 230), (245, 140, 30),
    (130, 50, 180), (0, 0, 0), (128, 128, 128), (255, 255, 255),
]  # fmt: skip
STORY = {"seed": 7, "prompt": 'a "red" żółć 日本 {x} \n', "story": [[0, "a"], [1.5, "b"]], "version": "0.1"}


def noise(frames, height, width):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("fps,frames,chunks", [(16, 23, 5), (29.97, 10, 10), (24, 1, 1)])
def test_count_size_rate_and_tags(tmp_path, fps, frames, chunks):
    path = tmp_path / "a b é.mp4"
    x = noise(frames, 34, 66)
    with VideoWriter(path, fps, 34, 66) as writer:
        for start in range(0, frames, chunks):
            writer.append(x[start : start + chunks])
            assert not path.exists()
        assert writer.frames == frames
    assert os.listdir(tmp_path) == [path.name]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 66, 34)
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (
            1,
            1,
            1,
            1,
        )
        assert float(stream.average_rate) == pytest.approx(fps, rel=1e-4)
        assert stream.frames == frames
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
        np.testing.assert_allclose(times, np.arange(frames) / fps, atol=1e-3)
        assert float(stream.duration * stream.time_base) == pytest.approx(frames / fps, abs=1e-3)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index stands in front


def test_solid_colours_survive(tmp_path):
    x = np.repeat(np.asarray(COLOURS, np.uint8), 16, 0)[None, None].repeat(3, 0).repeat(32, 1)
    save_video(tmp_path / "a.mp4", x, 8)
    back = decode(tmp_path / "a.mp4")
    middles = np.arange(len(COLOURS)) * 16 + 8
    error = np.abs(back[:, 8:24, middles].astype(int) - x[:, 8:24, middles])
    assert error.max() <= 3


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp"])
def test_metadata_round_trip(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    save_video(path, noise(3, 16, 16), 8, STORY)
    assert read_metadata(path) == STORY
    save_video(path, noise(3, 16, 16), 8)
    assert read_metadata(path) == {}
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animations(tmp_path, suffix):
    colours = np.asarray(COLOURS, np.uint8)
    x = np.broadcast_to(colours[:, None, None], (len(colours), 20, 30, 3))
    save_video(tmp_path / f"a.{suffix}", x, 16)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.n_frames == len(x) and image.size == (30, 20)
        total = 0
        for n in range(image.n_frames):
            image.seek(n)
            pixels = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(pixels - x[n]).max() <= 6
            total += image.info["duration"]
    assert total == pytest.approx(len(x) * 1000 / 16, abs=6)


@pytest.mark.parametrize("size", [(33, 64), (64, 1), (7, 7)])
def test_odd_sizes_are_refused_with_the_nearest_even(tmp_path, size):
    with pytest.raises(InputError, match="even sizes; use") as error:
        VideoWriter(tmp_path / "a.mp4", 8, *size)
    height, width = map(int, str(error.value).split(" use ")[1].split("x"))
    assert abs(height - size[0]) <= 1 and abs(width - size[1]) <= 1
    VideoWriter(tmp_path / "a.mp4", 8, height, width).discard()
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 8, 16, 16) as writer:
        writer.append(noise(3, 16, 16))
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="no frames"), VideoWriter(path, 8, 16, 16):
        pass
    with pytest.raises(InputError, match="were appended"), VideoWriter(path, 8, 16, 16) as writer:
        writer.append(noise(3, 16, 18))
    with pytest.raises(InputError, match="were appended"), VideoWriter(path, 8, 16, 16) as writer:
        writer.append(noise(3, 16, 16) / 255)
    with pytest.raises(InputError, match="is closed"):
        writer.append(noise(1, 16, 16))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.mp4"]
    with VideoWriter(path, 8, 16, 16) as writer:
        writer.append(noise(3, 16, 16))
    assert len(decode(path)) == 3


def test_an_unwritable_place_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dir.mp4").mkdir()
    for path, words in (
        (tmp_path / "none" / "a.mp4", "make its directory"),
        (tmp_path / "file" / "a.mp4", "inside a directory"),
        (tmp_path / "dir.mp4", "is a directory"),
        (tmp_path / "a.avi", "rename"),
        (tmp_path / "a", "rename"),
        (tmp_path / ("n" * 300 + ".mp4"), None),
    ):
        with pytest.raises(InputError, match=words) as error:
            VideoWriter(path, 8, 16, 16)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    for fps in (0, -1, float("nan"), 1e9):
        with pytest.raises(InputError, match="fps"):
            VideoWriter(tmp_path / "a.mp4", fps, 16, 16)
    with pytest.raises(InputError, match="rename"):
        save_video(tmp_path / "a.png", noise(1, 16, 16), 8)
    assert sorted(os.listdir(tmp_path)) == ["dir.mp4", "file"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, run_python):
    out = run_python(
        "import os, resource, signal, numpy as np\n"
        "from jaxvid.io.video_file import VideoWriter, save_video\n"
        "from jaxvid.types import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "x = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)\n"
        f'for name in ("{tmp_path}/a.mp4", "{tmp_path}/a.gif"):\n'
        "    try:\n"
        "        save_video(name, x, 16)\n"
        "    except InputError as error:\n"
        "        print(error)\n"
        f'print(os.listdir("{tmp_path}"))\n'
    )
    lines = out.strip().splitlines()
    assert len(lines) == 3 and lines[2] == "[]"
    assert all(line.startswith("cannot write") and os.strerror(errno.EFBIG) in line for line in lines[:2])


def test_foreign_files_have_no_metadata(tmp_path):
    Image.fromarray(noise(1, 8, 8)[0]).save(tmp_path / "a.gif")
    assert read_metadata(tmp_path / "a.gif") == {}
    (tmp_path / "text.mp4").write_text("hello, I am a text")
    for name in ("text.mp4", "none.mp4"):
        with pytest.raises(InputError, match=name):
            read_metadata(tmp_path / name)
    save_video(tmp_path / "a.mp4", noise(3, 16, 16), 8)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:60])
    assert read_metadata(tmp_path / "cut.mp4") == {}


def test_the_same_frames_give_the_same_file(tmp_path):
    x = noise(9, 16, 16)
    for name, chunk in itertools.product("ab", (4, 9)):
        with VideoWriter(tmp_path / f"{name}{chunk}.mp4", 8, 16, 16, STORY) as writer:
            for start in range(0, 9, chunk):
                writer.append(x[start : start + chunk])
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
