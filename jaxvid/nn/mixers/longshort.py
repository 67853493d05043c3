# SPDX-License-Identifier: Apache-2.0
"""Causal attention with two levels of memory: near frames by every token, far frames by a few.

A frame looks at its own block and at the ``window`` frames before it as in `attention`, and at the ``past`` frames before
those through *coarse* tokens: each is made of ``pool`` x ``pool`` neighbours by a projection of its own, and lies, for the
rotary positions, in their middle. A far frame so costs 1 / pool^2 of a near one, in time and in memory.

Coarse keys and values are written beside the fine ones when a frame is finished, from what that layer knew of it then, so
that one clean pass writes both levels and chunks with memory equal the whole under one mask. (FAR's released model runs far
frames through all layers a second time, as a stream of coarse tokens.)

Ref: Gu et al., FAR, arXiv:2503.19325.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.nn.layers import Linear, RMSNorm
from jaxvid.nn.rope import grid_positions, rotary_table, rotate
from jaxvid.ops.attention import attention
from jaxvid.ops.masks import skip_causal
from jaxvid.types import InputError


class LongShort(nn.Module):
    """Blocks of ``block`` frames see ``window`` frames back in full and ``past`` more coarsely. A clip shorter than a
    block is one block."""

    head: int = 32
    window: int = 16
    past: int = 240
    pool: int = 4
    block: int = 1
    causal = True

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        """{'k', 'v': [B, window * tokens, heads, K], 'far_k', 'far_v': [B, (window + past) * coarse tokens, heads, K],
        'frames': int32, how many of them are real}."""
        self._check()
        held = lambda count: jnp.zeros((batch, count, width // self.head, self.head))
        near, far = self.window * grid[0] * grid[1], self._reach * self._few(*grid)
        sizes = {"k": near, "v": near, "far_k": far, "far_v": far}
        return {name: held(size) for name, size in sizes.items()} | {"frames": jnp.zeros((), jnp.int32)}

    @nn.nowrap
    def teaching(self):
        """The memory that says: the sequence is a clean video, then its noisy copy (`Attention.teaching`)."""
        return {"teaching": jnp.zeros(0)}

    @property
    def _reach(self) -> int:
        return self.window + self.past

    def _few(self, rows: int, columns: int) -> int:
        """Coarse tokens of a frame: patches at its edges may reach beyond it."""
        return -(-rows // self.pool) * -(-columns // self.pool)

    def _check(self) -> None:
        if not 1 <= self.block <= self.window or self.past < 0 or self.pool < 1:
            raise InputError(
                f"block={self.block}, window={self.window}, past={self.past}, pool={self.pool}:"
                " wanted 1 <= block <= window, past at least 0, pool at least 1"
            )

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], memory=None):
        teaching = memory is not None and "teaching" in memory
        b, frames, rows, columns, width = x.shape
        self._check()
        if width % self.head:
            raise InputError(f"width {width} does not split into heads of {self.head}")
        clean = frames // 2 if teaching else frames  # of which there are coarse tokens
        past = memory if memory is not None and not teaching else None
        if clean % self.block and (clean > self.block or past is not None):
            raise InputError(
                f"{clean} frames are not a multiple of block={self.block}; pad them or change block"
            )
        q, k, v = self._fine(x)
        far_k, far_v = self._coarse(x[:, :clean])
        seen = None
        if past is not None:
            seen = past["frames"]
            k, v, far_k, far_v = (
                jnp.concatenate([past[name].astype(new.dtype), new], 1)
                for name, new in {"k": k, "v": v, "far_k": far_k, "far_v": far_v}.items()
            )
            kept = {"k": k, "v": v, "far_k": far_k, "far_v": far_v}
            memory = {
                name: a[:, a.shape[1] - past[name].shape[1] :].astype(past[name].dtype)
                for name, a in kept.items()
            }
            memory["frames"] = jnp.minimum(seen + frames, self._reach)

        # places in time, of queries and of near and far keys; the chunk's first frame is 0
        own = np.arange(frames) % clean
        near = own if past is None else np.arange(-self.window, frames)
        far = np.arange(clean) if past is None else np.arange(-self._reach, frames)
        angles = lambda at, side: jnp.asarray(rotary_table(_positions(at, rows, columns, side), self.head))
        q = rotate(q, angles(own, 1))
        keys = jnp.concatenate([rotate(k, angles(near, 1)), rotate(far_k, angles(far, self.pool))], 1)
        mask = self._mask(own, near, far, seen, clean if teaching else 0)
        fine, few = rows * columns, self._few(rows, columns)
        mask = jnp.concatenate([jnp.repeat(mask[0], fine, 1), jnp.repeat(mask[1], few, 1)], 1)
        y = attention(q, keys, jnp.concatenate([v, far_v], 1), mask=jnp.repeat(mask, fine, 0))
        y = Linear(width, ("heads", "embed"), name="out")(y.reshape(b, frames, rows, columns, width))
        return y, memory

    def _fine(self, x):
        b, width = x.shape[0], x.shape[-1]
        qkv = Linear(3 * width, ("embed", "heads"), name="qkv")(x).reshape(
            b, -1, 3, width // self.head, self.head
        )
        q, k = RMSNorm(name="q_norm")(qkv[:, :, 0]), RMSNorm(name="k_norm")(qkv[:, :, 1])
        return q, k, qkv[:, :, 2]

    def _coarse(self, x):
        b, frames, rows, columns, width = x.shape
        p = self.pool
        high, wide = -(-rows // p), -(-columns // p)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, high * p - rows), (0, wide * p - columns), (0, 0)])
        x = x.reshape(b, frames, high, p, wide, p, width)
        x = jnp.moveaxis(x, 3, 4).reshape(b, frames, high, wide, p * p * width)
        kv = Linear(2 * width, ("embed", "heads"), name="far_kv")(x).reshape(
            b, -1, 2, width // self.head, self.head
        )
        return RMSNorm(name="far_norm")(kv[:, :, 0]), kv[:, :, 1]

    def _mask(self, own, near, far, seen, clean: int):
        """(near, far): which frame may look at which, booleans [frames, keys]."""
        query, away = own[:, None], own[:, None] - far[None]
        allowed = near[None] // self.block <= query // self.block
        if clean:  # the near keys are a clean and a noisy video, like the queries
            allowed = skip_causal(self.block, clean).dense(len(own), len(own))
        allowed = allowed & (query - near[None] <= self.window)
        coarse = (away > self.window) & (away <= self._reach)
        if seen is not None:
            allowed, coarse = (m & (at[None] >= -seen) for m, at in ((allowed, near), (coarse, far)))
        return jnp.asarray(allowed), jnp.asarray(coarse)


def _positions(times: np.ndarray, rows: int, columns: int, side: int) -> np.ndarray:
    """(frame, row, column) of the middles of ``side`` x ``side`` patches in frames at ``times``: [L, 3]."""
    grid = grid_positions(len(times), -(-rows // side), -(-columns // side))
    middle = grid[:, 1:] * side + (side - 1) / 2
    return np.concatenate([np.asarray(times)[grid[:, :1]], middle], 1)
