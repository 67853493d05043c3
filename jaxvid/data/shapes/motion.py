# SPDX-License-Identifier: Apache-2.0
"""Paths: where an object is at every second, and how one motion passes into the next without a jump."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxvid.data.shapes.world import SIZES, Look, Path

GLIDE = 0.5  # seconds in which the rest of an earlier place or size fades out
PULSE = 0.25  # small at its largest stays smaller than large at its smallest
PERIODS = (2.5, 4.0)  # seconds
CIRCLE = 18.0  # units: the largest circle that is walked


def place(path: Path, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where the object is: x, y, radius (units) and angle (radians), each of ``seconds``' shape ``[T]``."""
    seconds = np.asarray(seconds, np.float64)
    tau = seconds - path.start
    fade = np.clip((seconds - path.glide_start) / GLIDE, 0.0, 1.0)
    rest = 1.0 - fade * fade * (3.0 - 2.0 * fade)
    radius = path.radius * np.exp(path.glide[2] * rest)
    if path.pulse:
        radius = radius * (1.0 + path.pulse * np.sin(2 * np.pi * tau / path.period[0] + path.phase[0]))
    xy = []
    for axis in (0, 1):
        at = np.full(seconds.shape, path.centre[axis])
        if path.amplitude[axis]:
            wave = np.sin(2 * np.pi * tau / path.period[axis] + path.phase[axis])
            if path.triangle:
                wave = np.arcsin(wave) * (2 / np.pi)
            at = at + path.amplitude[axis] * wave
        low, high = path.lane[axis] + radius, path.lane[axis + 2] - radius
        xy.append(np.clip(at + path.glide[axis] * rest, low, np.maximum(low, high)))
    return xy[0], xy[1], radius, path.angle + path.turn * tau


def begin(rng: np.random.Generator, look: Look, second: float, lane, before: Path | None = None) -> Path:
    """A path for ``look`` from ``second`` on, inside ``lane``; it starts where ``before`` then is."""
    radius, motion = SIZES[look.size], look.motion
    pulse = PULSE if motion == "pulses" else 0.0
    low, high = _centres(lane, radius * (1.0 + pulse))
    half = (high - low) / 2
    if before is None:
        at, angle = rng.uniform(low, high), 0.0
    else:
        x, y, _, turned = place(before, np.array([second]))
        at, angle = np.clip([x[0], y[0]], low, high), float(turned[0])
    period = rng.uniform(*PERIODS)
    periods, phase, amplitude, centre = (period, period), np.zeros(2), np.zeros(2), at.copy()
    turn = 0.0
    if motion in ("slides left and right", "slides up and down"):
        axis = 0 if motion == "slides left and right" else 1
        amplitude[axis] = half[axis] * rng.uniform(0.85, 1.0)
        first = max(low[axis] + amplitude[axis], at[axis] - amplitude[axis])
        last = min(high[axis] - amplitude[axis], at[axis] + amplitude[axis])
        centre[axis] = rng.uniform(first, max(first, last))
        phase[axis] = _phase(rng, (at[axis] - centre[axis]) / max(amplitude[axis], 1e-9), False)
    elif motion == "bounces around":
        # Two periods that are not alike, or the bounces would close to a diamond and look like a circle.
        short = rng.uniform(PERIODS[0], PERIODS[1] / 1.25)
        long = rng.uniform(short * 1.25, PERIODS[1])
        periods = (short, long) if rng.random() < 0.5 else (long, short)
        amplitude, centre = half.copy(), (low + high) / 2
        phase = np.array([_phase(rng, v, True) for v in (at - centre) / np.maximum(half, 1e-9)])
    elif motion.startswith("circles"):
        walk = min(half.min(), CIRCLE) * rng.uniform(0.8, 1.0, 16)
        angles = rng.uniform(0, 2 * np.pi, 16)
        wanted = at - walk[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
        kept = np.clip(wanted, low + walk[:, None], high - walk[:, None])
        best = int(np.argmin(np.abs(wanted - kept).sum(-1)))
        centre, amplitude = kept[best], np.full(2, walk[best])
        theta = math.atan2(at[1] - centre[1], at[0] - centre[0])
        # x = cos, y = sin of a growing angle is clockwise, since y points down.
        if motion == "circles clockwise":
            phase = np.array([theta + np.pi / 2, theta])
        else:
            phase = np.array([np.pi / 2 - theta, np.pi - theta])
    elif motion == "pulses":
        phase = np.array([0.0 if before is not None else rng.uniform(0, 2 * np.pi), 0.0])
    elif motion == "spins":
        turn = float(rng.choice([-1.0, 1.0])) * 2 * np.pi / period
    path = Path(
        lane=tuple(lane), start=second, centre=_pair(centre), radius=radius, amplitude=_pair(amplitude),
        period=_pair(periods), phase=_pair(phase), triangle=motion == "bounces around", pulse=pulse,
        angle=angle, turn=turn,
    )  # fmt: skip
    return path if before is None else _from(path, before, second)


def resize(path: Path, size: str, second: float) -> Path:
    """The same movement, phase and all, at another size: growing and shrinking take ``GLIDE`` seconds."""
    radius = SIZES[size]
    low, high = _centres(path.lane, radius * (1.0 + path.pulse))
    half = (high - low) / 2
    amplitude = np.minimum(path.amplitude, half)
    if path.triangle:
        amplitude = half
    elif path.amplitude[0] and path.amplitude[1]:
        amplitude = np.full(2, amplitude.min())
    centre = np.clip(path.centre, low + amplitude, high - amplitude)
    after = dataclasses.replace(path, radius=radius, centre=_pair(centre), amplitude=_pair(amplitude))
    return _from(after, path, second)


def _from(path: Path, before: Path, second: float) -> Path:
    """``path`` with a glide from where ``before`` is at ``second``."""
    bare = dataclasses.replace(path, glide=(0.0, 0.0, 0.0))
    x0, y0, r0, _ = place(before, np.array([second]))
    x1, y1, r1, _ = place(bare, np.array([second]))
    glide = (float(x0[0] - x1[0]), float(y0[0] - y1[0]), math.log(float(r0[0] / r1[0])))
    return dataclasses.replace(bare, glide=glide, glide_start=second)


def _centres(lane, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the centre of something of that radius may be inside the lane: low and high corner."""
    low, high = np.array(lane[:2]) + radius, np.array(lane[2:]) - radius
    middle = (low + high) / 2
    return np.minimum(low, middle), np.maximum(high, middle)


def _phase(rng: np.random.Generator, value: float, triangle: bool) -> float:
    """A phase at which the wave has this value, on its way up or down."""
    value = float(np.clip(value, -1.0, 1.0))
    phase = value * np.pi / 2 if triangle else math.asin(value)
    return phase if rng.random() < 0.5 else np.pi - phase


def _pair(values) -> tuple[float, float]:
    return float(values[0]), float(values[1])
