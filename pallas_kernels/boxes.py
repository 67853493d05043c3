# SPDX-License-Identifier: Apache-2.0
"""Shifted windows on a grid as boxes: no token has to be rolled, padded or sorted to find its window.

On an axis of n places with windows of w, shifted by s, the token at i is in window ((i - s) mod n) // w, and tokens that
wrapped around (i < s) do not see the others. So an axis falls into runs of neighbouring places, at most w long, and the
windows are the products of runs: [0, s), [s, s + w), [s + w, s + 2w), ... Borders have shorter runs, nothing wraps.

Ref: Swin, arXiv:2103.14030; LinGen's TESA, arXiv:2412.09856.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np


def runs(length: int, window: int, shift: int) -> np.ndarray:
    """int32 [runs, 2]: where each run starts, and how long it is."""
    place = np.arange(length)
    label = (place - shift) % length // window * 2 + (place < shift)
    starts = np.flatnonzero(np.diff(label, prepend=-1))
    return np.stack([starts, np.diff(starts, append=length)], 1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The windows of a grid: all three arguments along frames, rows and columns."""

    grid: tuple[int, int, int]
    window: tuple[int, int, int]
    shift: tuple[int, int, int]

    @property
    def axes(self) -> list[np.ndarray]:
        """`runs` of every axis."""
        return [runs(*axis) for axis in zip(self.grid, self.window, self.shift, strict=True)]

    @property
    def unit(self) -> tuple[int, ...]:
        """What every run is a multiple of, along every axis."""
        return tuple(math.gcd(*axis) for axis in zip(self.grid, self.window, self.shift, strict=True))

    @property
    def tokens(self) -> int:
        """Of a whole window."""
        return math.prod(self.window)

    @property
    def whole(self) -> bool:
        """Whether no window is cut off at a border."""
        return all((axis[:, 1] == w).all() for axis, w in zip(self.axes, self.window, strict=True))


def refusal(grid, window, shift) -> str | None:
    """Why these are no windows; None if they are."""
    for n, w, s in zip(grid, window, shift, strict=True):
        if not (1 <= w <= n and 0 <= s < w):
            return f"takes windows that fit the grid and shifts below them, not {window} on {grid} by {shift}"
    return None
