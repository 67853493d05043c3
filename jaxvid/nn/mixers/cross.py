# SPDX-License-Identifier: Apache-2.0
"""Attention from every frame to the caption that speaks about it.

What this mixer remembers is the text, so the text is its memory, and it comes out as it went in:
``{'text' [B, S, L, E], 'mask' bool [B, S, L], 'span' int32 [B, T]}``, a caption per span of frames.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.nn.layers import Linear, RMSNorm
from jaxvid.ops.ring import local_attention
from jaxvid.sharding import spread_mesh
from jaxvid.types import InputError


class Cross(nn.Module):
    """Cross-attention to a caption per time span. A frame whose caption is all padding gets zero."""

    head: int = 32
    causal = True

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        return None

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], memory):
        b, frames, rows, columns, width = x.shape
        if width % self.head:
            raise InputError(f"width {width} does not split into heads of {self.head}")
        text, mask, span = memory["text"].astype(x.dtype), memory["mask"], memory["span"]
        heads = width // self.head
        q = Linear(width, ("embed", "heads"), name="q")(x).reshape(b, frames, -1, heads, self.head)
        kv = Linear(2 * width, ("embed", "heads"), name="kv")(text)
        kv = kv.reshape(*kv.shape[:3], 2, heads, self.head)
        k, v = RMSNorm(name="k_norm")(kv[..., 0, :, :]), kv[..., 1, :, :]
        q = RMSNorm(name="q_norm")(q)
        if text.shape[1] == 1:
            q = q.reshape(b, -1, heads, self.head)
            k, v, mask = k[:, 0], v[:, 0], mask[:, 0]
        else:  # every frame brings the keys of its own caption
            q = q.reshape(b * frames, -1, heads, self.head)
            rows_of = jnp.arange(b)[:, None]
            k, v, mask = (a[rows_of, span].reshape(b * frames, *a.shape[2:]) for a in (k, v, mask))
        y = local_attention(q, k, v, mask[:, None, None, :], spread_mesh() if text.shape[1] == 1 else None)
        y = y.reshape(b, frames, rows, columns, width)
        return Linear(width, ("heads", "embed"), name="out")(y), memory
