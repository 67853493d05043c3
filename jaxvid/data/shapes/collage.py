# SPDX-License-Identifier: Apache-2.0
"""Many objects of many scenes pasted over one another: what an autoencoder learns sharp edges from.

A frame of the shapes world is mostly plain ground, and an autoencoder that sees nothing else learns the ground
first and the objects late. A collage has something everywhere.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.shapes.source import ShapesSource

VERSION = 1  # of the pictures


@dataclasses.dataclass(frozen=True)
class CollageSource:
    """Clips of ``source``, a ``share`` of them with up to ``most`` further objects, other grounds and colours pasted in.

    Random access and deterministic like its source. Captions are the source's own and say nothing of what was pasted.
    """

    source: ShapesSource = ShapesSource()
    share: float = 0.5
    most: int = 5

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int, shape: ClipShape) -> str:
        return f"collage-{VERSION}:{self.share:g}:{self.most}:{self.source.key(index, shape)}"

    def clip(self, index: int, shape: ClipShape) -> Sample:
        """Clip ``index``, uint8 ``[T, H, W, 3]``. IndexError outside of ``len(self)``."""
        plain = self.source.clip(index, shape)
        rng = np.random.default_rng([self.source.seed, index, shape.frames])
        if rng.random() >= self.share:
            return plain
        x = self._ground(plain.x.astype(np.float32) / 255, rng)
        for _ in range(int(rng.integers(1, self.most + 1))):
            other = self.source.clip(int(rng.integers(len(self))), shape).x.astype(np.float32) / 255
            x = _paste(x, other, rng)
        return Sample((np.clip(x, 0, 1) * 255).round().astype(np.uint8), plain.captions)

    def _ground(self, x, rng):
        if rng.random() < 0.5:
            x = np.broadcast_to(rng.uniform(0, 1, 3).astype(np.float32), x.shape)
        if rng.random() < 0.3:
            rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in x.shape[1:3])
            slope = rng.uniform(-0.3, 0.3, (2, 3)).astype(np.float32)
            x = x + rows[None, :, None, None] * slope[0] + columns[None, None, :, None] * slope[1]
        return x


def _paste(x, other, rng):
    """What differs from the ground of ``other``, somewhere else and perhaps in other colours, over ``x``."""
    frame = other[0]
    ground = np.median(frame.reshape(-1, 3), 0)
    alpha = np.clip(3 * np.abs(other - ground).max(-1, keepdims=True), 0, 1)
    if rng.random() < 0.4:
        other = np.clip(other[..., rng.permutation(3)] * rng.uniform(0.6, 1.2, 3).astype(np.float32), 0, 1)
    shift = tuple(int(rng.integers(n)) for n in x.shape[1:3])
    alpha, other = (np.roll(a, shift, (1, 2)) for a in (alpha, other))
    return x * (1 - alpha) + other * alpha
