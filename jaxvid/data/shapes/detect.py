# SPDX-License-Identifier: Apache-2.0
"""From pixels to blobs: which coloured things are on a frame, where, how large, and of what symmetry.

A pixel is background plus a share of an object's colour. The share is measured along the palette's direction in
colour space, so that the blur of an autoencoder moves it to neighbouring pixels but does not lose it: areas,
centres and angles are sums of shares.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage

from jaxvid.data.shapes.render import ARM, CROSS, HOLE, INNER
from jaxvid.data.shapes.world import BACKGROUNDS, COLOURS, WORLD

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
HALF = 0.5  # the share from which on a pixel is surely of a thing
WEAK = 0.2  # the share from which on it belongs to one: what moves fast may be left as a smear
FAINT = 25.0  # distance in colour below which a pixel is background, whatever its direction
LEAST = 8.0  # square units: less is noise (the smallest star, at its least, has 25)
CLOSE = (
    10.0  # units: two things' centres are never as near as this (radii of 4.5 at least, and 2 between lanes)
)
EIGHT = np.ones((3, 3))  # neighbours of a pixel

_PALETTE = np.array(list(COLOURS.values()), np.float32)
_BACKGROUNDS = np.array(list(BACKGROUNDS.values()), np.float32)


@dataclasses.dataclass
class Blob:
    """One coloured thing on one frame; positions and areas in units of the world.

    colour_cost: ``[8]`` how badly each colour of the palette explains it (0 to about 1).
    spread: ``[3]`` covariance of the shares (xx, xy, yy; square units). Every shape's own is round.
    harmonics: complex ``[6]``, integrals of shares times squared radius over angles; order 0 to 5.
    patch: shares ``[h, w]``, float16, 0 where a pixel is another blob's; corner: row and column of its first pixel;
    middle: row and column of the centre in it, in pixels from that corner.
    """

    x: float
    y: float
    area: float
    colour_cost: np.ndarray
    spread: np.ndarray
    harmonics: np.ndarray
    patch: np.ndarray
    corner: tuple[int, int]
    middle: tuple[float, float]


def background(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The commonest colour ``[3]`` of a frame ``[H, W, 3]``, and its distance ``[3]`` to each background."""
    height, width = frame.shape[:2]
    rows = np.concatenate(
        [frame[::2, ::2].reshape(-1, 3), frame[0], frame[height - 1], frame[:, 0], frame[:, -1]]
    )
    median = np.median(rows, 0).astype(np.float32)
    return median, np.linalg.norm(median - _BACKGROUNDS, axis=-1)


def blobs(frame: np.ndarray, behind: np.ndarray) -> list[Blob]:
    """The coloured things on a frame uint8 ``[H, W, 3]`` with background colour ``behind [3]``, largest first."""
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
    out: list[Blob] = []
    for box, core, near in _parts(share, scale):
        inside = away[box][core]
        colour_cost, best, level = _colour(inside, contrast, reach, unit)
        patch = np.where(near, np.clip(away[box] @ unit[best] / level, -0.2, 1.05), 0.0)
        out.append(_blob(patch, (box[0].start, box[1].start), (height, width), colour_cost))
    out = _mend(sorted(out, key=lambda blob: -blob.area), (height, width))
    return [blob for blob in out if blob.area >= LEAST]


def _parts(share: np.ndarray, scale: float):
    """Of a frame's shares ``[H, W]``: boxes around things, and in each which pixels are surely and possibly its."""
    weak = np.asarray(ndimage.label(share > WEAK, EIGHT)[0])
    strong = np.asarray(ndimage.label(share > HALF, EIGHT)[0])
    labels, count = weak.copy(), 0
    for index, box in enumerate(ndimage.find_objects(weak), 1):
        here = weak[box] == index
        sizes = np.bincount(strong[box][here])
        cores = [i for i in range(1, len(sizes)) if sizes[i] >= LEAST / 2 * scale * scale]
        if not cores and share[box][here].sum() < LEAST * scale * scale:
            labels[box][here] = 0
            continue
        if len(cores) < 2:
            count += 1
            labels[box][here] = count
            continue
        labels[box][here] = 0
        for i in cores:
            count += 1
            labels[box][strong[box] == i] = count
    pad = max(2, math.ceil(2 * scale))
    for index, box in enumerate(ndimage.find_objects(labels, count), 1):
        if box is None:
            continue
        box = tuple(slice(max(s.start - pad, 0), s.stop + pad) for s in box)
        label = labels[box]
        core = label == index
        others = (label > 0) & ~core
        near = np.ones_like(core)
        if others.any():
            # Pixels nearer to another thing than to this one are not this one's.
            to_core, to_others = (np.asarray(ndimage.distance_transform_edt(~m)) for m in (core, others))
            near = to_core <= to_others
        # A round edge: that of the box would give faint outskirts the symmetry of a square.
        rows, columns = np.nonzero(core)
        far = np.hypot(*(i - i.mean() for i in (rows, columns))).max() + pad
        v, u = np.ogrid[: core.shape[0], : core.shape[1]]
        near = near & (np.hypot(v - rows.mean(), u - columns.mean()) <= far)
        strongly = core & (share[box] > HALF)
        yield box, strongly if strongly.any() else core, near


def _mend(found: list[Blob], size: tuple[int, int]) -> list[Blob]:
    """Blobs, largest first, of which those of one colour that lie too close to be two things have become one."""
    out: list[Blob] = []
    for blob in found:
        for i, other in enumerate(out):
            alike = np.argmin(blob.colour_cost) == np.argmin(other.colour_cost)
            if alike and math.hypot(blob.x - other.x, blob.y - other.y) < CLOSE:
                out[i] = joined([other, blob], size)
                break
        else:
            out.append(blob)
    return out


def _colour(inside, contrast, reach, unit) -> tuple[np.ndarray, int, float]:
    """How badly each colour explains pixels ``[n, 3]`` (less the background); the best; its length as it is here."""
    size = (inside * inside).sum(-1)
    inside = inside[size >= np.median(size)]
    along = np.clip(inside @ unit.T, 0, 1.1 * reach)  # [n, 8]
    beside = (inside * inside).sum(-1)[:, None] - 2 * along * (inside @ unit.T) + along * along
    plain = ((inside[:, None] - contrast) ** 2).sum(-1)
    # Beside the direction counts most: thin things never reach their full colour, but they do not change it.
    cost = np.sqrt(np.maximum(beside, 0).mean(0) + 0.1 * plain.mean(0)) / 100
    best = int(np.argmin(cost))
    level = float(np.clip(np.median(inside @ unit[best]) / reach[best], 0.85, 1.1) * reach[best])
    return cost, best, level


def _blob(patch, corner, size, colour_cost) -> Blob:
    """Measure shares ``patch [h, w]`` that lie at ``corner`` of a frame of ``size``."""
    scale = min(size) / WORLD
    rows, columns = np.arange(patch.shape[0]) + 0.5, np.arange(patch.shape[1]) + 0.5
    total = max(float(patch.sum()), 1e-3)
    y, x = float((patch.sum(1) * rows).sum() / total), float((patch.sum(0) * columns).sum() / total)
    u, v = np.meshgrid(columns - x, rows - y)
    turn = (u + 1j * v) / (np.hypot(u, v) + 1e-6)
    weight = patch * (u * u + v * v)
    harmonics, power = np.zeros(6, complex), np.ones_like(turn)
    for order in range(6):
        harmonics[order] = (weight * power).sum()
        power = power * turn
    spread = np.array([(patch * u * u).sum(), (patch * u * v).sum(), (patch * v * v).sum()]) / total
    return Blob(
        (corner[1] + x) / scale - (size[1] / scale - WORLD) / 2,
        (corner[0] + y) / scale - (size[0] / scale - WORLD) / 2,
        total / scale**2, colour_cost, spread / scale**2, harmonics / scale**4, patch.astype(np.float16), corner, (y, x),
    )  # fmt: skip


def joined(parts: list[Blob], size: tuple[int, int]) -> Blob:
    """One blob made of several of a frame of ``size`` (height, width) that are one thing torn apart."""
    top, left = (min(p.corner[i] for p in parts) for i in (0, 1))
    bottom, right = (max(p.corner[i] + p.patch.shape[i] for p in parts) for i in (0, 1))
    patch = np.zeros((bottom - top, right - left), np.float32)
    for p in parts:
        y, x = p.corner[0] - top, p.corner[1] - left
        patch[y : y + p.patch.shape[0], x : x + p.patch.shape[1]] += p.patch
    areas = np.array([p.area for p in parts])
    colour_cost = (areas[:, None] * [p.colour_cost for p in parts]).sum(0) / areas.sum()
    return _blob(patch, (top, left), size, colour_cost)
