# SPDX-License-Identifier: Apache-2.0
"""Attention inside small 3-D windows, shifted in every other layer: LinGen's TESA.

Which tokens share a window is said in `jaxvid.ops.windows`. Axes no longer than their window are one window and are not
shifted.

Ref: LinGen, arXiv:2412.09856. Swin, arXiv:2103.14030.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.nn.layers import Linear, RMSNorm
from jaxvid.nn.rope import rotary_table, turn
from jaxvid.ops.windows import window_attention
from jaxvid.types import InputError


def geometry(grid, window, shifted: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The window and shift really used on a grid."""
    used = tuple(min(w, n) for w, n in zip(window, grid, strict=True))
    shift = tuple(w // 2 if shifted and w < n else 0 for w, n in zip(used, grid, strict=True))
    return used, shift


def places(grid, window, shift, head: int):
    """Cosines and sines [T * H * W, head / 2] of the rotary angles of every token's place in its window.

    Made from a small table per axis; the barrier keeps the compiler from writing all of it into the program.
    """
    found = []
    for make in (np.cos, np.sin):
        parts = []
        for axis, (n, w, s) in enumerate(zip(grid, window, shift, strict=True)):
            one = np.eye(3)[axis : axis + 1]
            channels = np.flatnonzero(rotary_table(one, head)[0])
            table = rotary_table(((np.arange(n) - s) % n % w)[:, None] * one, head)[:, channels]
            shape = [1, 1, 1, len(channels)]
            shape[axis] = n
            parts.append((make(table).reshape(shape), (*grid, len(channels))))
        tables = jax.lax.optimization_barrier([jnp.asarray(table) for table, _ in parts])
        whole = [jnp.broadcast_to(table, shape) for table, (_, shape) in zip(tables, parts, strict=True)]
        found.append(jnp.concatenate(whole, -1).reshape(-1, head // 2))
    return found


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
        cos, sin = places(grid, window, shift, self.head)

        qkv = Linear(3 * width, ("embed", "heads"), name="qkv")(x)
        q, k, v = (a.reshape(b, *grid, -1, self.head) for a in jnp.split(qkv, 3, -1))

        def placed(a):
            flat = a.reshape(b, -1, *a.shape[4:])
            return turn(flat, cos, sin).reshape(a.shape)

        q, k = placed(RMSNorm(name="q_norm")(q)), placed(RMSNorm(name="k_norm")(k))
        y = window_attention(q, k, v, window=window, shift=shift)
        return Linear(width, ("heads", "embed"), name="out")(y.reshape(x.shape)), memory
