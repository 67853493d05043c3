# SPDX-License-Identifier: Apache-2.0
"""Attention over all tokens of all frames: the DiT baseline, and its causal form with a memory of frames.

The causal form lets a frame look at its own block of frames and at earlier ones, at most ``window`` frames
back, and at the first ``sink`` frames of the video however far they are. Its memory is a queue of the last
``window`` frames' keys (not yet rotated) and values, and those of the sink: rotary positions are relative, so only
the sink needs to know how much time has passed.

A frame that has left the queue still acts through frames that saw it: chunks with memory are the whole video under
the banded mask, not a shorter video.

Ref: DiT, arXiv:2212.09748. Cached causal video diffusion: Ca2-VDM, arXiv:2411.16375. Sink: arXiv:2309.17453.
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
from jaxvid.ops.masks import skip_causal
from jaxvid.ops.ring import sequence_attention
from jaxvid.sharding import spread_mesh
from jaxvid.types import InputError


class Attention(nn.Module):
    """Full space-time attention. ``causal`` works in blocks of ``block`` frames and looks ``window`` frames back, and at the
    first ``sink`` frames. A clip shorter than a block (an image, in training) is one block."""

    head: int = 32
    causal: bool = False
    block: int = 1
    window: int | None = None
    sink: int = 0

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        """{'k', 'v': [B, window * tokens, heads, K], 'frames': int32, how many of them are real}, or None.

        With a sink also {'sink_k', 'sink_v': [B, sink * tokens, heads, K]}, and 'frames' counts all frames so far.
        """
        if not self.causal:
            return None
        if self.window is None:
            raise InputError(
                "causal attention without a window has no memory of constant size; give window=frames"
            )
        held = lambda frames: jnp.zeros((batch, frames * grid[0] * grid[1], width // self.head, self.head))
        memory = {"k": held(self.window), "v": held(self.window), "frames": jnp.zeros((), jnp.int32)}
        return memory | ({"sink_k": held(self.sink), "sink_v": held(self.sink)} if self.sink else {})

    @nn.nowrap
    def teaching(self):
        """The memory that says: the sequence is a clean video, then its noisy copy, which sees clean blocks before its own.

        Training so, on all blocks at once, is what `init_memory` leads to one block after the other.
        Ref: ACDiT, arXiv:2412.07720.
        """
        if not self.causal:
            raise InputError("only causal attention is taught with the clean past beside the noisy video")
        return {"teaching": jnp.zeros(0)}

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], memory=None):
        if memory is not None and "teaching" in memory:
            return self._mixed(x, None, x.shape[1] // 2)[0], memory
        return self._mixed(x, memory, 0)

    def _mixed(self, x: Float[Array, "B T H W D"], memory, clean: int):
        """With ``clean`` > 0, the first half of the frames is the clean copy of the second."""
        b, frames, rows, columns, width = x.shape
        if width % self.head:
            raise InputError(f"width {width} does not split into heads of {self.head}")
        length = clean or frames
        if self.causal and length % self.block and (length > self.block or memory is not None):
            raise InputError(
                f"{length} frames are not a multiple of block={self.block}; pad them or change block"
            )
        tokens = rows * columns
        qkv = Linear(3 * width, ("embed", "heads"), name="qkv")(x).reshape(
            b, frames * tokens, 3, -1, self.head
        )
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        q, k = RMSNorm(name="q_norm")(q), RMSNorm(name="k_norm")(k)

        past, sink = 0, 0
        if memory is not None:
            past, sink = self.window, self.sink
            seen = memory["frames"]
            first = {"sink_k": k, "sink_v": v} if sink else {}
            k = jnp.concatenate([memory["k"].astype(k.dtype), k], 1)
            v = jnp.concatenate([memory["v"].astype(v.dtype), v], 1)
            keep = self.window * tokens
            after = {
                "k": k[:, -keep:].astype(memory["k"].dtype),
                "v": v[:, -keep:].astype(memory["v"].dtype),
                "frames": seen + frames if sink else jnp.minimum(seen + frames, self.window),
            }
            after |= {name: _kept(memory[name], new, seen, sink, tokens) for name, new in first.items()}
        positions = grid_positions(past + frames, rows, columns)
        if clean:
            positions = np.concatenate([grid_positions(clean, rows, columns)] * 2)
        table = rotary_table(positions, self.head)
        angles = jnp.asarray(table)
        if sink:
            # angles are linear in the position: the sink's frame i is at i - seen, the chunk's first one at 0
            unit = rotary_table(np.array([[1, 0, 0]]), self.head)
            away = jnp.repeat((past + jnp.arange(sink) - seen).astype(jnp.float32), tokens)[:, None]
            still = rotary_table(grid_positions(1, rows, columns), self.head)
            angles = jnp.concatenate([np.tile(still, (sink, 1)) + away * unit, angles])
            k = jnp.concatenate([memory["sink_k"].astype(k.dtype), k], 1)
            v = jnp.concatenate([memory["sink_v"].astype(v.dtype), v], 1)
        q, k, mesh = rotate(q, table[past * tokens :]), rotate(k, angles), spread_mesh()
        if mesh is None or memory is not None or clean or self.sink:
            y = attention(q, k, v, mask=self._mask(frames, tokens, memory, clean))
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

    def _mask(self, frames: int, tokens: int, memory, clean: int):
        """Who may look at whom, as booleans over tokens; None when everybody may look at everybody."""
        if not self.causal:
            return None
        past = self.window if memory is not None else 0
        query, key = np.arange(frames)[:, None], np.arange(-past, frames)[None]
        # A stream is cut at block borders, so blocks count from the chunk's first frame.
        allowed = key // self.block <= query // self.block
        if clean:
            allowed = skip_causal(self.block, clean).dense(frames, frames)
            query, key = query % clean, key % clean
        if self.window is not None:
            near = query - key <= self.window
            if memory is None:
                near |= key < self.sink
            elif self.sink:
                near = near | (key + memory["frames"] < self.sink)
            allowed = allowed & near
        if memory is not None:
            allowed = jnp.asarray(allowed) & (key >= -memory["frames"])
            if self.sink:  # those that the queue does not hold any more
                left = jnp.arange(self.sink)[None] < memory["frames"] - self.window
                allowed = jnp.concatenate([jnp.broadcast_to(left, (frames, self.sink)), allowed], 1)
        return jnp.repeat(jnp.repeat(jnp.asarray(allowed), tokens, 0), tokens, 1)


def _kept(old, new, seen, sink: int, tokens: int):
    """The sink's keys or values [B, sink * tokens, ...] after a chunk's: frame i is the chunk's where i >= seen."""
    frame = jnp.arange(sink)
    frames = lambda a: a.reshape(a.shape[0], -1, tokens, *a.shape[2:])
    coming = jnp.take(frames(new), jnp.clip(frame - seen, 0, new.shape[1] // tokens - 1), axis=1)
    here = (frame < seen)[None, :, None, None, None]
    return jnp.where(here, frames(old), coming.astype(old.dtype)).reshape(old.shape)
