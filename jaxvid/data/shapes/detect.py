# SPDX-License-Identifier: Apache-2.0
"""From pixels to blobs: which coloured things are on a frame, where, how large, and how like each shape.

A pixel is background plus a share of an object's colour. The share is measured along the palette's direction in
colour space, so that the blur of an autoencoder moves it to neighbouring pixels but does not lose it: areas,
centres and angles are sums of shares. The shape is the template that differs least from the shares, each template
drawn with the blob's own area and centre, and turned by the phase of the blob's own 3, 4 or 5-fold symmetry.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage

from jaxvid.data.shapes.render import ARM, CROSS, HOLE, INNER, distance
from jaxvid.data.shapes.world import BACKGROUNDS, COLOURS, SHAPES, WORLD

# Area of each shape inscribed in the unit circle, and the order of its symmetry (0: round).
AREAS = {
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "cross": 4 * CROSS**2 * (2 * ARM - ARM**2),
    "ring": math.pi * (1 - HOLE**2),
    "star": 5 * INNER * math.sin(math.pi / 5),
}
FOLDS = {"circle": 0, "square": 4, "triangle": 3, "cross": 4, "ring": 0, "star": 5}
# Angle of an upright shape's harmonic of that order: the direction of a tip, times the order.
PHASES = {"square": math.pi, "triangle": 3 * -math.pi / 2, "cross": 0.0, "star": 5 * -math.pi / 2}
HALF = 0.5  # the share from which on a pixel belongs to a blob
FAINT = 25.0  # distance in colour below which a pixel is background, whatever its direction
LEAST = 8.0  # square units: less is noise (the smallest star, at its least, has 25)
BLURS = (0.0, 0.7, 1.2)  # pixels: a template is tried sharp, and as an autoencoder or a model may leave it

_PALETTE = np.array(list(COLOURS.values()), np.float32)
_BACKGROUNDS = np.array(list(BACKGROUNDS.values()), np.float32)


@dataclasses.dataclass
class Blob:
    """One coloured thing on one frame; positions and areas in units of the world.

    colour_cost: ``[8]`` how badly each colour of the palette explains it (0 to about 1).
    shape_cost: ``[6]`` likewise for the shapes, or None where it was not asked for.
    harmonics: complex ``[6]``, sums of shares over angles; order 0 to 5.
    """

    x: float
    y: float
    area: float
    colour_cost: np.ndarray
    harmonics: np.ndarray
    shape_cost: np.ndarray | None = None


def background(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The commonest colour ``[3]`` of a frame ``[H, W, 3]``, and its distance ``[3]`` to each background."""
    height, width = frame.shape[:2]
    rows = np.concatenate(
        [frame[::2, ::2].reshape(-1, 3), frame[0], frame[height - 1], frame[:, 0], frame[:, -1]]
    )
    median = np.median(rows, 0).astype(np.float32)
    return median, np.linalg.norm(median - _BACKGROUNDS, axis=-1)


def blobs(frame: np.ndarray, behind: np.ndarray, with_shapes: bool = True) -> list[Blob]:
    """The coloured things on a frame, largest first.

    frame: uint8 ``[H, W, 3]``; behind: its background colour ``[3]``; with_shapes: also compare with the templates.
    """
    height, width = frame.shape[:2]
    scale = min(height, width) / WORLD
    away = frame.astype(np.float32) - behind
    length = np.sqrt((away * away).sum(-1))
    contrast = _PALETTE - behind  # [8, 3]
    reach = np.linalg.norm(contrast, axis=-1)
    unit = contrast / reach[:, None]
    rows, columns = np.nonzero(length > FAINT)
    if not len(rows):
        return []
    share = np.zeros((height, width), np.float32)
    seen = away[rows, columns]
    share[rows, columns] = length[rows, columns] / reach[np.argmax(seen @ unit.T, -1)]
    labels = np.asarray(ndimage.label(share > HALF, np.ones((3, 3)))[0])  # pyright: ignore[reportIndexIssue]
    out = []
    pad = max(2, math.ceil(2 * scale))
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        core = labels[box] == index
        if core.sum() < LEAST / 2 * scale * scale:
            continue
        box = tuple(slice(max(s.start - pad, 0), s.stop + pad) for s in box)
        core, label = labels[box] == index, labels[box]
        others = (label > 0) & ~core
        if others.any():
            # Pixels nearer to another blob than to this one are not this one's.
            to_core, to_others = (np.asarray(ndimage.distance_transform_edt(~m)) for m in (core, others))
            near = to_core <= to_others
        else:
            near = np.ones_like(core)
        blob = _blob(
            away[box], core, near, contrast, reach, unit, (box[0].start, box[1].start), scale, with_shapes
        )
        if blob.area >= LEAST:
            blob.x -= (width / scale - WORLD) / 2
            blob.y -= (height / scale - WORLD) / 2
            out.append(blob)
    return sorted(out, key=lambda blob: -blob.area)


def _blob(away, core, near, contrast, reach, unit, corner, scale, with_shapes) -> Blob:
    """Measure one blob in its box: ``away [h, w, 3]``, ``core`` and ``near [h, w]`` bool."""
    inside = away[core]
    size = (inside * inside).sum(-1)
    inside = inside[size >= np.median(size)]
    along = np.clip(inside @ unit.T, 0, 1.1 * reach)  # [n, 8]
    beside = (inside * inside).sum(-1)[:, None] - 2 * along * (inside @ unit.T) + along * along
    plain = ((inside[:, None] - contrast) ** 2).sum(-1)
    # Beside the direction counts most: thin things never reach their full colour, but they do not change it.
    colour_cost = np.sqrt(np.maximum(beside, 0).mean(0) + 0.1 * plain.mean(0)) / 100
    best = int(np.argmin(colour_cost))
    level = float(np.clip(np.median(inside @ unit[best]) / reach[best], 0.85, 1.1)) * reach[best]
    share = np.where(near, np.clip(away @ unit[best] / level, -0.2, 1.05), 0.0)
    rows, columns = np.arange(core.shape[0]) + 0.5, np.arange(core.shape[1]) + 0.5
    total = max(float(share.sum()), 1e-3)
    y, x = float((share.sum(1) * rows).sum() / total), float((share.sum(0) * columns).sum() / total)
    u, v = np.meshgrid(columns - x, rows - y)
    turn = (u + 1j * v) / (np.hypot(u, v) + 1e-6)
    weight = share * (u * u + v * v)
    harmonics, power = np.zeros(6, complex), np.ones_like(turn)
    for order in range(6):
        harmonics[order] = (weight * power).sum()
        power = power * turn
    shape_cost = None
    if with_shapes:
        shape_cost = _unlike(share, near, u, v, total, harmonics)
    return Blob(
        (corner[1] + x) / scale, (corner[0] + y) / scale, total / scale**2, colour_cost, harmonics, shape_cost
    )


def _unlike(share, near, u, v, area, harmonics) -> np.ndarray:
    """``[6]``: squared difference between shares and a template of equal area, centre and angle; per area."""
    templates = np.empty((len(SHAPES), *share.shape), np.float32)
    for i, shape in enumerate(SHAPES):
        radius = math.sqrt(area / AREAS[shape])
        x, y = u / radius, v / radius
        if FOLDS[shape]:
            angle = (np.angle(harmonics[FOLDS[shape]]) - PHASES[shape]) / FOLDS[shape]
            cos, sin = math.cos(angle), math.sin(angle)
            x, y = x * cos + y * sin, y * cos - x * sin
        templates[i] = np.clip(0.5 - distance(shape, x, y) * radius, 0, 1)
    costs = []
    for blur in BLURS:
        seen = ndimage.gaussian_filter(templates, (0, blur, blur), truncate=3.0) if blur else templates
        costs.append(((seen - share) ** 2 * near).sum((1, 2)))
    return np.min(costs, 0) / area
