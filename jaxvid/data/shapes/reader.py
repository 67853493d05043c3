# SPDX-License-Identifier: Apache-2.0
"""The reader: what a video of the shapes world shows, second by second, found without any network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxvid.data.shapes.detect import AREAS, FOLDS, background, blobs
from jaxvid.data.shapes.follow import Track, follow, motion
from jaxvid.data.shapes.shape import Window
from jaxvid.data.shapes.world import BACKGROUNDS, PALETTE, SIZES, WORLD
from jaxvid.types import InputError

WINDOW = 3.0  # seconds over which a motion and a size are read
SETTLE = 0.5  # seconds after a change that are left out of a window: things glide to their new ways then
BIG = math.sqrt(SIZES["small"] * SIZES["large"])  # mean radius from which on an object is large


def read(frames: np.ndarray, fps: float, spans: Sequence[float] = ()) -> list[dict]:
    """What a video shows, per second.

    frames: uint8 ``[T, H, W, 3]`` of any size; fps: frames per second; spans: seconds at which a new caption begins
    (0 may be left out), so that no window reaches over a change. Returns, for each second that is at least half
    there (and for an image),

        {"second": 0, "background": "black",
         "objects": [{"shape": "star", "colour": "red", "size": "large", "motion": "spins",
                      "x": 31.5, "y": 20.0, "radius": 10.9}, ...]}

    with objects in order of appearance, x, y and radius in units of the 64 x 64 world, and plain types throughout.
    Motion and size are read over windows of three seconds inside one span; in a span shorter than that a motion is
    None. Raises InputError for frames of another type or shape.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise InputError(f"frames are {frames.dtype} {list(frames.shape)}; wanted uint8 [T, H, W, 3]")
    if not fps > 0:
        raise InputError(f"fps={fps} is not a rate; wanted a positive number")
    seen, behind = [], []
    for frame in frames:
        colour, distances = background(frame)
        behind.append(distances)
        seen.append(blobs(frame, colour))
    size = frames.shape[1:3]
    tracks = follow(seen, fps, size)
    total = len(frames) / fps
    borders = sorted({0.0, *(float(s) for s in spans if 0 < s < total)}) + [total]
    out = []
    for second in range(max(1, math.floor(total + 0.5))):
        first, last = math.ceil(second * fps - 1e-6), min(math.ceil((second + 1) * fps - 1e-6), len(frames))
        if last <= first:
            continue
        objects = []
        for track in tracks:
            if len(track.between(first, last)) * 2 > last - first:
                objects.append(_object(track, second, first, last, fps, borders, min(size) / WORLD))
        name = tuple(BACKGROUNDS)[int(np.argmin(np.sum(behind[first:last], 0)))]
        out.append({"second": second, "background": name, "objects": objects})
    return out


def _object(
    track: Track, second: int, first: int, last: int, fps: float, borders: list[float], scale: float
) -> dict:
    """What is read of one object in one second, which is the frames ``first`` to ``last``."""
    here = [track.blobs[i] for i in track.between(first, last)]
    colour = PALETTE[int(np.argmin(np.sum([blob.colour_cost for blob in here], 0)))]
    start, end, length = _window(second, borders)
    low, high = math.ceil(start * fps - 1e-6), math.ceil(end * fps - 1e-6)
    inside = track.between(low, high) or track.between(first, last)
    blobs_inside = [track.blobs[i] for i in inside]
    seconds = np.array([track.frames[i] for i in inside]) / fps
    window = Window(blobs_inside, seconds, scale)
    shape = window.shape()
    radius = np.sqrt(np.array([blob.area for blob in blobs_inside]) / AREAS[shape or "circle"])
    moves = None
    if length >= WINDOW - 1.5 / fps and len(inside) >= 0.8 * (high - low) and len(inside) >= 8:
        x, y = np.array([[blob.x, blob.y] for blob in blobs_inside]).T
        fold = FOLDS[shape] if shape else 0
        moves = motion(seconds, x, y, window.pulse, window.symmetry[fold].turning if fold else 0.0)
    return {
        "shape": shape,
        "colour": colour,
        "size": "large" if radius.mean() >= BIG else "small",
        "motion": moves,
        "x": round(float(np.mean([blob.x for blob in here])), 2),
        "y": round(float(np.mean([blob.y for blob in here])), 2),
        "radius": round(float(radius.mean()), 2),
    }


def _window(second: int, borders: list[float]) -> tuple[float, float, float]:
    """The window of ``second`` (three seconds around its middle, in one span), and the length of its span."""
    middle = min(second + 0.5, borders[-1] - 1e-6)
    i = int(np.searchsorted(borders, middle, side="right")) - 1
    low, high = borders[i], borders[i + 1]
    length = high - low
    if i > 0 and length >= WINDOW - SETTLE:
        low += SETTLE
    start = min(max(middle - WINDOW / 2, low), max(high - WINDOW, low))
    return start, min(start + WINDOW, high), length
