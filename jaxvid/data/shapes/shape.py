# SPDX-License-Identifier: Apache-2.0
"""From the blobs of one object to its shape: what many frames say together.

A codec that keeps the motion of small things may round off their corners on every single frame. Over a window of a few
seconds four things are left all the same, and the shape is the one that explains them best: the overlay of all
frames (centred, scaled alike, turned back), the symmetry (harmonics of order 3, 4 and 5, summed in phase), the area
(the radii of this world are known), and that what does not spin stands upright, unless it spun before.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from scipy import ndimage

from jaxvid.data.shapes.detect import AREAS, FOLDS, PHASES, Blob
from jaxvid.data.shapes.render import coverage
from jaxvid.data.shapes.world import SHAPES, SIZES

REACH = 15  # units from the centre that are compared
RADII = np.exp(np.linspace(math.log(3.5), math.log(14.0), 25))
BLURS = (0.4, 0.8, 1.2, 1.6, 2.1, 2.7)  # units
PERIODS = np.linspace(2.3, 4.3, 21)  # seconds that a turn or a pulse may take
FRAMES = 24  # that are laid over one another, at most
SWELLS = 0.1  # relative amplitude of the radius from which on an object pulses
TURNS = 1.2  # strength of a turning symmetry, as a multiple of that of a resting one, from which on an object spins

# Costs are negative log-likelihoods, up to constants.
EVIDENCE = 6.0  # of the overlay: independent samples that it is worth
MISFIT = 0.012  # share of the overlay's power that a template may miss for reasons other than its shape
LOOSE = 0.12  # standard deviation of the logarithm of a template's radius
AREA = 0.055  # standard deviation of half the logarithm of the area
UPRIGHT = math.radians(6)  # standard deviation of the angle of what does not spin
TURNED = 4.0  # cost of standing askew: it may have spun before
ROUGH = {
    3: 0.008,
    4: 0.012,
    5: 0.008,
}  # strength of a wrong symmetry at a radius of 6; grids of pixels have one of 4
LOSES = 0.6  # standard deviation of the logarithm of the symmetry seen, below that of a template of its blur
GAINS = 0.15  # likewise above it: a codec adds no symmetry
# Beyond these nothing was recognised.
WORST = 0.06  # misfit
LEAST_SYMMETRY = 0.2  # symmetry, as a share of that of a template of its blur


@dataclasses.dataclass
class Symmetry:
    """The harmonic of one order over a window: its complex strength at the middle second, and how it turns.

    speed: radians per second, 0 at rest. turning: greatest strength at any speed, over that at rest.
    """

    strength: complex
    speed: float
    turning: float


class Window:
    """The blobs of one object over some time.

    blobs: in order; seconds ``[n]``: when; scale: pixels per unit.
    ``pulse`` is the relative amplitude of its radius, ``area`` its area without the pulse.
    """

    def __init__(self, blobs: list[Blob], seconds: np.ndarray, scale: float):
        self.blobs, self.scale = blobs, scale
        self.since = seconds - seconds.mean()
        spread = np.array([blob.spread for blob in blobs])
        # Every shape's own spread is round: what is longer than wide is smeared, and counts less.
        half, skew = (
            (spread[:, 0] + spread[:, 2]) / 2,
            np.hypot((spread[:, 0] - spread[:, 2]) / 2, spread[:, 1]),
        )
        narrow = max(float(np.median(half - skew)), 0.25)
        weights = 1 / (1 + (2 * skew / (0.15 * narrow)) ** 2)
        self.weights = weights / weights.sum()
        areas = np.array([blob.area for blob in blobs])
        self.pulse, swells = _pulse(np.log(areas) / 2, self.since)
        self.swells = swells if self.pulse > SWELLS else np.ones(len(blobs))
        self.area = float(np.median(areas / self.swells**2))
        self.symmetry = {fold: self._symmetry(fold) for fold in (3, 4, 5)}

    def _symmetry(self, fold: int) -> Symmetry:
        values = np.array([blob.harmonics[fold] / blob.area**2 for blob in self.blobs]) * self.weights
        rest = complex(values.sum())
        if len(values) < 8:
            return Symmetry(rest, 0.0, 0.0)
        speeds = 2 * np.pi / np.concatenate([PERIODS, -PERIODS])
        turned = np.exp(-1j * fold * speeds[:, None] * self.since) @ values
        best = int(np.argmax(np.abs(turned)))
        turning = float(abs(turned[best]) / max(abs(rest), 1e-9))
        if turning > TURNS:
            return Symmetry(complex(turned[best]), float(speeds[best]), turning)
        return Symmetry(rest, 0.0, turning)

    def overlay(self, speed: float = 0.0) -> np.ndarray:
        """The mean ``[N, N]`` of the shares around the centre, a unit apart, each frame turned back by ``speed``."""
        every = slice(None, None, math.ceil(len(self.blobs) / FRAMES))
        u, v = _grid()
        total, weight = np.zeros(u.shape), 0.0
        for blob, second, swell, w in zip(
            self.blobs[every], self.since[every], self.swells[every], self.weights[every], strict=True
        ):
            step = self.scale * swell
            cos, sin = step * math.cos(speed * second), step * math.sin(speed * second)
            at = [blob.middle[0] - 0.5 + u * sin + v * cos, blob.middle[1] - 0.5 + u * cos - v * sin]
            total += w * ndimage.map_coordinates(blob.patch.astype(np.float32), at, order=1)
            weight += w
        return total / weight

    def shape(self) -> str | None:
        """The likeliest shape; None where not even that one is like what is seen."""
        overlays: dict[float, np.ndarray] = {}
        costs, known = [], []
        for shape in SHAPES:
            fold = FOLDS[shape]
            seen = self.symmetry[fold] if fold else Symmetry(0j, 0.0, 0.0)
            if seen.speed not in overlays:
                overlays[seen.speed] = self.overlay(seen.speed)
            angle = _nearest((np.angle(seen.strength) - PHASES[shape]) / fold, fold) if fold else 0.0
            kept = self._kept(shape) if fold else 1.0
            radius = math.sqrt(self.area / AREAS[shape])
            fit, misfit, keeps = _fit(shape, _turned(overlays[seen.speed], angle), radius, kept)
            costs.append(fit + self._cost(shape, angle))
            known.append(misfit <= WORST and (not fold or kept >= LEAST_SYMMETRY * keeps))
        best = int(np.argmin(costs))
        return SHAPES[best] if known[best] else None

    def _kept(self, shape: str) -> float:
        """The share of its own symmetry that is seen."""
        return abs(self.symmetry[FOLDS[shape]].strength) / _ideal(shape)

    def _cost(self, shape: str, angle: float) -> float:
        """What speaks against a shape apart from its picture: area, angle and symmetries."""
        off, radius = min((abs(math.log(math.sqrt(self.area / AREAS[shape]) / r)), r) for r in SIZES.values())
        cost, fold = _tail(off / AREA), FOLDS[shape]
        for order, seen in self.symmetry.items():
            if order != fold:
                cost += _tail(abs(seen.strength) / ROUGH[order] * radius / 6.0)
        if fold and not self.symmetry[fold].speed:
            cost += min((angle / UPRIGHT) ** 2 / 2, TURNED)
        return cost


def _pulse(sizes: np.ndarray, since: np.ndarray) -> tuple[float, np.ndarray]:
    """Amplitude of the wave that best explains logarithms of radii ``[n]``, and its factors ``[n]``; 0 if too short."""
    if len(since) < 8 or since[-1] - since[0] < 1.5:
        return 0.0, np.ones(len(since))
    best, amplitude, wave = math.inf, 0.0, np.zeros(len(since))
    for period in PERIODS[::2]:
        angle = 2 * np.pi * since / period
        basis = np.stack([np.ones_like(angle), np.cos(angle), np.sin(angle)], 1)
        c = np.linalg.lstsq(basis, sizes, rcond=None)[0]
        error = float(((basis @ c - sizes) ** 2).sum())
        if error < best:
            best, amplitude, wave = error, float(math.hypot(c[1], c[2])), basis @ c - c[0]
    return amplitude, np.exp(wave)


@functools.lru_cache(maxsize=1)
def _grid() -> tuple[np.ndarray, np.ndarray]:
    line = np.arange(-REACH, REACH + 1, dtype=np.float64)
    u, v = np.meshgrid(line, line)
    return u, v


def _turned(picture: np.ndarray, angle: float) -> np.ndarray:
    """``picture [N, N]`` turned back by ``angle``."""
    if abs(angle) < 0.02:
        return picture
    u, v = _grid()
    cos, sin = math.cos(angle), math.sin(angle)
    return ndimage.map_coordinates(picture, [REACH + u * sin + v * cos, REACH + u * cos - v * sin], order=1)


def _nearest(angle: float, fold: int) -> float:
    """The least angle, up or down, that a symmetry of that order cannot tell from this one."""
    part = 2 * math.pi / fold
    return (angle + part / 2) % part - part / 2


def _tail(x: float) -> float:
    """Cost of being ``x`` standard deviations off, with the heavy tail of Student's t of 5 degrees of freedom."""
    return 3.0 * math.log(1 + x * x / 5.0)


def _fit(shape: str, picture: np.ndarray, radius: float, kept: float) -> tuple[float, float, float]:
    """Cost of the best template of a shape for a picture ``[N, N]``, the share of power it misses, the symmetry it keeps.

    radius: that the shape has by its area, which no blur changes. kept: how much of the shape's own symmetry is seen.
    """
    bank, keeps = _templates(shape)
    flat = picture.ravel().astype(np.float32)
    like = bank @ (flat / max(float(np.linalg.norm(flat)), 1e-6))
    misfit = 1 - np.clip(like, 0, 1) ** 2
    more = np.log(max(kept, 1e-6) / keeps)
    faded = np.minimum(np.maximum(more / GAINS, 0) ** 2 / 2, TURNED) + np.minimum(more / LOSES, 0) ** 2 / 2
    off = np.tile(np.log(RADII / radius), len(BLURS)) / LOOSE
    cost = EVIDENCE * np.log(misfit + MISFIT) + off**2 / 2 + faded
    best = int(np.argmin(cost))
    return float(cost[best]), float(misfit[best]), float(keeps[best])


@functools.lru_cache(maxsize=len(SHAPES))
def _templates(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """A shape upright at all blurs and radii ``[n, N * N]``, of unit norm, and the share of its symmetry left ``[n]``."""
    u, v = _grid()
    quarters = [(a, b) for a in (-0.25, 0.25) for b in (-0.25, 0.25)]
    sharp = np.stack(
        [np.mean([coverage(shape, u + a, v + b, r, 0.0) for a, b in quarters], 0) for r in RADII]
    )
    seen = np.stack([ndimage.gaussian_filter(sharp, (0, blur, blur), truncate=3.0) for blur in BLURS])
    seen = seen.reshape(len(BLURS) * len(RADII), *u.shape)
    keeps = np.ones(len(seen))
    if FOLDS[shape]:
        keeps = np.array([_strength(picture, FOLDS[shape], 1.0) for picture in seen]) / _ideal(shape)
    bank = seen.reshape(len(seen), -1).astype(np.float32)
    return bank / np.linalg.norm(bank, axis=1, keepdims=True), keeps


@functools.lru_cache(maxsize=len(SHAPES))
def _ideal(shape: str) -> float:
    """Strength of a shape's own harmonic, which does not depend on its size."""
    line = np.arange(-12.0, 12.01, 0.125)
    return _strength(coverage(shape, *np.meshgrid(line, line), 11.0, 0.0), FOLDS[shape], 0.125)


def _strength(picture: np.ndarray, fold: int, step: float) -> float:
    """Strength of a harmonic of a centred picture ``[N, N]`` whose pixels are ``step`` apart, as ``Symmetry`` has it."""
    line = (np.arange(len(picture)) - len(picture) // 2) * step
    z = line + 1j * line[:, None]
    turn = (z / np.maximum(np.abs(z), 1e-9)) ** fold
    return float(abs((picture * np.abs(z) ** 2 * turn).sum()) / (picture.sum() * step) ** 2)
