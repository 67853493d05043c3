# SPDX-License-Identifier: Apache-2.0
"""Positions: rotary ones over (frame, row, column) inside attention, sin-cos ones over (row, column) on tokens.

There is no absolute position in time: a model trained on seconds must not be surprised by a minute.

Ref: Su et al. 2021, arXiv:2104.09864 (RoPE).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real


def split_axes(head_width: int) -> tuple[int, int, int]:
    """Channels of a head that turn with frame, row and column: even numbers, time gets the remainder."""
    side = head_width // 3 // 2 * 2
    return head_width - 2 * side, side, side


def rotary_table(
    positions: Real[np.ndarray, "L 3"], head_width: int, theta: float = 100.0, dtype=np.float32
) -> np.ndarray:
    """Angles [L, head_width / 2] for integer (frame, row, column) positions.

    ``theta`` is small because a window is: the slowest channel turns once in a few hundred positions.
    Computed in float64 and rounded once, to ``dtype``.
    """
    angles = []
    for axis, channels in enumerate(split_axes(head_width)):
        rates = theta ** (-np.arange(channels // 2) / max(channels // 2, 1))
        angles.append(np.asarray(positions, np.float64)[:, axis : axis + 1] * rates)
    return np.concatenate(angles, -1).astype(dtype)


def grid_positions(frames: int, rows: int, columns: int, first_frame: int = 0) -> np.ndarray:
    """(frame, row, column) of every token of a [frames, rows, columns] grid in row-major order: int [L, 3]."""
    grid = np.stack(np.meshgrid(np.arange(frames), np.arange(rows), np.arange(columns), indexing="ij"), -1)
    return grid.reshape(-1, 3) + np.array([first_frame, 0, 0])


def rotate(x: Float[Array, "B L H K"], angles) -> Float[Array, "B L H K"]:
    """Turns neighbouring pairs of channels by ``angles [L, K/2]``, in float32."""
    return turn(x, jnp.cos(angles), jnp.sin(angles))


def turn(x: Float[Array, "B L H K"], cos, sin) -> Float[Array, "B L H K"]:
    """`rotate` by cosines and sines [L, K/2] that are known already (where float32 angles are too coarse)."""
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    even, odd = wide[..., 0::2], wide[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.reshape(x.shape).astype(x.dtype)


def sincos_grid(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed sin-cos features of rows and columns, half of the width each: float32 [rows, columns, width]."""
    quarter = width // 4
    rates = 100.0 ** (-np.arange(quarter) / max(quarter, 1))

    def axis(n):
        a = np.arange(n)[:, None] * rates
        return np.concatenate([np.sin(a), np.cos(a)], -1)

    r = np.broadcast_to(axis(rows)[:, None], (rows, columns, 2 * quarter))
    c = np.broadcast_to(axis(columns)[None], (rows, columns, 2 * quarter))
    table = np.concatenate([r, c], -1)
    return np.pad(table, ((0, 0), (0, 0), (0, width - table.shape[-1]))).astype(np.float32)
