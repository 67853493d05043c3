# SPDX-License-Identifier: Apache-2.0
"""Attention inside small 3-D windows, shifted in every other layer: LinGen's TESA.

For an axis of length n, window w and shift s: roll by -s; the token with index i lands at (i - s) mod n,
in window (that // w), and it wrapped around iff i < s. Two tokens attend iff window and wrap flag agree on
all three axes. Axes no longer than their window are one window and are not shifted. Axes that the window
does not divide are padded after the roll, and nobody looks at padding.

Ref: LinGen, arXiv:2412.09856. Swin, arXiv:2103.14030.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.nn.layers import Linear, RMSNorm
from jaxvid.nn.rope import grid_positions, rotary_table, rotate
from jaxvid.ops.attention import attention
from jaxvid.ops.masks import segments
from jaxvid.ops.ring import roll_frames
from jaxvid.sharding import cut_frames, spread_mesh
from jaxvid.types import InputError


def geometry(grid, window, shifted: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The window and shift really used on a grid."""
    used = tuple(min(w, n) for w, n in zip(window, grid, strict=True))
    shift = tuple(w // 2 if shifted and w < n else 0 for w, n in zip(used, grid, strict=True))
    return used, shift


def regions(grid, window, shift) -> np.ndarray:
    """Region of every token, in rolled and padded order: int [T', H', W'], -1 on padding.

    Inside one window, tokens of equal region attend to each other.
    """
    axes = []
    for n, w, s in zip(grid, window, shift, strict=True):
        original = (np.arange(n) + s) % n
        flag = np.where(original < s, 1, 0)
        axes.append(np.concatenate([flag, np.full(-n % w, -1)]))
    t, h, w = np.meshgrid(*axes, indexing="ij")
    return np.where((t < 0) | (h < 0) | (w < 0), -1, 4 * t + 2 * h + w)


def partition(x, window):
    """[B, T', H', W', ...] -> [B * windows, tokens of a window, ...]."""
    b, t, h, w = x.shape[:4]
    i, j, k = window
    x = x.reshape(b, t // i, i, h // j, j, w // k, k, *x.shape[4:])
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, *range(7, x.ndim))
    return x.reshape(-1, i * j * k, *x.shape[7:])


def merge(x, batch, padded, window):
    """The inverse of `partition`."""
    i, j, k = window
    t, h, w = (n // a for n, a in zip(padded, window, strict=True))
    x = x.reshape(batch, t, h, w, i, j, k, *x.shape[2:])
    return x.transpose(0, 1, 4, 2, 5, 3, 6, *range(7, x.ndim)).reshape(batch, *padded, *x.shape[7:])


def _roll(x, shift):
    """Roll [B, T, H, W, D]; frames that are spread over devices go no farther than to the neighbour."""
    x = jnp.roll(x, shift[1:], (2, 3))
    return roll_frames(x, shift[0], spread_mesh())


class Window(nn.Module):
    """3-D window attention with rotary positions and normalised queries and keys."""

    window: tuple[int, int, int] = (8, 4, 4)
    shifted: bool = False
    head: int = 32
    causal = False

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        return None

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], memory=None):
        b, *grid, width = x.shape
        if width % self.head:
            raise InputError(f"width {width} does not split into heads of {self.head}")
        window, shift = geometry(grid, self.window, self.shifted)
        padded = tuple(n + -n % w for n, w in zip(grid, window, strict=True))
        angles = rotary_table(grid_positions(*window), self.head)

        qkv = Linear(3 * width, ("embed", "heads"), name="qkv")(x)
        qkv = _roll(qkv, [-s for s in shift]) if any(shift) else qkv
        qkv = jnp.pad(qkv, [(0, 0), *((0, p - n) for n, p in zip(grid, padded, strict=True)), (0, 0)])
        q, k, v = jnp.split(partition(qkv, window), 3, -1)
        q, k, v = (a.reshape(*a.shape[:2], -1, self.head) for a in (q, k, v))
        q = rotate(RMSNorm(name="q_norm")(q), angles)
        k = rotate(RMSNorm(name="k_norm")(k), angles)

        mask = None
        if any(shift) or padded != tuple(grid):
            ids = partition(regions(grid, window, shift)[None], window)
            ids = jnp.asarray(np.tile(ids, (b, 1)), jnp.int32)
            mask = segments(ids, ids)
        y = attention(q, k, v, mask=mask)

        y = merge(y.reshape(*y.shape[:2], width), b, padded, window)[:, : grid[0], : grid[1], : grid[2]]
        y = _roll(cut_frames(y), shift) if any(shift) else y
        return Linear(width, ("heads", "embed"), name="out")(y), memory
