# SPDX-License-Identifier: Apache-2.0
"""Pictures of scenes: signed distances inside each object's bounding box, anti-aliased over one pixel."""

from __future__ import annotations

import math

import numpy as np

from jaxvid.data.shapes.motion import place
from jaxvid.data.shapes.world import BACKGROUNDS, COLOURS, WORLD, Scene, Thing
from jaxvid.types import InputError

HOLE = 0.55  # of a ring's radius
INNER = 0.42  # of a star's radius
ARM = 1.0 / 3.0  # of a cross's width
CROSS = 1.0 / math.sqrt(1.0 + ARM * ARM)  # half the width of a cross whose tips lie on the unit circle
BLOCK = 64  # frames drawn at once, which bounds the memory


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to an upright shape inscribed in the unit circle, negative inside; elementwise."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - 1
    if shape == "ring":
        radius = np.sqrt(x * x + y * y)
        return np.maximum(radius - 1, HOLE - radius)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - math.sqrt(0.5)
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        return np.maximum(np.maximum(x, y) - CROSS, np.minimum(x, y) - CROSS * ARM)
    if shape == "triangle":
        return np.maximum(np.abs(x) * (math.sqrt(3) / 2) - y * 0.5, y) - 0.5
    if shape == "star":
        # Fold the plane into half a point of the star: mirrors at x = 0 and at a valley's ray, twice each.
        x, y = np.abs(x), -y
        nx, ny = math.cos(math.pi / 5), -math.sin(math.pi / 5)
        for _ in (1, 2):
            over = np.maximum(x * nx + y * ny, 0)
            x, y = np.abs(x - 2 * over * nx), y - 2 * over * ny
        ax, ay = INNER * math.sin(math.pi / 5), INNER * math.cos(math.pi / 5)
        ex, ey = -ax, 1 - ay  # the edge from a valley to the tip at (0, 1)
        return ((x - ax) * ey - (y - ay) * ex) / math.hypot(ex, ey)
    raise InputError(f"shape {shape!r} cannot be drawn; wanted circle, square, triangle, cross, ring or star")


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius, angle) -> np.ndarray:
    """How much of each pixel the shape covers, in [0, 1]; x, y and radius in pixels from its centre."""
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = (x * cos + y * sin) / radius, (y * cos - x * sin) / radius
    return np.clip(0.5 - distance(shape, u, v) * radius, 0, 1)


def render(scene: Scene, frames: int, fps: float, size: int | tuple[int, int], first: int = 0) -> np.ndarray:
    """The frames ``first`` to ``first + frames`` of a scene.

    frames: how many; fps: per second; size: pixels of a side, or (height, width).
    Returns uint8 ``[T, H, W, 3]``.
    Raises InputError for frames, fps or sizes that are not positive.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    if frames < 1 or fps <= 0 or height < 1 or width < 1:
        raise InputError(f"frames={frames} fps={fps} size={size} cannot be rendered; all must be positive")
    out = np.empty((frames, height, width, 3), np.uint8)
    out[:] = np.array(BACKGROUNDS[scene.background], np.uint8)
    for begin in range(0, frames, BLOCK):
        block = out[begin : begin + BLOCK]
        seconds = (first + begin + np.arange(len(block))) / fps
        for thing in scene.things:
            _draw(block, thing, seconds)
    return out


def _draw(block: np.ndarray, thing: Thing, seconds: np.ndarray) -> None:
    """Blend one object into the frames ``[T, H, W, 3]`` shown at ``seconds``."""
    height, width = block.shape[1:3]
    scale = min(height, width) / WORLD
    ends = [part.start for part in thing.parts[1:]] + [thing.end]
    for part, end in zip(thing.parts, ends, strict=True):
        shown = np.flatnonzero((seconds >= part.start - 1e-9) & (seconds < end - 1e-9))
        if not len(shown):
            continue
        x, y, radius, angle = place(part.path, seconds[shown])
        x = x * scale + (width - WORLD * scale) / 2
        y = y * scale + (height - WORLD * scale) / 2
        reach = int(math.ceil(radius.max() * scale)) + 1
        left, top = np.floor(x).astype(int) - reach, np.floor(y).astype(int) - reach
        grid = np.arange(2 * reach + 1)
        u = (grid[None, None, :] + (left + 0.5 - x)[:, None, None]).astype(np.float32)
        v = (grid[None, :, None] + (top + 0.5 - y)[:, None, None]).astype(np.float32)
        column = (len(shown), 1, 1)
        cover = coverage(
            part.look.shape, u, v,
            (radius * scale).astype(np.float32).reshape(column), angle.astype(np.float32).reshape(column),
        )[..., None]  # fmt: skip
        colour = np.array(COLOURS[part.look.colour], np.float32)
        for i, frame in enumerate(shown):
            y0, x0 = max(top[i], 0), max(left[i], 0)
            y1, x1 = min(top[i] + len(grid), height), min(left[i] + len(grid), width)
            if y0 >= y1 or x0 >= x1:
                continue
            weight = cover[i, y0 - top[i] : y1 - top[i], x0 - left[i] : x1 - left[i]]
            under = block[frame, y0:y1, x0:x1]
            block[frame, y0:y1, x0:x1] = under + weight * (colour - under) + 0.5
