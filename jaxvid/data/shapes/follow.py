# SPDX-License-Identifier: Apache-2.0
"""From blobs to objects in time: which blob is whose, and which of the eight motions a stretch of time shows."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from jaxvid.data.shapes.detect import AREAS, Blob, joined
from jaxvid.data.shapes.shape import SWELLS, TURNS

MOVES = 3.0  # units: what moves less along an axis does not move along it
LOST = 0.75  # seconds after which an object that is not seen is gone
FASTEST = 60.0  # units per second
JUMP = 12.0  # units: a codec may hold what moves for a few frames and then catch up
RECENT = 24  # frames that tell how large a thing usually is


@dataclasses.dataclass
class Track:
    """One object: the frames on which it is seen, and its blob on each."""

    frames: list[int]
    blobs: list[Blob]

    def between(self, first: int, last: int) -> list[int]:
        """Positions in ``frames`` of those in ``range(first, last)``."""
        low, high = np.searchsorted(self.frames, [first, last])
        return list(range(low, high))


def follow(seen: list[list[Blob]], fps: float, size: tuple[int, int]) -> list[Track]:
    """Join the blobs of successive frames of a ``size`` to objects, nearest and most alike first."""
    tracks: list[Track] = []
    for frame, found in enumerate(seen):
        pairs = []
        for i, track in enumerate(tracks):
            gap = (frame - track.frames[-1]) / fps
            if gap > LOST and frame - track.frames[-1] > 1:
                continue
            last = track.blobs[-1]
            for j, blob in enumerate(found):
                far = math.hypot(blob.x - last.x, blob.y - last.y)
                if far <= JUMP + FASTEST * gap:
                    unlike = np.abs(blob.colour_cost - last.colour_cost).max()
                    pairs.append((far / 8.0 + 2.0 * unlike + abs(math.log(blob.area / last.area)), i, j))
        taken: dict[int, int] = {}
        left = set(range(len(found)))
        for _, i, j in sorted(pairs):
            if i not in taken and j in left:
                taken[i] = j
                left.remove(j)
        for i, j in taken.items():
            blob = found[j]
            for k in sorted(left):
                if _torn(tracks[i], blob, found[k]):
                    blob = joined([blob, found[k]], size)
                    left.remove(k)
            tracks[i].frames.append(frame)
            tracks[i].blobs.append(blob)
        tracks += [Track([frame], [found[j]]) for j in sorted(left)]
    return tracks


def _torn(track: Track, blob: Blob, other: Blob) -> bool:
    """Whether ``other`` is a piece of what is followed and of which ``blob`` is all that was recognised."""
    usual = float(np.percentile([b.area for b in track.blobs[-RECENT:]], 75))
    if abs(math.log((blob.area + other.area) / usual)) >= abs(math.log(blob.area / usual)):
        return False
    if np.argmin(blob.colour_cost) != np.argmin(other.colour_cost):
        return False
    return math.hypot(blob.x - other.x, blob.y - other.y) <= 2.2 * math.sqrt(usual / AREAS["ring"])


def motion(seconds: np.ndarray, x: np.ndarray, y: np.ndarray, pulse: float, turning: float) -> str:
    """Which of the eight motions a window shows.

    seconds ``[n]``; x and y ``[n]`` in units; pulse: relative amplitude of the radius; turning: strength of the
    shape's symmetry turning over that at rest (0 for round shapes, which do not spin).
    """
    wide, high = _range(x), _range(y)
    if max(wide, high) < MOVES:
        return "pulses" if pulse > SWELLS else "spins" if turning > TURNS else "stays still"
    if high < MOVES:
        return "slides left and right"
    if wide < MOVES:
        return "slides up and down"
    times = tuple(np.round(seconds - seconds[0], 4).tolist())
    circles, bounces = _models(times)
    centred = (x - x.mean()) + 1j * (y - y.mean())
    power = float((np.abs(centred) ** 2).sum())
    # Turning waves exp(+-i w t): growing angles are clockwise, since y points down.
    round_power = np.abs(circles.conj() @ centred) ** 2  # [2, periods]
    bounced = ((bounces @ (x - x.mean())) ** 2).max() + ((bounces @ (y - y.mean())) ** 2).max()
    if power - round_power.max() <= power - bounced:
        return (
            "circles clockwise" if round_power[0].max() > round_power[1].max() else "circles counterclockwise"
        )
    return "bounces around"


@functools.lru_cache(maxsize=64)
def _models(times: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors over a window's seconds: turning waves ``[2, P, n]`` both ways, triangle waves ``[M, n]``."""
    t = np.array(times)
    periods = np.linspace(2.3, 4.3, 21)
    waves = np.exp(2j * np.pi * t / periods[:, None])
    circles = np.stack([waves, waves.conj()])
    phases = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    angle = 2 * np.pi * t / periods[:, None, None] + phases[:, None]
    bounces = np.arcsin(np.sin(angle)).reshape(-1, len(t))
    out = []
    for basis in (circles, bounces):
        basis = basis - basis.mean(-1, keepdims=True)
        out.append(basis / np.linalg.norm(basis, axis=-1, keepdims=True))
    return out[0], out[1]


def _range(values: np.ndarray) -> float:
    """The range of values without its two extreme twentieths."""
    low, high = np.percentile(values, [4, 96])
    return float(high - low)
