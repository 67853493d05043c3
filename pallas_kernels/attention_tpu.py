# SPDX-License-Identifier: Apache-2.0
"""Flash attention for TPU (Pallas, Mosaic): forward, backward, log-sum-exp; tiles that the mask empties are left out.

Letters: B batch, Lq queries, Lk keys, H heads, G key and value heads (head h uses h // (H/G)), K head width.

    o_i = sum_j p_ij v_j,   p_ij = softmax_j(q_i . k_j / sqrt(K)) over the allowed j,   lse_i = log sum_j exp(...)

Scores stand with keys down and queries across, [k, q]: maxima and sums run down the sublanes, where they are ordinary
vector instructions, and every number per query (maximum, sum, lse, delta) is a dense row. Values and the output are
therefore transposed, [K, L]; the transposition joins the one that puts heads before tokens.

Each grid step takes one entry of a walk (`tiles.walk`), prefetched as scalars, so that hidden tiles are neither loaded
nor computed, in the forward pass (rows of queries), for dq (the same) and for dk, dv (rows of keys).

Ref: Dao, "FlashAttention-2" (arXiv 2307.08691); Milakov and Gimelshein (arXiv 1805.02867).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import tiles

Array = Any
NO_KEYS = -1e30  # score of a hidden pair, and log-sum-exp of a row without keys
LANES = 128
LOG2E = math.log2(math.e)
WALK_LIMIT = 1 << 17  # int32 entries; scalar memory is about 1 MiB


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Sides of the tiles: queries and keys of the forward pass, of dq, and of dk and dv; multiples of 128."""

    forward: tuple[int, int] = (1024, 1024)
    dq: tuple[int, int] = (1024, 1024)
    dkv: tuple[int, int] = (1024, 1024)
    vmem_bytes: int = 64 * 2**20


def refusal(q: Any, k: Any, v: Any) -> str | None:
    """Why these arrays (or their shapes and dtypes) cannot be served; None if they can."""
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"takes bfloat16 or float32, all the same, not {q.dtype}, {k.dtype}, {v.dtype}"
    if q.shape[-1] not in (64, 128) or v.shape[-1] not in (64, 128):
        return f"takes head widths 64 and 128, not {q.shape[-1]} (values {v.shape[-1]})"
    if min(q.shape[1], k.shape[1]) < LANES:
        return f"takes at least {LANES} queries and keys, not {q.shape[1]} and {k.shape[1]}"
    return None


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: tiles.Mask = tiles.FULL,
    q_ids: Array | None = None,
    k_ids: Array | None = None,
    q_offset: int | Array = 0,
    sizes: Tiles | None = None,
    interpret: Any = False,
) -> tuple[Array, Array]:
    """q [B, Lq, H, K], k [B, Lk, G, K], v [B, Lk, G, Kv] -> out [B, Lq, H, Kv] in q's dtype and lse float32 [B, Lq, H].

    mask: see `tiles`; q_ids, k_ids: int32 [B, Lq], [B, Lk] segments, or None.
    q_offset: position of the first query, the first key being at 0; an int leaves hidden tiles out of the grid as well.
    A row without keys gives out 0 and lse -1e30. Differentiable (reverse mode) in q, k, v through out and lse.

    Raises NotImplementedError with a reason for what `refusal` refuses, and for a walk too long for scalar memory.
    """
    why = refusal(q, k, v)
    if why:
        raise NotImplementedError(f"the TPU attention kernel {why}")
    sizes = sizes or Tiles()
    fixed = isinstance(q_offset, int | np.integer)
    call = _Call(mask, int(q_offset) if fixed else None, sizes, interpret)
    offset = jnp.asarray(q_offset, jnp.int32).reshape(1)
    return _attention(call, q, k, v, offset, q_ids, k_ids)


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is static of a call."""

    mask: tiles.Mask
    q_offset: int | None  # None: known at run time only
    sizes: Tiles
    interpret: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call, q, k, v, offset, q_ids, k_ids):
    return _forward(call, q, k, v, offset, q_ids, k_ids)[0]


def _forward(call, q, k, v, offset, q_ids, k_ids):
    grid = _Grid(call, call.sizes.forward, q, k, offset, q_ids, k_ids)
    width = v.shape[-1]
    out, lse = grid.run(
        functools.partial(_forward_kernel, grid),
        [
            (_heads_first(q), grid.queries(q.shape[-1])),
            (_heads_first(k), grid.keys(k.shape[-1])),
            (_transposed(v), grid.keys_across(width)),
        ],
        [
            (_transposed_like(q, width), grid.queries_across(width)),
            (_per_query_like(q), grid.queries_across(1)),
        ],
        [(1, grid.q_tile), (1, grid.q_tile), (width, grid.q_tile)],
    )
    out, lse = jnp.transpose(out, (0, 3, 1, 2)), jnp.transpose(lse[:, :, 0], (0, 2, 1))
    return (out, lse), (q, k, v, offset, q_ids, k_ids, out, lse)


def _backward(call, saved, gradients):
    q, k, v, offset, q_ids, k_ids, out, lse = saved
    d_out, d_lse = gradients
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1) - d_lse
    # in powers of two, as the kernels use it; a row without keys has probability 0 everywhere
    lse = jnp.where(lse > NO_KEYS / 2, lse * LOG2E, -NO_KEYS)
    width, value_width = q.shape[-1], v.shape[-1]

    def inputs(grid):
        return [
            (_heads_first(q), grid.queries(width)),
            (_heads_first(k), grid.keys(width)),
            (_heads_first(v), grid.keys(value_width)),
            (_heads_first(d_out.astype(q.dtype)), grid.queries(value_width)),
            (jnp.transpose(lse, (0, 2, 1))[:, :, None], grid.queries_across(1)),
            (jnp.transpose(delta, (0, 2, 1))[:, :, None], grid.queries_across(1)),
        ]

    grid = _Grid(call, call.sizes.dq, q, k, offset, q_ids, k_ids)
    (dq,) = grid.run(
        functools.partial(_dq_kernel, grid),
        [*inputs(grid), (_transposed(k), grid.keys_across(width))],
        [(_transposed_like(q, width), grid.queries_across(width))],
        [(width, grid.q_tile)],
    )
    grid = _Grid(call, call.sizes.dkv, q, k, offset, q_ids, k_ids, by_keys=True)
    dk, dv = grid.run(
        functools.partial(_dkv_kernel, grid),
        inputs(grid),
        [
            (jax.eval_shape(_heads_first, k), grid.keys(width)),
            (jax.eval_shape(_heads_first, v), grid.keys(value_width)),
        ],
        [(grid.k_tile, width), (grid.k_tile, value_width)],
    )
    return jnp.transpose(dq, (0, 3, 1, 2)), _heads_first(dk), _heads_first(dv), None, None, None


_attention.defvjp(_forward, _backward)


class _Grid:
    """One pass over the tiles: (batch, head, row, heads of a group, step), where a row is one of queries or of keys."""

    def __init__(self, call, sizes, q, k, offset, q_ids, k_ids, by_keys=False):
        self.call, self.offset, self.by_keys = call, offset, by_keys
        self.scale, self.precise = q.shape[-1] ** -0.5, q.dtype == jnp.float32
        self.q_len, self.k_len = q.shape[1], k.shape[1]
        self.q_tile, self.k_tile = (
            min(tile, -(-length // LANES) * LANES)
            for tile, length in zip(sizes, (self.q_len, self.k_len), strict=True)
        )
        lengths = (self.q_len, self.k_len, self.q_tile, self.k_tile)
        where = offset[0] if call.q_offset is None else call.q_offset
        some, every = tiles.visible(call.mask, where, *lengths, q_ids, k_ids)
        if by_keys:
            some, every = some.swapaxes(-1, -2), every.swapaxes(-1, -2)
        walk = tiles.walk(some, every)
        if walk.size > WALK_LIMIT:
            raise NotImplementedError(
                f"the TPU attention kernel lists at most {WALK_LIMIT} tiles, not {walk.size}; use larger tiles"
            )
        self.careful = not isinstance(walk, np.ndarray) or bool((walk & 1).any())  # some tiles need the mask
        self.walk = walk if walk.ndim == 3 else walk[None]
        self.ids = () if q_ids is None else (q_ids[:, None], k_ids[:, :, None])
        group = q.shape[2] // k.shape[2]
        row_count = -(-self.k_len // self.k_tile) if by_keys else -(-self.q_len // self.q_tile)
        self.shape = (q.shape[0], k.shape[2], row_count, group, walk.shape[-1])
        if not by_keys:  # a head of queries is a row of its own
            self.shape = (q.shape[0], q.shape[2], row_count, 1, walk.shape[-1])
        self.group = group

    def entry(self, at, walk):
        """The walk's entry of a place in the grid."""
        batch, rows, steps = self.walk.shape
        batch, row = (at[0] if batch > 1 else 0), (at[2] if rows > 1 else 0)
        return walk[(batch * rows + row) * steps + at[4]]

    def tile(self, at, walk):
        """Which tile of queries, and which of keys."""
        entry = self.entry(at, walk)
        other = jnp.where(entry < 0, ~entry, entry) >> 1
        return (other, at[2]) if self.by_keys else (at[2], other)

    def heads(self, at):
        """Which head of queries, and which of keys."""
        return (
            (at[1] * self.group + at[3], at[1])
            if self.by_keys
            else (at[1], jax.lax.div(at[1], jnp.int32(self.group)))
        )

    def _spec(self, block, side, across):
        def index(*args):
            at, (walk, _) = args[:5], args[5:]
            place = (self.tile(at, walk)[side], 0)
            return (at[0], self.heads(at)[side], *(place[::-1] if across else place))

        return pl.BlockSpec((None, None, *block), index)

    def queries(self, width):
        return self._spec((self.q_tile, width), 0, False)

    def queries_across(self, width):
        return self._spec((width, self.q_tile), 0, True)

    def keys(self, width):
        return self._spec((self.k_tile, width), 1, False)

    def keys_across(self, width):
        return self._spec((width, self.k_tile), 1, True)

    def run(self, kernel, inputs, outputs, scratch):
        """Call the kernel; inputs (array, spec), outputs (shape, spec), scratch shapes in float32."""
        specs = [spec for _, spec in inputs]
        if self.ids:
            specs += [
                pl.BlockSpec((None, 1, self.q_tile), lambda *a: (a[0], 0, self.tile(a[:5], a[5])[0])),
                pl.BlockSpec((None, self.k_tile, 1), lambda *a: (a[0], self.tile(a[:5], a[5])[1], 0)),
            ]

        def body(walk, offset, *refs):
            count = len(inputs)
            ids = refs[count : count + len(self.ids)]
            kernel(_Step(self, walk, offset, ids), *refs[:count], *refs[count + len(ids) :])

        return pl.pallas_call(
            body,
            out_shape=[shape for shape, _ in outputs],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=self.shape,
                in_specs=specs,
                out_specs=[spec for _, spec in outputs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "parallel", "arbitrary", "arbitrary"),
                vmem_limit_bytes=self.call.sizes.vmem_bytes,
            ),
            interpret=self.call.interpret,
            name=f"attention{kernel.func.__name__}",
        )(jnp.asarray(self.walk).reshape(-1), self.offset, *(x for x, _ in inputs), *self.ids)

    def dot(self, a, b, contract):
        """a b with the given axes contracted, summed in float32."""
        precision = jax.lax.Precision.HIGHEST if self.precise else jax.lax.Precision.DEFAULT
        return jax.lax.dot_general(
            a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
        )


class _Step:
    """What a kernel asks about its place in the grid."""

    def __init__(self, grid, walk, offset, ids):
        self.grid, self.offset, self.ids = grid, offset, ids
        self.at = tuple(pl.program_id(i) for i in range(5))
        self.entry = grid.entry(self.at, walk)
        self.tile = grid.tile(self.at, walk)
        inner = self.at[3:]
        self.first = (inner[0] == 0) & (inner[1] == 0)
        self.last = (inner[0] == grid.shape[3] - 1) & (inner[1] == grid.shape[4] - 1)

    def compute(self, tile):
        """Run ``tile(careful)``, unless there is nothing to see."""
        here = self.entry >= 0
        if not self.grid.careful:
            pl.when(here)(lambda: tile(False))
            return
        pl.when(here & (self.entry & 1 == 0))(lambda: tile(False))
        pl.when(here & (self.entry & 1 == 1))(lambda: tile(True))

    def allowed(self):
        """bool [k, q], or None."""
        grid = self.grid
        q = self.tile[0] * grid.q_tile + jax.lax.broadcasted_iota(jnp.int32, (1, grid.q_tile), 1)
        k = self.tile[1] * grid.k_tile + jax.lax.broadcasted_iota(jnp.int32, (grid.k_tile, 1), 0)
        parts = [tiles.holds(grid.call.mask, q + self.offset[0], k)]
        full = (grid.k_tile, grid.q_tile)
        if grid.q_len % grid.q_tile:
            parts.append(jnp.broadcast_to(q, full) < grid.q_len)
        if grid.k_len % grid.k_tile:
            parts.append(jnp.broadcast_to(k, full) < grid.k_len)
        if self.ids:
            parts.append(self.ids[0][...] == self.ids[1][...])
        return functools.reduce(lambda a, b: b if a is None else a if b is None else a & b, parts)

    def inside(self, x, side, axis):
        """x with zeros where its tile sticks out over the end: what lies there may be anything, and 0 * NaN is NaN."""
        grid = self.grid
        length, tile = ((grid.q_len, grid.q_tile), (grid.k_len, grid.k_tile))[side]
        if length % tile == 0:
            return x
        index = self.tile[side] * tile + jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
        return jnp.where(index < length, x.astype(jnp.float32), 0).astype(x.dtype)


def _forward_kernel(grid, step, q, k, v, out, lse, top, total, acc):
    @pl.when(step.first)
    def _():
        top[...] = jnp.full_like(top, NO_KEYS)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    def tile(careful):
        scores = grid.dot(k[...], q[...], ((1,), (1,)))
        allowed = step.allowed() if careful else None
        scores = scores if allowed is None else jnp.where(allowed, scores, NO_KEYS)
        high = jnp.maximum(top[...], jnp.max(scores, axis=0, keepdims=True))
        keep = jnp.exp2((top[...] - high) * (grid.scale * LOG2E))
        p = jnp.exp2((scores - high) * (grid.scale * LOG2E))
        values = step.inside(v[...], 1, 1) if careful else v[...]
        top[...] = high
        total[...] = total[...] * keep + jnp.sum(p, axis=0, keepdims=True)
        acc[...] = acc[...] * keep + grid.dot(values, p.astype(v.dtype), ((1,), (0,)))

    step.compute(tile)

    @pl.when(step.last)
    def _():
        seen = top[...] > NO_KEYS / 2
        safe = jnp.where(seen, total[...], 1)
        out[...] = jnp.where(seen, acc[...] / safe, 0).astype(out.dtype)
        lse[...] = jnp.where(seen, top[...] * grid.scale + jnp.log(safe), NO_KEYS)


def _probabilities(grid, step, careful, q, k, v, d_out, lse, delta):
    """p and its gradient before the scale, [k, q]; both 0 where a pair is hidden, whatever the inputs hold there."""
    p = jnp.exp2(grid.dot(k[...], q[...], ((1,), (1,))) * (grid.scale * LOG2E) - lse[...])
    d_scores = p * (grid.dot(v[...], d_out[...], ((1,), (1,))) - delta[...])
    allowed = step.allowed() if careful else None
    if allowed is None:
        return p, d_scores
    return jnp.where(allowed, p, 0), jnp.where(allowed, d_scores, 0)


def _dq_kernel(grid, step, q, k, v, d_out, lse, delta, k_across, dq, acc):
    @pl.when(step.first)
    def _():
        acc[...] = jnp.zeros_like(acc)

    def tile(careful):
        _, d_scores = _probabilities(grid, step, careful, q, k, v, d_out, lse, delta)
        keys = step.inside(k_across[...], 1, 1) if careful else k_across[...]
        acc[...] += grid.dot(keys, d_scores.astype(k.dtype), ((1,), (0,)))

    step.compute(tile)

    @pl.when(step.last)
    def _():
        dq[...] = (acc[...] * grid.scale).astype(dq.dtype)


def _dkv_kernel(grid, step, q, k, v, d_out, lse, delta, dk, dv, dk_acc, dv_acc):
    @pl.when(step.first)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    def tile(careful):
        p, d_scores = _probabilities(grid, step, careful, q, k, v, d_out, lse, delta)
        queries = step.inside(q[...], 0, 0) if careful else q[...]
        d_outs = step.inside(d_out[...], 0, 0) if careful else d_out[...]
        dv_acc[...] += grid.dot(p.astype(q.dtype), d_outs, ((1,), (0,)))
        dk_acc[...] += grid.dot(d_scores.astype(q.dtype), queries, ((1,), (0,)))

    step.compute(tile)

    @pl.when(step.last)
    def _():
        dk[...] = (dk_acc[...] * grid.scale).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


def _heads_first(x):
    """[B, L, H, K] -> [B, H, L, K], and back."""
    return jnp.transpose(x, (0, 2, 1, 3))


def _transposed(x):
    """[B, L, H, K] -> [B, H, K, L]."""
    return jnp.transpose(x, (0, 2, 3, 1))


def _transposed_like(q, width):
    return jax.ShapeDtypeStruct((q.shape[0], q.shape[2], width, q.shape[1]), q.dtype)


def _per_query_like(q):
    return jax.ShapeDtypeStruct((q.shape[0], q.shape[2], 1, q.shape[1]), jnp.float32)
