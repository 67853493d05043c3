# SPDX-License-Identifier: Apache-2.0
"""The selective scan of Mamba-2 for TPU (Pallas, Mosaic): forward and backward, groups, initial and final state.

Letters: B batch, L tokens, H heads, P head width, G groups of R = H/G heads that share B and C, N state size, Q tokens of
a chunk. With a = dt A, cs its running sum inside a chunk, i and j tokens of it and h the state that enters it:

    y_i = sum_{j <= i} (C_i . B_j) exp(cs_i - cs_j) dt_j x_j + exp(cs_i) h C_i
    h   <- exp(cs_last) h + sum_j exp(cs_last - cs_j) dt_j x_j B_j^T

A TPU walks its grid in order, so that chunk states, the pass between chunks and the scan inside them are one kernel: the
states of all heads of a group stay in fast memory while the grid goes over chunks and, innermost, over heads. C B^T is
made once per chunk for all heads. Tokens lie across the lanes, x as [P, Q]: numbers per token (dt, cs) are rows then,
and every product but two of the backward pass is a plain one. The running sums and what depends on A are left to XLA.

The backward pass goes over the chunks from the last to the first and carries the gradient of the state; the states that
entered each chunk are kept in x's dtype, in which the products read them anyway.

Ref: Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Array = Any
STATE_LIMIT = 8 * 2**20  # bytes of the states of one group in fast memory


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tokens of a chunk (a multiple of 128), and at most so many heads per grid step."""

    chunk: int = 128
    heads: int = 8
    vmem_bytes: int = 64 * 2**20


def refusal(x: Any, B: Any, sizes: Tiles | None = None) -> str | None:
    """Why these arrays (or their shapes and dtypes) cannot be served; None if they can."""
    sizes = sizes or Tiles()
    width, state, per_group = x.shape[-1], B.shape[-1], x.shape[2] // B.shape[2]
    if x.dtype not in (jnp.float32, jnp.bfloat16) or B.dtype != x.dtype:
        return f"takes bfloat16 or float32, the same for x, B and C, not {x.dtype} and {B.dtype}"
    if width % 16 or state % 16:
        return f"takes head widths and state sizes that are multiples of 16, not {width} and {state}"
    if sizes.chunk % 128:
        return f"takes chunks of a multiple of 128 tokens, not {sizes.chunk}"
    if 4 * per_group * width * state > STATE_LIMIT:
        return f"keeps at most {STATE_LIMIT >> 20} MiB of states per group, not {per_group} x {width} x {state} numbers"
    return None


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    initial_state: Array,
    *,
    sizes: Tiles | None = None,
    interpret: Any = False,
) -> tuple[Array, Array]:
    """x [B,L,H,P], dt [B,L,H] > 0, A [H] < 0, B and C [B,L,G,N], initial_state [B,H,P,N] -> y [B,L,H,P], state [B,H,P,N].

    y is float32 or x's dtype when that is smaller, the state float32; sums are in float32. Differentiable (reverse
    mode) in everything. Raises NotImplementedError with a reason for what `refusal` refuses.
    """
    sizes = sizes or Tiles()
    why = refusal(x, B, sizes)
    if why:
        raise NotImplementedError(f"the TPU scan kernel {why}")
    batch, length, heads, width = x.shape
    groups, chunk = B.shape[2], sizes.chunk
    per_group = heads // groups
    missing = -length % chunk  # padded dt is 0, which leaves the state alone

    def padded(v):
        return jnp.pad(v, ((0, 0), (0, missing)) + ((0, 0),) * (v.ndim - 2))

    dt = padded(dt.astype(jnp.float32))
    a = (dt * A.astype(jnp.float32).reshape(1, 1, heads)).reshape(batch, -1, chunk, heads)
    cs = jnp.cumsum(a, axis=2).reshape(dt.shape)
    row = lambda v: jnp.moveaxis(v, 1, 2).reshape(batch, groups, per_group, 1, -1)  # [B, G, R, 1, L]
    y, state = _scan(
        _Call(sizes, interpret),
        jnp.transpose(padded(x), (0, 2, 3, 1)).reshape(batch, groups, per_group, width, -1),
        row(dt),
        row(cs),
        jnp.moveaxis(padded(B), 1, 2),
        jnp.moveaxis(padded(C.astype(B.dtype)), 1, 2),
        initial_state.astype(jnp.float32).reshape(batch, groups, per_group, width, -1),
    )
    y = jnp.transpose(y.reshape(batch, heads, width, -1), (0, 3, 1, 2))[:, :length]
    return y, state.reshape(initial_state.shape)


@dataclasses.dataclass(frozen=True)
class _Call:
    sizes: Tiles
    interpret: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(call, x, dt, cs, B, C, state):
    return _run(call, x, dt, cs, B, C, state, keep=False)


def _forward(call, x, dt, cs, B, C, state):
    y, final, entering = _run(call, x, dt, cs, B, C, state, keep=True)
    return (y, final), (x, dt, cs, B, C, entering)


def _run(call, x, dt, cs, B, C, state, keep):
    grid = _Grid(call, x, B)
    outputs = [(x, grid.tokens), (state, grid.states)]
    if keep:
        entering = jax.ShapeDtypeStruct((grid.chunks, *state.shape), x.dtype)
        outputs.append((entering, grid.entering))
    return grid.call(
        _forward_kernel,
        [
            (x, grid.tokens),
            (dt, grid.rows),
            (cs, grid.rows),
            (B, grid.shared),
            (C, grid.shared),
            (state, grid.states),
        ],
        outputs,
        [(grid.steps, grid.heads * grid.width, grid.state), (grid.chunk, grid.chunk)],
    )


def _backward(call, saved, gradients):
    x, dt, cs, B, C, entering = saved
    d_y, d_final = gradients
    grid = _Grid(call, x, B, backwards=True)
    dx, ddt, dcs, dB, dC, d_state = grid.call(
        _backward_kernel,
        [
            (x, grid.tokens),
            (dt, grid.rows),
            (cs, grid.rows),
            (B, grid.shared),
            (C, grid.shared),
            (entering, grid.entering),
            (d_y.astype(x.dtype), grid.tokens),
            (d_final.astype(jnp.float32), grid.states),
        ],
        [
            (x, grid.tokens),
            (dt, grid.rows),
            (cs, grid.rows),
            (jax.ShapeDtypeStruct(B.shape, jnp.float32), grid.shared),
            (jax.ShapeDtypeStruct(C.shape, jnp.float32), grid.shared),
            (d_final, grid.states),
        ],
        [
            (grid.steps, grid.heads * grid.width, grid.state),
            (grid.chunk, grid.chunk),
            (grid.chunk, grid.chunk),
        ],
    )
    return dx, ddt, dcs, dB.astype(B.dtype), dC.astype(C.dtype), d_state


_scan.defvjp(_forward, _backward)


class _Grid:
    """(batch, group, chunk, heads): blocks of arrays, chunks from the last to the first when ``backwards``."""

    def __init__(self, call, x, B, backwards=False):
        self.call_ = call
        batch, groups, per_group, self.width, length = x.shape
        self.state, self.chunk = B.shape[-1], call.sizes.chunk
        self.heads = max(n for n in range(1, call.sizes.heads + 1) if per_group % n == 0)
        self.steps, self.chunks = per_group // self.heads, length // self.chunk
        self.shape = (batch, groups, self.chunks, self.steps)
        self.precise = x.dtype == jnp.float32
        c = (lambda n: self.chunks - 1 - n) if backwards else (lambda n: n)
        heads, width, state, chunk = self.heads, self.width, self.state, self.chunk
        self.tokens = pl.BlockSpec((None, None, heads, width, chunk), lambda b, g, n, r: (b, g, r, 0, c(n)))
        self.rows = pl.BlockSpec((None, None, heads, 1, chunk), lambda b, g, n, r: (b, g, r, 0, c(n)))
        self.shared = pl.BlockSpec((None, None, chunk, state), lambda b, g, n, r: (b, g, c(n), 0))
        # of the whole group: a block may be written in consecutive steps only
        self.states = pl.BlockSpec((None, None, per_group, width, state), lambda b, g, n, r: (b, g, 0, 0, 0))
        self.entering = pl.BlockSpec(
            (None, None, None, heads, width, state), lambda b, g, n, r: (c(n), b, g, r, 0, 0)
        )

    def call(self, kernel, inputs, outputs, scratch):
        return pl.pallas_call(
            functools.partial(kernel, self, len(outputs)),
            out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for like, _ in outputs],
            grid=self.shape,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
                vmem_limit_bytes=self.call_.sizes.vmem_bytes,
            ),
            interpret=self.call_.interpret,
            name=f"ssd{kernel.__name__}",
        )(*(x for x, _ in inputs))

    def dot(self, a, b, contract):
        """a b with the axes given contracted, summed in float32."""
        precision = jax.lax.Precision.HIGHEST if self.precise else jax.lax.Precision.DEFAULT
        return jax.lax.dot_general(
            a,
            b,
            ((contract[:1], contract[1:]), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )

    def of_step(self, step):
        """The heads of a step among those of the group."""
        return pl.ds(step * self.heads, self.heads)

    def head(self, r):
        """The rows of head r among those of a step."""
        return slice(r * self.width, (r + 1) * self.width)

    def decay(self, cs):
        """exp(cs_i - cs_j) for j <= i, else 0: [j, i] of cs [1, Q]."""
        full = (self.chunk, self.chunk)
        cs = jnp.broadcast_to(cs, full)
        j, i = (jax.lax.broadcasted_iota(jnp.int32, full, axis) for axis in (0, 1))
        return jnp.exp(jnp.where(j <= i, jnp.minimum(cs - jnp.transpose(cs), 0), -jnp.inf))


def _forward_kernel(grid, outputs, x, dt, cs, B, C, initial, y, final, *rest):
    entering, (state, scores) = rest[: outputs - 2], rest[outputs - 2 :]
    chunk, step = pl.program_id(2), pl.program_id(3)
    dtype = x.dtype

    @pl.when(chunk == 0)
    def _():
        state[step] = initial[grid.of_step(step)].reshape(state.shape[1:])

    @pl.when(step == 0)
    def _():
        scores[...] = grid.dot(B[...], C[...], (1, 1))  # [j, i]

    h = state[step]  # [heads P, N]
    if entering:
        entering[0][...] = h.reshape(entering[0].shape).astype(dtype)
    reached = grid.dot(h.astype(dtype), C[...], (1, 1))
    lasting = []
    for r in range(grid.heads):
        sums, times = cs[r], dt[r]
        moved = x[r].astype(jnp.float32) * times  # [P, Q]
        mixed = (scores[...] * grid.decay(sums)).astype(dtype)
        inside = grid.dot(moved.astype(dtype), mixed, (1, 0))
        y[r] = (inside + reached[grid.head(r)] * jnp.exp(sums)).astype(y.dtype)
        lasting.append((moved * jnp.exp(jnp.minimum(sums[:, -1:] - sums, 0))).astype(dtype))
    added = grid.dot(jnp.concatenate(lasting, 0), B[...], (1, 0))
    for r in range(grid.heads):
        part = grid.head(r)
        state[step, part] = jnp.exp(cs[r, :, -1:]) * h[part] + added[part]

    @pl.when(chunk == grid.chunks - 1)
    def _():
        final[grid.of_step(step)] = state[step].reshape(grid.heads, grid.width, grid.state)


def _backward_kernel(
    grid,
    outputs,
    x,
    dt,
    cs,
    B,
    C,
    entering,
    d_y,
    d_final,
    dx,
    ddt,
    dcs,
    dB,
    dC,
    d_initial,
    d_state,
    scores,
    d_scores,
):
    del outputs
    chunk, step = pl.program_id(2), pl.program_id(3)
    dtype = x.dtype

    @pl.when(chunk == 0)
    def _():
        d_state[step] = d_final[grid.of_step(step)].reshape(d_state.shape[1:])

    @pl.when(step == 0)
    def _():
        scores[...] = grid.dot(B[...], C[...], (1, 1))
        d_scores[...] = jnp.zeros_like(d_scores)
        dB[...] = jnp.zeros_like(dB)
        dC[...] = jnp.zeros_like(dC)

    d_left = d_state[step]  # of the state that leaves the chunk, [heads P, N]
    h = entering[...].reshape(d_left.shape)
    reached = grid.dot(h, C[...], (1, 1))  # [heads P, i]
    asked = grid.dot(d_left.astype(dtype), B[...], (1, 1))  # [heads P, j]
    lasting, leaving = [], []
    for r in range(grid.heads):
        part = grid.head(r)
        sums, times = cs[r], dt[r]
        last = sums[:, -1:]
        left = jnp.exp(jnp.minimum(last - sums, 0))
        own = x[r].astype(jnp.float32)
        moved = own * times
        decay = grid.decay(sums)
        mixed = scores[...] * decay
        out = d_y[r].astype(jnp.float32) * jnp.exp(sums)
        d_mixed = grid.dot(moved.astype(dtype), d_y[r], (0, 0))  # [j, i]
        d_scores[...] += d_mixed * decay
        kept = asked[part] * left
        d_moved = grid.dot(d_y[r], mixed.astype(dtype), (1, 1)) + kept
        rise = d_mixed * mixed  # the gradient of cs_i - cs_j: what cs_i gains cs_j loses, to the last bit
        dx[r] = (d_moved * times).astype(dx.dtype)
        ddt[r] = jnp.sum(d_moved * own, 0, keepdims=True)
        # exponents: cs_i - cs_j inside, cs_i for what the state adds, cs_last - cs_j for what stays, cs_last for h
        at_last = jnp.sum(moved * kept) + jnp.sum(jnp.exp(last) * d_left[part] * h[part].astype(jnp.float32))
        lane = jax.lax.broadcasted_iota(jnp.int32, sums.shape, 1)
        dcs[r] = (
            jnp.sum(rise - jnp.transpose(rise), 0, keepdims=True)
            + jnp.sum(out * reached[part] - moved * kept, 0, keepdims=True)
            + jnp.where(lane == grid.chunk - 1, at_last, 0)
        )
        lasting.append((moved * left).astype(dtype))
        leaving.append(out.astype(dtype))
    lasting, leaving = jnp.concatenate(lasting, 0), jnp.concatenate(leaving, 0)
    dB[...] += grid.dot(lasting, d_left.astype(dtype), (0, 0))
    dC[...] += grid.dot(leaving, h, (0, 0))
    d_entering = grid.dot(leaving, C[...], (1, 0))
    for r in range(grid.heads):
        part = grid.head(r)
        d_state[step, part] = jnp.exp(cs[r, :, -1:]) * d_left[part] + d_entering[part]

    @pl.when(step == grid.steps - 1)
    def _():
        both = d_scores[...].astype(dtype)
        dB[...] += grid.dot(both, C[...], (1, 0))
        dC[...] += grid.dot(both, B[...], (0, 0))

    @pl.when(chunk == grid.chunks - 1)
    def _():
        d_initial[grid.of_step(step)] = d_state[step].reshape(grid.heads, grid.width, grid.state)
