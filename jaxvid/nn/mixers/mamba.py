# SPDX-License-Identifier: Apache-2.0
"""Bidirectional Mamba-2 over a rotating scan order, with review tokens: LinGen's MA-branch.

The grid of tokens is laid out as one sequence in one of four orders (a transpose, never a gather), the
sequence is scanned forwards and backwards with shared parameters, and the two results are added. Before
the scan starts, in both directions, the recurrence reads the average-pooled grid ("review tokens"), so
that it has seen the whole video once.

The causal form keeps frame-major orders, scans forwards with a state that can be carried from chunk to
chunk, and backwards only inside a block of frames.

Local letters: P channels per head, N state size, I inner width = expand * D, M review tokens.

Ref: LinGen, arXiv:2412.09856. Mamba-2, arXiv:2405.21060.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxvid.nn.layers import Linear, RMSNorm, along, named, uniform_fan_in
from jaxvid.ops.conv import causal_conv1d
from jaxvid.ops.ssd import ssd
from jaxvid.sharding import cut_channels, cut_frames
from jaxvid.types import InputError

# Order -> axes from slow to fast: spatial row-major, spatial column-major, temporal row-major, temporal
# column-major. Every axis neighbour of a token is its scan neighbour in one of them.
ORDERS = ((0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0))


def to_sequence(x: Num[Array, "B T H W D"], order: int) -> Num[Array, "B L D"]:
    """Lays the grid out in a scan order."""
    axes = ORDERS[order]
    return x.transpose(0, *(a + 1 for a in axes), 4).reshape(x.shape[0], -1, x.shape[-1])


def to_grid(x: Num[Array, "B L D"], grid: tuple[int, int, int], order: int) -> Num[Array, "B T H W D"]:
    """The inverse of `to_sequence`."""
    axes = ORDERS[order]
    y = x.reshape(x.shape[0], *(grid[a] for a in axes), x.shape[-1])
    return y.transpose(0, *(int(a) + 1 for a in np.argsort(axes)), 4)


def pool(x: Float[Array, "B T H W D"], window: tuple[int, int, int]) -> Float[Array, "B t h w D"]:
    """Average over windows; a window that hangs over the border averages what is inside."""
    pad = [(0, -n % w) for n, w in zip(x.shape[1:4], window, strict=True)]

    def sums(a):
        a = jnp.pad(a, [(0, 0), *pad, (0, 0)])
        b, t, h, w, d = a.shape
        i, j, k = window
        return a.reshape(b, t // i, i, h // j, j, w // k, k, d).sum((2, 4, 6))

    ones = np.ones((1, *x.shape[1:4], 1), np.float32)
    return (sums(x.astype(jnp.promote_types(x.dtype, jnp.float32))) / sums(ones)).astype(x.dtype)


def dt_bias_init(key, shape, dtype=jnp.float32):
    """softplus of this is log-uniform in [1e-3, 1e-1]."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1)))
    return dt + jnp.log(-jnp.expm1(-dt))


def a_log_init(key, shape, dtype=jnp.float32):
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


class Mamba(nn.Module):
    """Mamba-2 as a mixer. ``order`` is 0 to 3; ``review`` the pooling window of review tokens or None."""

    order: int = 0
    expand: float = 2
    head: int = 32
    state: int = 32
    groups: int = 1
    conv: int = 4
    review: tuple[int, int, int] | None = (2, 2, 2)
    chunk: int | None = None  # tokens worked on at once; None: what suits the machine
    causal: bool = False
    # frames per block of the causal form: the backward scan stays inside a block, and a shorter clip is one block
    block: int = 1

    def __post_init__(self):
        if self.order not in range(4):
            raise InputError(f"order={self.order} is not a scan order; use 0, 1, 2 or 3")
        if self.causal and (self.order > 1 or self.review is not None):
            raise InputError("a causal scan needs order 0 or 1 (frame-major) and review=None")
        super().__post_init__()

    def sizes(self, width: int) -> tuple[int, int, int]:
        """Inner width, heads, and width of the convolution."""
        inner = int(self.expand * width)
        if inner % self.head or (inner // self.head) % self.groups:
            raise InputError(
                f"inner width {inner} does not split into heads of {self.head} in {self.groups} groups"
            )
        return inner, inner // self.head, inner + 2 * self.groups * self.state

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        """{'conv': the last inputs of the convolution, 'state': float32 [B, heads, P, N]}, or None."""
        if not self.causal:
            return None
        _, heads, conv = self.sizes(width)
        return {
            "conv": jnp.zeros((batch, self.conv - 1, conv), jnp.float32),
            "state": jnp.zeros((batch, heads, self.head, self.state), jnp.float32),
        }

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], memory=None):
        width, grid = x.shape[-1], x.shape[1:4]
        inner, heads, conv = self.sizes(width)
        fused = Linear(
            inner + conv + heads, ("embed", "mlp"), bias=False, init=uniform_fan_in, name="in_proj"
        )(x)
        gate, x, shared, dt = jnp.split(fused, [inner, 2 * inner, inner + conv], -1)
        # Where frames are spread over devices they come together here and heads part instead, so that every scan order
        # is local. What all heads of a group share (B and C) is little, and is copied.
        rest = cut_channels(x, heads), cut_channels(shared, self.groups), cut_channels(dt, heads)

        kernel = self.param("conv_kernel", named(uniform_fan_in, None, "mlp"), (self.conv, conv), jnp.float32)
        bias = self.param("conv_bias", named(nn.initializers.zeros, "mlp"), (conv,), jnp.float32)
        dt_bias = self.param("dt_bias", named(dt_bias_init, None), (heads,), jnp.float32)
        a = -jnp.exp(self.param("A_log", named(a_log_init, None), (heads,), jnp.float32))
        skip = self.param("D", named(nn.initializers.ones, None), (heads,), jnp.float32)

        def scan(seq, state=None, past=None):
            """Convolution and scan of one layout: three arrays [B, L, ...] -> [B, L, I], state, conv inputs."""
            parts, pasts = [], []
            x, shared, dt = seq
            for part, at in ((x, slice(0, inner)), (shared, slice(inner, None))):
                before = None if past is None else past[..., at]
                weights = kernel[:, at].astype(part.dtype), bias[at].astype(part.dtype)
                part, after = causal_conv1d(part, *weights, memory=before)
                parts.append(nn.silu(part))
                pasts.append(after)
            v, (b, c), past = parts[0], jnp.split(parts[1], 2, -1), jnp.concatenate(pasts, -1)
            n, length = v.shape[:2]
            y, state = ssd(
                v.reshape(n, length, heads, self.head),
                jax.nn.softplus(dt.astype(a.dtype) + along(dt_bias, dt).astype(a.dtype)),
                a,
                b.reshape(n, length, self.groups, self.state),
                c.reshape(n, length, self.groups, self.state),
                skip,
                initial_state=state,
                chunk=self.chunk,
            )
            return y.reshape(n, length, inner), state, past

        if self.causal:
            seq = tuple(to_sequence(a, self.order) for a in rest)
            y, memory = self._causal(seq, grid, scan, memory)
        else:
            y = self._both_ways(rest, scan)
        y = cut_frames(to_grid(cut_channels(y, heads), grid, self.order)) * nn.silu(gate)
        y = RMSNorm(1e-5, name="norm")(y)
        return Linear(width, ("mlp", "embed"), bias=False, init=uniform_fan_in, name="out_proj")(y), memory

    def _both_ways(self, rest, scan):
        """Both directions as one batch, beside each other, so that every row stays on its device. Review tokens come
        first in scan time in both of them.

        The input projection has no bias, so pooling its output equals projecting the pooled input.
        """

        def laid_out(a):
            seq = to_sequence(a, self.order)
            both = jnp.stack([seq, seq[:, ::-1]], 1)
            if self.review is not None:
                r = to_sequence(pool(a, self.review), self.order)
                both = jnp.concatenate([jnp.stack([r, r[:, ::-1]], 1), both], 2)
            return both.reshape(-1, *both.shape[2:])

        both = tuple(laid_out(a) for a in rest)
        reviewed = both[0].shape[1] - math.prod(rest[0].shape[1:4])
        y, _, _ = scan(both)
        y = y[:, reviewed:].reshape(-1, 2, y.shape[1] - reviewed, y.shape[2])
        return y[:, 0] + y[:, 1, ::-1]

    def _causal(self, seq, grid, scan, memory):
        frames, tokens = grid[0], grid[1] * grid[2]
        if frames % self.block and (frames > self.block or memory is not None):
            raise InputError(
                f"{frames} frames are not a multiple of block={self.block}; pad them or change block"
            )
        if memory is None:
            ahead, _, _ = scan(seq)
            after = None
        else:
            ahead, state, past = scan(seq, memory["state"], memory["conv"].astype(seq[0].dtype))
            after = {"conv": past.astype(memory["conv"].dtype), "state": state.astype(memory["state"].dtype)}
        block = min(self.block, frames)
        blocks = (a.reshape(-1, block * tokens, a.shape[-1]) for a in seq)
        back, _, _ = scan(tuple(a[:, ::-1] for a in blocks))
        return ahead + back[:, ::-1].reshape(ahead.shape), after
