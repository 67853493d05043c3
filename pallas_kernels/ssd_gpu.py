# SPDX-License-Identifier: Apache-2.0
"""The selective scan of Mamba-2 for Hopper GPUs: its quadratic part, inside chunks, as kernels (Pallas, Mosaic GPU).

Letters: B batch, L tokens, H heads, P head width, G groups of R = H/G heads that share B and C, N state size, Q tokens of
a chunk. With cs the running sum of dt A inside a chunk, i and j tokens of it and h the state that enters it:

    y_i = sum_{j <= i} (C_i . B_j) exp(cs_i - cs_j) dt_j x_j + exp(cs_i) h C_i          the kernel
    h   <- exp(cs_last) h + sum_j exp(cs_last - cs_j) dt_j x_j B_j^T                     two products and a scan, in XLA

A block serves a (head, chunk, batch): TMA brings x, B, C and states to shared memory, two warpgroups take 64 tokens each,
and the [Q, Q] matrices live in registers only. The backward pass looks at them twice, with i down the rows (dC, and what
cs_i gains) and with j down the rows (dx, dB, and what cs_j loses); dB and dC leave per head and are summed by XLA. The pass
between chunks is a scan in XLA in both directions.

Ref: Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.load_gpu import load

Array = Any
ROWS, WORKERS = 64, 2
CHUNK = ROWS * WORKERS
WIDE, ROW, COLUMN = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def refusal(x: Any, B: Any) -> str | None:
    """Why these arrays (or their shapes and dtypes) cannot be served; None if they can."""
    if x.dtype not in (jnp.float16, jnp.bfloat16) or B.dtype != x.dtype:
        return f"takes bfloat16 or float16, the same for x, B and C, not {x.dtype} and {B.dtype}"
    if x.shape[-1] != 64 or B.shape[-1] not in (64, 128):
        return f"takes heads of width 64 and states of 64 or 128, not {x.shape[-1]} and {B.shape[-1]}"
    return None


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    initial_state: Array,
    *,
    interpret: Any = None,
) -> tuple[Array, Array]:
    """x [B,L,H,P], dt [B,L,H] > 0, A [H] < 0, B and C [B,L,G,N], initial_state [B,H,P,N] -> y [B,L,H,P], state [B,H,P,N].

    y has x's dtype, the state is float32; sums are in float32. Differentiable (reverse mode) in everything.
    interpret: ``plgpu.InterpretGPUParams`` to run on a CPU.

    Raises NotImplementedError with a reason for what `refusal` refuses.
    """
    why = refusal(x, B)
    if why:
        raise NotImplementedError(f"the GPU scan kernel {why}")
    length = x.shape[1]
    missing = -length % CHUNK  # padded dt is 0, which leaves the state alone
    pad = lambda v: jnp.pad(v, ((0, 0), (0, missing)) + ((0, 0),) * (v.ndim - 2))
    dt, C = dt.astype(jnp.float32), C.astype(B.dtype)
    state = initial_state.astype(jnp.float32)
    y, state = _ssd(interpret, pad(x), pad(dt), A.astype(jnp.float32), pad(B), pad(C), state)
    return y[:, :length], state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ssd(interpret, x, dt, A, B, C, state):
    return _forward(interpret, x, dt, A, B, C, state)[0]


def _forward(interpret, x, dt, A, B, C, state):
    parts = _Chunks(x, dt, A, B, C)
    entering, final = _between(parts.decays(), parts.added(), state, reverse=False)
    entering = entering.astype(x.dtype)
    width, size = x.shape[-1], B.shape[-1]
    (y,) = _call(
        interpret,
        _forward_body,
        parts.per_group,
        [x, B, C, entering, *parts.per_token()],
        [x],
        [(CHUNK, width), (CHUNK, size), (CHUNK, size), (width, size)],
    )
    return (y, final), (x, dt, A, B, C, entering)


def _backward(interpret, saved, gradients):
    x, dt, A, B, C, entering = saved
    d_y, d_final = gradients
    d_y = d_y.astype(x.dtype)
    parts = _Chunks(x, dt, A, B, C)
    width, size = x.shape[-1], B.shape[-1]
    leaving, d_state = _between(parts.decays(), parts.asked(d_y), d_final, reverse=True)
    per_token = jax.ShapeDtypeStruct((x.shape[0], x.shape[2], parts.x.shape[1], CHUNK), jnp.float32)
    per_head = jax.ShapeDtypeStruct((*x.shape[:3], size), x.dtype)
    dx, dB, dC, gained, lost, moved, ddt = _call(
        interpret,
        _backward_body,
        parts.per_group,
        [x, B, C, entering, d_y, leaving.astype(x.dtype), *parts.per_token()],
        [x, per_head, per_head, per_token, per_token, per_token, per_token],
        [(CHUNK, width), (CHUNK, size), (CHUNK, size), (width, size), (CHUNK, width), (width, size)],
    )
    summed = lambda v, like: (
        v.reshape(*like.shape[:3], -1, size).astype(jnp.float32).sum(3).astype(like.dtype)
    )
    kept = parts.decays() * jnp.einsum("bchpn,bchpn->bch", leaving, entering.astype(jnp.float32))
    at_last = moved.sum(-1) + jnp.moveaxis(kept, 1, 2)
    dcs = (gained - lost - moved).at[..., -1].add(at_last)
    da = jnp.flip(jnp.cumsum(jnp.flip(dcs, -1), -1), -1)  # a token's a is in all sums behind it
    tokens = lambda v: jnp.transpose(v, (0, 2, 3, 1)).reshape(dt.shape)
    da, ddt = tokens(da), tokens(ddt)
    dA = (da * dt).sum((0, 1))
    return dx, ddt + da * A.reshape(1, 1, -1), dA, summed(dB, B), summed(dC, C), d_state


_ssd.defvjp(_forward, _backward)


class _Chunks:
    """The arrays cut in chunks: [B, chunks, Q, ...]."""

    def __init__(self, x, dt, A, B, C):
        cut = lambda v: v.reshape(v.shape[0], -1, CHUNK, *v.shape[2:])
        self.x, self.dt, self.B, self.C = cut(x), cut(dt), cut(B), cut(C)
        self.cs = jnp.cumsum(self.dt * A.reshape(1, 1, 1, -1), axis=2)
        self.groups, self.per_group = B.shape[2], x.shape[2] // B.shape[2]

    def grouped(self, v):
        """[..., H, last] -> [..., G, R, last]."""
        return v.reshape(*v.shape[:3], self.groups, self.per_group, *v.shape[4:])

    def decays(self):
        """What a chunk leaves of the state that enters it: [B, chunks, H]."""
        return jnp.exp(self.cs[:, :, -1])

    def added(self):
        """What a chunk adds to the state, float32 [B, chunks, H, P, N]."""
        left = jnp.exp(jnp.minimum(self.cs[:, :, -1:] - self.cs, 0)) * self.dt
        moved = (self.x.astype(jnp.float32) * left[..., None]).astype(self.x.dtype)
        new = jnp.einsum(
            "bcqgrp,bcqgn->bcgrpn", self.grouped(moved), self.B, preferred_element_type=jnp.float32
        )
        return new.reshape(*new.shape[:2], -1, *new.shape[4:])

    def asked(self, d_y):
        """What the outputs of a chunk want of the state that enters it, float32 [B, chunks, H, P, N]."""
        wanted = (d_y.astype(jnp.float32).reshape(self.x.shape) * jnp.exp(self.cs)[..., None]).astype(
            self.x.dtype
        )
        new = jnp.einsum(
            "bcqgrp,bcqgn->bcgrpn", self.grouped(wanted), self.C, preferred_element_type=jnp.float32
        )
        return new.reshape(*new.shape[:2], -1, *new.shape[4:])

    def per_token(self):
        """dt, cs, and what is left of a token at the end of its chunk: [B, H, chunks, Q]."""
        left = jnp.exp(jnp.minimum(self.cs[:, :, -1:] - self.cs, 0))
        return [jnp.transpose(v, (0, 3, 1, 2)) for v in (self.dt, self.cs, left)]


def _between(decays, added, state, reverse):
    """The states that enter each chunk [B, chunks, H, P, N], and the one behind the last; or their gradients, backwards."""

    def step(h, now):
        decay, new = now
        return decay[..., None, None] * h + new, h

    last, states = lax.scan(
        step, state, (jnp.moveaxis(decays, 1, 0), jnp.moveaxis(added, 1, 0)), unroll=8, reverse=reverse
    )
    return jnp.moveaxis(states, 0, 1), last


class _Block:
    """A warpgroup in the block of a (head, chunk, batch)."""

    def __init__(self, interpret, per_group, out, line, spilled):
        self.interpret, self.out, self.line, self.spilled = interpret, out, line, spilled
        self.head, self.chunk, self.batch = (lax.axis_index(name) for name in ("head", "chunk", "batch"))
        self.me = lax.axis_index("warpgroup")
        self.group = lax.div(self.head, jnp.int32(per_group))
        self.mine = pl.ds(self.me * ROWS, ROWS)
        self.tokens = pl.ds(self.chunk * CHUNK, CHUNK)
        self.my_tokens = pl.ds(self.chunk * CHUNK + self.me * ROWS, ROWS)

    def inputs(self, x, B, C):
        shared = (self.batch, self.tokens, self.group)
        return x.at[self.batch, self.tokens, self.head], B.at[shared], C.at[shared]

    def state(self, h):
        return h.at[self.batch, self.chunk, self.head]

    def row(self, v):
        return v.at[self.batch, self.head, self.chunk]

    def fetch(self, sources, buffers, came):
        """Fill the buffers, for both warpgroups."""

        @pl.when(self.me == 0)
        def _():
            for source, buffer in zip(sources, buffers, strict=True):
                plgpu.copy_gmem_to_smem(source, buffer, came)

        plgpu.barrier_wait(came)

    def store_row(self, value, out):
        """Write a number per token of this warpgroup."""
        self.line.at[self.me][...] = value
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(self.line.at[self.me], out.at[self.batch, self.head, self.chunk, self.mine])
        plgpu.wait_smem_to_gmem(0)

    def numbers(self, dt, cs, left):
        """Where the five [Q] buffers come from: down the rows dt, cs, left, across the columns dt, cs."""
        return [self.row(v) for v in (dt, cs, left, dt, cs)]

    def down(self, numbers):
        """dt, cs, left of this warpgroup's rows."""
        return [load(v.at[self.mine], layout=ROW) for v in numbers[:3]]

    def across(self, numbers, which):
        """dt (0) or cs (1) over the columns of a tile: many registers, so loaded where it is needed."""
        return _over_columns(load(numbers[3 + which], layout=COLUMN), (ROWS, CHUNK))

    def decay(self, numbers, row, flipped=False):
        """exp(cs_i - cs_j) for j <= i, else 0; i down the rows, or j if ``flipped``."""
        shape = (ROWS, CHUNK)
        mine = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=ROW) + self.me * ROWS
        other = plgpu.broadcasted_iota(jnp.int32, (CHUNK,), 0, layout=COLUMN)
        ahead = _over_rows(mine, shape) - _over_columns(other, shape)
        rise = _over_rows(row, shape) - self.across(numbers, 1)
        ahead, rise = (-ahead, -rise) if flipped else (ahead, rise)
        return jnp.exp(jnp.where(ahead >= 0, jnp.minimum(rise, 0.0), -1e30))

    def product(self, a, b, sums=None):
        """sums + a b in float32 [64, ...]; a in shared memory, or in registers as numbers."""
        shape = (ROWS, b.shape[1])
        if not isinstance(a, jax.Array):

            def multiply(acc):
                plgpu.wgmma(acc, a, b)
                return acc[...]

            found = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))
            return found if sums is None else sums + found
        if self.interpret is None:
            sums = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), WIDE) if sums is None else sums
            return pl.run_state(lambda acc: plgpu.wgmma(acc, a, b))(plgpu.ACC.init(sums))
        mine = self.spilled.at[self.me]  # the interpreter wants both factors in shared memory
        mine[...] = a
        plgpu.commit_smem()
        return self.product(mine, b, sums)

    def store(self, value, out):
        """Write [64, ...] to this warpgroup's tokens of ``out``."""
        buffer = next(v for v in self.out if v.shape[-1] == value.shape[1]).at[self.me]
        buffer[...] = value.astype(out.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(buffer, out.at[self.batch, self.my_tokens, self.head])
        plgpu.wait_smem_to_gmem(0)


def _call(interpret, body, per_group, inputs, outputs, buffers):
    """One block per (head, chunk, batch), with those [rows, width] buffers and five of [Q] numbers."""
    x, B = inputs[:2]
    dtype = x.dtype
    swizzle = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    matrix = lambda *shape: plgpu.SMEM(shape, dtype, transforms=swizzle)
    count = len(inputs) + len(outputs)

    def kernel(*refs):
        refs, (buffers, numbers, out, line, spilled, came) = refs[:count], refs[count:]
        body(_Block(interpret, per_group, out, line, spilled), refs, buffers, numbers, came)

    kernel.__name__ = f"ssd{body.__name__}"
    options = {} if interpret is None else {"interpret": interpret}
    return plgpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(like.shape, like.dtype) for like in outputs],
        scratch_types=[
            [matrix(*shape) for shape in buffers],
            [plgpu.SMEM((CHUNK,), jnp.float32) for _ in range(5)],
            [matrix(WORKERS, ROWS, width) for width in sorted({x.shape[-1], B.shape[-1]})],
            plgpu.SMEM((WORKERS, ROWS), jnp.float32),
            matrix(WORKERS, ROWS, CHUNK) if interpret is not None else [],
            plgpu.Barrier(num_arrivals=len(buffers) + 5),
        ],
        grid=(x.shape[2], x.shape[1] // CHUNK, x.shape[0]),
        grid_names=("head", "chunk", "batch"),
        num_threads=WORKERS,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **options,
    )(*inputs)


def _over_rows(v, shape):
    return lax.broadcast_in_dim(v, shape, [0])


def _over_columns(v, shape):
    return lax.broadcast_in_dim(v, shape, [1])


def _forward_body(block, refs, buffers, numbers, came):
    x, B, C, h, dt, cs, left, y = refs
    x_here, B_here, C_here, h_here = buffers
    sources = *block.inputs(x, B, C), block.state(h), *block.numbers(dt, cs, left)
    block.fetch(sources, (*buffers, *numbers), came)
    _, row, _ = block.down(numbers)
    mine = C_here.at[block.mine]
    mixed = block.product(mine, B_here.transpose((1, 0)))
    mixed = mixed * block.decay(numbers, row)
    mixed = (mixed * block.across(numbers, 0)).astype(x.dtype)
    out = block.product(mine, h_here.transpose((1, 0)))
    block.store(block.product(mixed, x_here, out * _over_rows(jnp.exp(row), out.shape)), y)


def _backward_body(block, refs, buffers, numbers, came):
    x, B, C, h, d_y, leaving, dt, cs, left, dx, dB, dC, gained, lost, moved, ddt = refs
    x_here, B_here, C_here, h_here, d_y_here, leaving_here = buffers
    sources = *block.inputs(x, B, C), block.state(h), d_y.at[block.batch, block.tokens, block.head]
    sources = *sources, block.state(leaving), *block.numbers(dt, cs, left)
    block.fetch(sources, (*buffers, *numbers), came)
    shape, dtype = (ROWS, CHUNK), x.dtype
    my_times, row, my_left = block.down(numbers)
    my_x, my_B, my_C, my_d_y = (v.at[block.mine] for v in (x_here, B_here, C_here, d_y_here))
    across = lambda v: v.transpose((1, 0))
    wide = lambda v: load(v, layout=WIDE).astype(jnp.float32)

    # i down the rows
    change = block.product(my_d_y, across(x_here)) * block.decay(numbers, row)
    change = change * block.across(numbers, 0)  # of C_i . B_j
    from_start = jnp.exp(row)
    reached = (block.product(my_C, across(h_here)) * wide(my_d_y)).sum(axis=1) * from_start
    block.store_row((change * block.product(my_C, across(B_here))).sum(axis=1) + reached, gained)
    my_dC = block.product(my_d_y, h_here)
    block.store(block.product(change.astype(dtype), B_here, my_dC * _over_rows(from_start, my_dC.shape)), dC)

    # j down the rows
    decay = block.decay(numbers, row, flipped=True)
    change = block.product(my_x, across(d_y_here)) * decay
    mixed = block.product(my_B, across(C_here))
    at_j = (change * mixed).sum(axis=1)
    mixed = (mixed * decay).astype(dtype)
    change = (change * _over_rows(my_times, shape)).astype(dtype)  # half as many registers from here on
    my_dB = block.product(my_x, leaving_here)
    my_dB = my_dB * _over_rows(my_left * my_times, my_dB.shape)
    block.store(block.product(change, C_here, my_dB), dB)
    my_dx = block.product(mixed, d_y_here)
    kept = block.product(my_B, across(leaving_here)) * _over_rows(my_left, my_dx.shape)
    stays = (kept * wide(my_x)).sum(axis=1)
    block.store((my_dx + kept) * _over_rows(my_times, my_dx.shape), dx)
    block.store_row(at_j * my_times, lost)
    block.store_row(stays * my_times, moved)
    block.store_row(at_j + stays, ddt)
