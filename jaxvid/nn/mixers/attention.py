# SPDX-License-Identifier: Apache-2.0
"""Attention over all tokens of all frames: the DiT baseline, and its causal form with a memory of frames.

The causal form lets a frame look at its own block of frames and at earlier ones, at most ``window`` frames
back. Its memory is a queue of the last ``window`` frames' keys (not yet rotated) and values: rotary
positions are relative, so the queue needs no absolute time.

Ref: DiT, arXiv:2212.09748. Cached causal video diffusion: Ca2-VDM, arXiv:2411.16375.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.nn.layers import Linear, RMSNorm
from jaxvid.nn.rope import grid_positions, rotary_table, rotate
from jaxvid.ops import masks
from jaxvid.ops.attention import attention
from jaxvid.ops.ring import sequence_attention
from jaxvid.sharding import spread_mesh
from jaxvid.types import InputError


class Attention(nn.Module):
    """Full space-time attention. ``causal`` works in blocks of ``block`` frames and looks ``window`` frames back."""

    head: int = 32
    causal: bool = False
    block: int = 1
    window: int | None = None

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        """{'k', 'v': [B, window * tokens, heads, K], 'frames': int32, how many of them are real}, or None."""
        if not self.causal:
            return None
        if self.window is None:
            raise InputError(
                "causal attention without a window has no memory of constant size; give window=frames"
            )
        shape = (batch, self.window * grid[0] * grid[1], width // self.head, self.head)
        return {"k": jnp.zeros(shape), "v": jnp.zeros(shape), "frames": jnp.zeros((), jnp.int32)}

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], memory=None):
        b, frames, rows, columns, width = x.shape
        if width % self.head:
            raise InputError(f"width {width} does not split into heads of {self.head}")
        if self.causal and frames % self.block:
            raise InputError(
                f"{frames} frames are not a multiple of block={self.block}; pad them or change block"
            )
        tokens = rows * columns
        qkv = Linear(3 * width, ("embed", "heads"), name="qkv")(x).reshape(
            b, frames * tokens, 3, -1, self.head
        )
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        q, k = RMSNorm(name="q_norm")(q), RMSNorm(name="k_norm")(k)

        past = 0
        if memory is not None:
            past = self.window
            k = jnp.concatenate([memory["k"].astype(k.dtype), k], 1)
            v = jnp.concatenate([memory["v"].astype(v.dtype), v], 1)
            keep = self.window * tokens
            after = {
                "k": k[:, -keep:].astype(memory["k"].dtype),
                "v": v[:, -keep:].astype(memory["v"].dtype),
                "frames": jnp.minimum(memory["frames"] + frames, self.window),
            }
        angles = rotary_table(grid_positions(past + frames, rows, columns), self.head)
        q, k, mesh = rotate(q, angles[past * tokens :]), rotate(k, angles), spread_mesh()
        if mesh is None or memory is not None:
            y = attention(q, k, v, mask=self._mask(frames, tokens, memory))
        else:
            y = sequence_attention(q, k, v, mesh=mesh, mask=self._rule(tokens))
        y = Linear(width, ("heads", "embed"), name="out")(y.reshape(b, frames, rows, columns, width))
        return y, memory if memory is None else after

    def _rule(self, tokens: int):
        """`_mask` without memory, as a rule: what shards of a sequence can be asked about."""
        if not self.causal:
            return None
        rule = masks.block_causal(self.block)
        if self.window is not None:
            rule = rule & masks.band(self.window, None)
        return masks.frames(rule, tokens)

    def _mask(self, frames: int, tokens: int, memory):
        """Who may look at whom, as booleans over tokens; None when everybody may look at everybody."""
        if not self.causal:
            return None
        past = self.window if memory is not None else 0
        query, key = np.arange(frames)[:, None], np.arange(-past, frames)[None]
        # A stream is cut at block borders, so blocks count from the chunk's first frame.
        allowed = key // self.block <= query // self.block
        if self.window is not None:
            allowed &= query - key <= self.window
        if memory is not None:
            allowed = jnp.asarray(allowed) & (key >= -memory["frames"])
        return jnp.repeat(jnp.repeat(jnp.asarray(allowed), tokens, 0), tokens, 1)
