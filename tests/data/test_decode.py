# SPDX-License-Identifier: Apache-2.0
"""Reading videos: the right frame at every time, upright, in its colours; and one line for whatever is
broken."""

from __future__ import annotations

import fractions
import math
import os
import time

import av
import numpy as np
import pytest

from jaxvid.data.decode import Limits, probe, read_video
from jaxvid.types import InputError


def expected(times, fps, count, start=0.0):
    """The last frame at or before each time, by the definition."""
    return [max(i for i, sec in enumerate(times) if sec <= start + k / fps + 1e-9) for k in range(count)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("fps", [10, 16, 4, 25, 7.5])
def test_the_frame_at_a_time_is_the_last_one_shown(tmp_path, make, fps, suffix):
    codec = "mpeg4" if suffix == "avi" else "libx264"  # avi has no times for frames out of order
    path = make.write(tmp_path / f"a.{suffix}", make.grays(24), 10, codec=codec)
    x, rate = read_video(path, fps=fps)
    count = math.ceil(2.4 * fps - 1e-3)  # every time before the end
    assert rate == fps and len(x) == count
    assert make.which(x) == expected(np.arange(24) / 10, fps, count)
    for start, frames in ((0.55, 5), (1.3, 3), (2.3, 1), (0.0, 2)):
        part, _ = read_video(path, fps=fps, start=start, frames=frames)
        want = min(frames, max(1, math.ceil((2.4 - start) * fps - 1e-6)))
        assert make.which(part) == expected(np.arange(24) / 10, fps, want, start)


def test_its_own_rate_and_length(tmp_path, make):
    path = make.write(tmp_path / "a.mp4", make.grays(13), 12)
    x, rate = read_video(path)
    assert rate == 12 and make.which(x) == list(range(13))
    info = probe(path)
    assert (info.height, info.width, info.fps, info.codec, info.rotation) == (32, 48, 12, "h264", 0)
    assert info.seconds == pytest.approx(13 / 12, abs=1e-3) and info.frames() == 13
    for fps in (16, 12, 5):
        assert info.frames(fps) == len(read_video(path, fps=fps)[0])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate(tmp_path, make, suffix):
    times = [0, 0.05, 0.5, 0.55, 0.6, 1.5, 1.9, 2.0, 3.0]
    path = make.write(tmp_path / f"a.{suffix}", make.grays(9), 10, times=times)
    x, _ = read_video(path, fps=8, frames=25)
    assert make.which(x[:24]) == expected(times, 8, 24)
    for start in (0.4, 1.0, 1.75):
        part, _ = read_video(path, fps=10, start=start, frames=8)
        assert make.which(part) == expected(times, 10, 8, start)


def test_times_count_from_the_first_frame(tmp_path, make):
    times = [5 + n / 10 for n in range(12)]
    path = make.write(tmp_path / "a.mkv", make.grays(12), 10, times=times)
    x, _ = read_video(path, fps=5, frames=4)
    assert make.which(x) == [0, 2, 4, 6]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_undone(tmp_path, make, degrees):
    marked = np.zeros((6, 32, 64, 3), np.uint8)
    marked[:, :16, :16] = (255, 0, 0)  # top left
    marked[:, 16:, :16] = (0, 0, 255)  # bottom left
    path = make.write(tmp_path / "a.mp4", marked)
    make.turn(path, degrees)
    info = probe(path)
    x, _ = read_video(path)
    shown = marked[0]
    for _ in range(degrees // 90):  # clockwise on the screen: columns become rows, read from the bottom
        shown = shown.transpose(1, 0, 2)[:, ::-1]
    assert (info.height, info.width) == shown.shape[:2] == x.shape[1:3]
    assert np.abs(x[3, 4:-4:8, 4:-4:8].astype(int) - shown[4:-4:8, 4:-4:8]).max() < 24
    small, _ = read_video(path, size=(16, 16))
    assert small.shape == (6, 16, 16, 3)


@pytest.mark.parametrize('pix_fmt,codec', [
    ('yuv420p10le', 'libx264'), ('yuv444p', 'libx264'), ('yuv422p10le', 'libx264'), ('yuvj420p', 'mjpeg'),
    ('bgr0', 'ffv1'), ('gray', 'ffv1'), ('rgb24', 'png'), ('yuv420p', 'mpeg4'), ('yuv420p', 'libvpx-vp9'),
])  # fmt: skip
def test_pixel_formats_and_codecs(tmp_path, make, pix_fmt, codec):
    suffix = "avi" if codec == "png" else "mkv"
    path = make.write(tmp_path / f"a.{suffix}", make.grays(8, step=24), codec=codec, pix_fmt=pix_fmt)
    x, _ = read_video(path, fps=10)
    assert x.dtype == np.uint8
    assert make.which(x, step=24) == list(range(8))


@pytest.mark.parametrize("colorspace", [1, 5, 6, 2])
@pytest.mark.parametrize("full", [False, True])
def test_colours_follow_the_tags(tmp_path, make, colorspace, full):
    colours = np.asarray([(230, 40, 40), (50, 180, 75), (50, 90, 230), (70, 220, 230)], np.uint8)
    red, blue = {1: (0.2126, 0.0722)}.get(colorspace, (0.299, 0.114))  # untagged and small: BT.601
    rgb = colours / 255
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    cb, cr = (rgb[:, 2] - luma) / (2 - 2 * blue), (rgb[:, 0] - luma) / (2 - 2 * red)
    planes = (
        [255 * luma, 255 * cb + 128, 255 * cr + 128]
        if full
        else [219 * luma + 16, 224 * cb + 128, 224 * cr + 128]
    )
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 16, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, 1 + full
        yuv = np.rint(np.stack(planes)).astype(np.uint8).repeat(16, 1)[:, None].repeat(16, 1)
        for n in range(3):
            frame = av.VideoFrame.from_ndarray(yuv, format="yuv444p")
            frame.pts, frame.colorspace, frame.color_range = n, colorspace, 1 + full
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    x, _ = read_video(tmp_path / "a.mkv")
    assert np.abs(x[0, 8, 8::16].astype(int) - colours).max() <= 2


def test_pixels_that_are_not_square(tmp_path, make):
    path = make.write(tmp_path / "a.mp4", make.grays(6), sar=fractions.Fraction(2))
    info = probe(path)
    assert (info.height, info.width) == (32, 96)
    assert read_video(path)[0].shape == (6, 32, 96, 3)
    disc = np.zeros((4, 64, 64, 3), np.uint8)
    rows, columns = np.mgrid[:64, :64] - 31.5
    disc[:, (rows / 24) ** 2 + (columns / 12) ** 2 < 1] = 255  # shown twice as wide: a round disc
    path = make.write(tmp_path / "b.mp4", disc, sar=fractions.Fraction(2))
    x = read_video(path, size=(64, 64))[0][0, ..., 0] > 127
    assert abs(x.any(0).sum() - x.any(1).sum()) <= 2 and abs(x.any(0).sum() - 48) <= 2


def test_resize_and_centre_crop(tmp_path, make):
    wide = np.zeros((4, 40, 120, 3), np.uint8)
    wide[:, :, 40:80] = (0, 255, 0)
    x = read_video(make.write(tmp_path / "a.mp4", wide), size=(20, 20))[0]
    assert x.shape == (4, 20, 20, 3)
    assert (x[..., 1] > 200)[:, :, 2:-2].all()
    odd = read_video(make.write(tmp_path / "b.mkv", make.grays(4, 33, 47), codec="ffv1", pix_fmt="bgr0"))[0]
    assert odd.shape == (4, 33, 47, 3)
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255  # finer than the small picture can hold: it must become gray, not stripes
    small = read_video(make.write(tmp_path / "c.mkv", stripes, codec="ffv1", pix_fmt="bgr0"), size=(16, 16))[
        0
    ]
    assert np.abs(small.astype(int) - 127)[:, :, 2:-2].max() < 8


def broken(make, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 64, 3), np.uint8)
    front = make.write(tmp_path / "front.mp4", noise).read_bytes()
    last = make.write(tmp_path / "last.mp4", noise, front=False).read_bytes()
    mkv = make.write(tmp_path / "whole.mkv", noise).read_bytes()
    yield "missing.mp4", None
    yield "empty.mp4", b""
    yield "text.mp4", b"This is a text that somebody renamed.\n" * 10
    yield "playlist.mp4", b"#EXTM3U\n#EXTINF:10,\nfront.mp4\n"
    yield "concat.mp4", b"ffconcat version 1.0\nfile 'front.mp4'\n"
    yield "image.mp4", b"\x89PNG\r\n\x1a\n" + bytes(100)
    yield "head.mp4", b"\x00\x00\x00\x20ftypisom" + bytes(200)
    for part in (20, 50, 90):
        yield f"front{part}.mp4", front[: len(front) * part // 100]
        yield f"last{part}.mp4", last[: len(last) * part // 100]
        yield f"mkv{part}.mkv", mkv[: len(mkv) * part // 100]


def test_broken_files_are_one_line(tmp_path, make):
    count = 0
    for name, data in broken(make, tmp_path):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as error:
            read_video(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value), error.value
        count += 1
    assert count == 16
    assert len(read_video(tmp_path / "front50.mp4", frames=10)[0]) == 10  # what is there can be read


def test_odd_places(tmp_path, make):
    os.mkfifo(tmp_path / "pipe.mp4")
    start = time.monotonic()
    for path in (
        tmp_path / "pipe.mp4",
        tmp_path,
        "/dev/zero",
        "http://localhost/a.mp4",
        "concat:a.mp4|b.mp4",
    ):
        with pytest.raises(InputError, match="regular file|does not exist"):
            read_video(path)
    assert time.monotonic() - start < 5


def test_sound_alone_and_no_frames(tmp_path):
    for name, kind in (("sound.mp4", "aac"), ("none.mkv", "libx264")):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(kind, rate=44100 if kind == "aac" else 10)
            if kind == "aac":
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((1, 4096), np.float32), format="fltp", layout="mono"
                )
                frame.sample_rate = 44100
                container.mux(stream.encode(frame))
            else:
                stream.width = stream.height = 32
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(None))
        for read in (read_video, probe):
            with pytest.raises(InputError, match=name):
                read(tmp_path / name)


def test_limits(tmp_path, make):
    path = make.write(tmp_path / "a.mp4", make.grays(24, 64, 96))
    for limits, words in (
        (Limits(pixels=1000), "96 x 64"),
        (Limits(seconds=2), "2 s long"),
        (Limits(bytes=100_000), "ask for fewer"),
        (Limits(wall=-1), "to decode"),
    ):
        with pytest.raises(InputError, match=words):
            read_video(path, limits=limits)


def test_a_change_of_size_is_refused(tmp_path, make):
    small = make.write(tmp_path / "a.mkv", make.grays(6, 32, 32), codec="mjpeg", pix_fmt="yuvj420p")
    large = make.write(tmp_path / "b.mkv", make.grays(6, 64, 64), codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(tmp_path / "c.mkv"), "w") as out, av.open(str(small)) as one, av.open(str(large)) as two:
        stream = out.add_stream_from_template(one.streams.video[0])
        for place, source in enumerate((one, two)):
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.pts += place * 600
                    packet.dts += place * 600
                    packet.stream = stream
                    out.mux(packet)
    assert len(read_video(tmp_path / "c.mkv", frames=4)[0]) == 4
    with pytest.raises(InputError, match="changes its size"):
        read_video(tmp_path / "c.mkv")


def test_bad_requests(tmp_path, make):
    path = make.write(tmp_path / "a.mp4", make.grays(6))
    for words, options in (
        ("fps", {"fps": 0}),
        ("fps", {"fps": float("nan")}),
        ("start", {"start": -1}),
        ("start", {"frames": 0}),
        ("start", {"start": 9.0}),
        ("size", {"size": (65536, 65536)}),
        ("size", {"size": (0, 64)}),
    ):
        with pytest.raises(InputError, match=words):
            read_video(path, **options)
