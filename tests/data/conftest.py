# SPDX-License-Identifier: Apache-2.0
"""Small videos made on the spot, whose frames say by their gray who they are."""

from __future__ import annotations

import fractions

import av
import numpy as np
import pytest


def write(
    path, frames, fps=10, *, times=None, codec="libx264", pix_fmt="yuv420p", gop=12, front=True, **options
):
    """Write frames uint8 [T, H, W, 3]; `times` in seconds for a variable rate; `front`: the index stands
    first."""
    flags = {"movflags": "+faststart"} if front and str(path).endswith(".mp4") else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=fractions.Fraction(fps))
        stream.codec_context.thread_count = 1
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        unit = fractions.Fraction(1, 1000) if times is not None else 1 / fractions.Fraction(fps)
        stream.time_base = stream.codec_context.time_base = unit
        for name in ("colorspace", "color_range"):
            if name in options:
                setattr(stream.codec_context, name, options.pop(name))
        if "sar" in options:
            stream.codec_context.sample_aspect_ratio = options.pop("sar")
        if codec == "mpeg4":
            stream.codec_context.qmin = stream.codec_context.qmax = 2
        if codec == "libx264":
            stream.options = {"crf": "6", **options}
        for n, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if pix_fmt.startswith("yuv"):
                frame = frame.reformat(format=pix_fmt, dst_colorspace=stream.codec_context.colorspace)
            frame.pts = n if times is None else round(times[n] * 1000)
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def grays(count, height=32, width=48, first=16, step=8):
    """Frames whose gray is `first + step * n`: `which` reads n back."""
    levels = (first + step * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def which(frames, first=16, step=8):
    """The numbers of the frames that `grays` made."""
    values = (np.asarray(frames, float).mean((1, 2, 3)) - first) / step
    assert np.abs(values - np.rint(values)).max() < 0.3
    return np.rint(values).astype(int).tolist()


def turn(path, degrees):
    """Give an mp4's track a display matrix that turns it clockwise, as a telephone does."""
    one = 1 << 16
    a, b, c, d = {
        90: (0, one, -one, 0),
        180: (-one, 0, 0, -one),
        270: (0, -one, one, 0),
        0: (one, 0, 0, one),
    }[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # a version 0 box: the matrix is 40 bytes behind its name
    assert data[at : at + 4] == one.to_bytes(4, "big")
    matrix = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)


@pytest.fixture
def make():
    """`make.write`, `make.grays`, `make.which`, `make.turn`."""
    import types

    return types.SimpleNamespace(write=write, grays=grays, which=which, turn=turn)
