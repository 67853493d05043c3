# SPDX-License-Identifier: Apache-2.0
"""Windows of another source's clips, cut where there is something to see.

An autoencoder learns from edges and motion, not from plain ground: small windows around what differs from the ground
teach it several times as much for the same work as whole frames do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.types import InputError

VERSION = 1  # of the pictures: raise it whenever any pixel changes
SEEN = 24  # of 255: how far from the ground something is


@dataclasses.dataclass(frozen=True)
class Crops:
    """Clips of ``source`` at ``height`` x ``width``, from which windows of the asked size are cut.

    plain: the share of windows cut anywhere. jitter: the share of clips whose colours are mixed, paled and shifted.
    The window and the colours of a clip depend on (seed, index) alone; captions are kept.
    """

    source: Any
    height: int = 64
    width: int = 64
    plain: float = 0.1
    jitter: float = 0.1
    seed: int = 0

    def __len__(self) -> int:
        return len(self.source)

    def clip(self, index: int, shape: ClipShape) -> Sample:
        """Clip ``index``: uint8 ``[T, H, W, 3]``. InputError when the window is larger than the frame."""
        sample = self.source.clip(index, self._whole(shape))
        rng = np.random.default_rng([self.seed, int(index), shape.frames])
        x = np.asarray(sample.x)
        row, column = self._corner(rng, x[len(x) // 2], shape)
        x = x[:, row : row + shape.height, column : column + shape.width]
        if rng.random() < self.jitter:
            mixed = (x[..., rng.permutation(3)] / 255.0 - 0.5) * rng.uniform(0.5, 1.1) + 0.5
            x = np.clip((mixed + rng.uniform(-0.2, 0.2, 3)) * 255 + 0.5, 0, 255).astype(np.uint8)
        return Sample(np.ascontiguousarray(x), sample.captions)

    def key(self, index: int, shape: ClipShape) -> str:
        """A text that is equal for two clips only if their pixels and captions are."""
        whole = self.source.key(index, self._whole(shape))
        options = f"{self.plain:g}:{self.jitter:g}:{self.seed}:{shape.height}x{shape.width}"
        return f"crops-{VERSION}:{options}:{whole}"

    def _whole(self, shape: ClipShape) -> ClipShape:
        if shape.height > self.height or shape.width > self.width:
            raise InputError(
                f"windows of {shape.height}x{shape.width} cannot be cut from {self.height}x{self.width}; ask for smaller"
            )
        return dataclasses.replace(shape, height=self.height, width=self.width)

    def _corner(self, rng: np.random.Generator, frame: np.ndarray, shape: ClipShape) -> tuple[int, int]:
        """The window's first row and column: near a pixel, drawn at random, that is not ground."""
        room = self.height - shape.height, self.width - shape.width
        ground = np.median(frame.reshape(-1, 3), axis=0)
        seen = np.argwhere(np.abs(frame - ground).max(axis=-1) > SEEN)
        if not len(seen) or rng.random() < self.plain:
            return int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))
        place = (
            seen[rng.integers(len(seen))]
            + rng.integers(-10, 11, 2)
            - np.array([shape.height, shape.width]) // 2
        )
        return tuple(int(v) for v in np.clip(place, 0, room))
