# SPDX-License-Identifier: Apache-2.0
"""Attention along time alone, at each place of the frame: what video models have that grew out of image models.

Methods that stretch a model beyond its training length edit this attention (`jaxvid.sampling.edits`): `edit` stands in the
place of the attention and has no parameters, so that a trained model can be given one.

Ref: Ho et al., Video Diffusion Models, arXiv:2204.03458.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.nn.layers import Linear, RMSNorm
from jaxvid.nn.rope import grid_positions, rotary_table, rotate
from jaxvid.ops.attention import attention
from jaxvid.types import InputError


class Temporal(nn.Module):
    """Every token looks at the tokens of its place in all frames.

    edit: None, or ``(attend, q, k, v [N, T, heads, K], (B, H, W)) -> out``, called instead of ``attend(q, k, v)``.
    """

    head: int = 32
    edit: Callable[..., Any] | None = None
    causal = False

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        return None

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], memory=None):
        b, frames, rows, columns, width = x.shape
        if width % self.head:
            raise InputError(f"width {width} does not split into heads of {self.head}")
        qkv = Linear(3 * width, ("embed", "heads"), name="qkv")(jnp.moveaxis(x, 1, 3))
        qkv = qkv.reshape(b * rows * columns, frames, 3, -1, self.head)
        angles = rotary_table(grid_positions(frames, 1, 1), self.head)
        q = rotate(RMSNorm(name="q_norm")(qkv[:, :, 0]), angles)
        k = rotate(RMSNorm(name="k_norm")(qkv[:, :, 1]), angles)

        def attend(q, k, v, mask=None):
            return attention(q, k, v, mask=mask)

        grid = (b, rows, columns)
        y = attend(q, k, qkv[:, :, 2]) if self.edit is None else self.edit(attend, q, k, qkv[:, :, 2], grid)
        y = jnp.moveaxis(y.reshape(b, rows, columns, frames, width), 3, 1)
        return Linear(width, ("heads", "embed"), name="out")(y), memory
