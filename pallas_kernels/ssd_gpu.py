# SPDX-License-Identifier: Apache-2.0
"""The selective scan of Mamba-2 for Hopper GPUs: its quadratic part, inside chunks, as a kernel (Pallas, Mosaic GPU).

Letters: B batch, L tokens, H heads, P head width, G groups of R = H/G heads that share B and C, N state size, Q tokens of
a chunk. With cs the running sum of dt A inside a chunk, i and j tokens of it and h the state that enters it:

    y_i = sum_{j <= i} (C_i . B_j) exp(cs_i - cs_j) dt_j x_j + exp(cs_i) h C_i          the kernel
    h   <- exp(cs_last) h + sum_j exp(cs_last - cs_j) dt_j x_j B_j^T                     two products and a scan, in XLA

The kernel has a block per (head, chunk, batch): TMA brings x, B, C and the state to shared memory, two warpgroups make 64
rows of y each; the [Q, Q] matrix of a head lives in registers only. There is no kernel of the backward pass yet: the
caller names the plain form whose derivative is taken.

Ref: Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

Array = Any
ROWS, WORKERS = 64, 2
CHUNK = ROWS * WORKERS
WIDE, ROW, COLUMN = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def refusal(x: Any, B: Any) -> str | None:
    """Why these arrays (or their shapes and dtypes) cannot be served; None if they can."""
    if jax.version.__version_info__ < (0, 11):
        return f"needs jax 0.11 or newer, not {jax.__version__}"
    if x.dtype not in (jnp.float16, jnp.bfloat16) or B.dtype != x.dtype:
        return f"takes bfloat16 or float16, the same for x, B and C, not {x.dtype} and {B.dtype}"
    if x.shape[-1] not in (64, 128) or B.shape[-1] not in (64, 128):
        return f"takes head widths and state sizes 64 and 128, not {x.shape[-1]} and {B.shape[-1]}"
    return None


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    initial_state: Array,
    *,
    plain: Callable[..., tuple[Array, Array]],
    interpret: Any = None,
) -> tuple[Array, Array]:
    """x [B,L,H,P], dt [B,L,H] > 0, A [H] < 0, B and C [B,L,G,N], initial_state [B,H,P,N] -> y [B,L,H,P], state [B,H,P,N].

    y has x's dtype, the state is float32; sums are in float32. Differentiable (reverse mode) in everything, by way of
    plain: the same function of the six arrays without a kernel.
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
    y, state = _ssd((plain, interpret), pad(x), pad(dt), A.astype(jnp.float32), pad(B), pad(C), state)
    return y[:, :length], state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ssd(how, x, dt, A, B, C, state):
    parts = _Chunks(x, dt, A, B, C)
    entering, final = _between(parts.decays(), parts.added(), state)
    return _inside(how[1], x, parts, entering), final


def _forward(how, *arrays):
    return _ssd(how, *arrays), arrays


def _backward(how, arrays, gradients):
    outs, back = jax.vjp(how[0], *arrays)
    return back(tuple(g.astype(out.dtype) for g, out in zip(gradients, outs, strict=True)))


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


def _between(decays, added, state):
    """The states that enter each chunk, [B, chunks, H, P, N], and the one that leaves the last."""

    def step(h, now):
        decay, new = now
        return decay[..., None, None] * h + new, h

    final, entering = lax.scan(step, state, (jnp.moveaxis(decays, 1, 0), jnp.moveaxis(added, 1, 0)), unroll=8)
    return jnp.moveaxis(entering, 0, 1), final


def _inside(interpret, x, parts, entering):
    """y [B, L, H, P], by the kernel."""
    batch, _, heads, width = x.shape
    chunks, size, dtype = parts.x.shape[1], parts.B.shape[-1], x.dtype
    per_group = parts.per_group
    rows = lambda v: jnp.transpose(v, (0, 3, 1, 2))  # [B, H, chunks, Q]
    swizzle = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    matrix = lambda *shape: plgpu.SMEM(shape, dtype, transforms=swizzle)

    def kernel(
        x,
        B,
        C,
        h,
        dt,
        cs,
        y,
        x_here,
        B_here,
        C_here,
        h_here,
        y_here,
        dt_here,
        sums,
        own_sums,
        spilled,
        came,
        own_came,
    ):
        head, chunk, b = (lax.axis_index(name) for name in ("head", "chunk", "batch"))
        me = lax.axis_index("warpgroup")
        group = lax.div(head, jnp.int32(per_group))
        start = chunk * CHUNK
        mine = pl.ds(me * ROWS, ROWS)

        @pl.when(me == 0)
        def _():
            for source, buffer in (
                (x.at[b, pl.ds(start, CHUNK), head], x_here),
                (B.at[b, pl.ds(start, CHUNK), group], B_here),
                (h.at[b, chunk, head], h_here),
                (dt.at[b, head, chunk], dt_here),
                (cs.at[b, head, chunk], sums),
            ):
                plgpu.copy_gmem_to_smem(source, buffer, came)

        own = own_came.at[me]
        plgpu.copy_gmem_to_smem(C.at[b, pl.ds(start + me * ROWS, ROWS), group], C_here.at[me], own)
        plgpu.copy_gmem_to_smem(cs.at[b, head, chunk, mine], own_sums.at[me], own)
        plgpu.barrier_wait(own)
        plgpu.barrier_wait(came)

        def product(a, b, width):
            def multiply(sums):
                plgpu.wgmma(sums, a, b)
                return sums[...]

            return pl.run_scoped(multiply, plgpu.ACC((ROWS, width), jnp.float32))

        shape = (ROWS, CHUNK)
        row = plgpu.load(own_sums.at[me], layout=ROW)
        column, times = plgpu.load(sums, layout=COLUMN), plgpu.load(dt_here, layout=COLUMN)
        i = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=WIDE) + me * ROWS
        j = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=WIDE)
        rise = lax.broadcast_in_dim(row, shape, [0]) - lax.broadcast_in_dim(column, shape, [1])
        decay = jnp.exp(jnp.where(j <= i, jnp.minimum(rise, 0.0), -1e30))
        mixed = product(C_here.at[me], B_here.transpose((1, 0)), CHUNK) * decay
        mixed = (mixed * lax.broadcast_in_dim(times, shape, [1])).astype(dtype)
        out = product(C_here.at[me], h_here.transpose((1, 0)), width)
        out = out * lax.broadcast_in_dim(jnp.exp(row), out.shape, [0])
        if interpret is None:
            out = pl.run_state(lambda sums: plgpu.wgmma(sums, mixed, x_here))(plgpu.ACC.init(out))
        else:  # the interpreter wants both factors in shared memory
            spilled.at[me][...] = mixed
            plgpu.commit_smem()
            out = out + product(spilled.at[me], x_here, width)
        y_here.at[me][...] = out.astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(y_here.at[me], y.at[b, pl.ds(start + me * ROWS, ROWS), head])
        plgpu.wait_smem_to_gmem(0)

    kernel.__name__ = "ssd_inside"
    options = {} if interpret is None else {"interpret": interpret}
    flat = lambda v: v.reshape(batch, -1, *v.shape[3:])
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(x.shape, dtype),
        scratch_types=[
            matrix(CHUNK, width),
            matrix(CHUNK, size),
            matrix(WORKERS, ROWS, size),
            matrix(width, size),
            matrix(WORKERS, ROWS, width),
            plgpu.SMEM((CHUNK,), jnp.float32),
            plgpu.SMEM((CHUNK,), jnp.float32),
            plgpu.SMEM((WORKERS, ROWS), jnp.float32),
            matrix(WORKERS, ROWS, CHUNK if interpret is not None else ROWS),
            plgpu.Barrier(num_arrivals=5),
            plgpu.Barrier(num_arrivals=2, num_barriers=WORKERS),
        ],
        grid=(heads, chunks, batch),
        grid_names=("head", "chunk", "batch"),
        num_threads=WORKERS,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **options,
    )(x, flat(parts.B), flat(parts.C), entering.astype(dtype), rows(parts.dt), rows(parts.cs))
