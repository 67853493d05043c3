# SPDX-License-Identifier: Apache-2.0
"""Flash attention for Hopper GPUs (Pallas, Mosaic GPU): TMA, wgmma, one loading and two computing warpgroups.

Letters: B batch, Lq queries, Lk keys, H heads, G key and value heads (head h uses h // (H/G)), K head width.

    o_i = sum_j p_ij v_j,   p_ij = softmax_j(q_i . k_j / sqrt(K)) over the allowed j,   lse_i = log sum_j exp(...)

Each computing warpgroup owns 64 rows, of queries (forward, dq) or of keys (dk and dv), and holds their sums in registers.
The loading warpgroup walks over the tiles of the other side which the mask leaves (`tiles.ordered`) and keeps a few of
them ahead in shared memory; a barrier per slot says that a tile has come, another that both have used it. Tiles that are
allowed as a whole come first, in a loop without a mask: a softmax does not mind the order.

The interpreter wants both factors of a product in shared memory and knows no accumulator that lives on: with
``interpret`` the products go that way, in the same order otherwise.

Ref: Shah et al., "FlashAttention-3" (arXiv 2407.08608); Dao, "FlashAttention-2" (arXiv 2307.08691).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import tiles
from pallas_kernels.load_gpu import load

Array = Any
NO_KEYS = -1e30  # score of a hidden pair, and log-sum-exp of a row without keys
LOG2E = math.log2(math.e)
ROWS = 64  # of a warpgroup: what one wgmma makes
WORKERS = 2  # computing warpgroups
WIDE, ROW, COLUMN = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Keys per tile of the forward pass and of dq, queries per tile of dk and dv; tiles that are ahead."""

    forward: int = 128
    dq: int = 64
    dkv: int = 64
    stages: int = 2


def refusal(q: Any, k: Any, v: Any) -> str | None:
    """Why these arrays (or their shapes and dtypes) cannot be served; None if they can."""
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float16, jnp.bfloat16):
        return f"takes bfloat16 or float16, all the same, not {q.dtype}, {k.dtype}, {v.dtype}"
    if q.shape[-1] not in (64, 128) or v.shape[-1] != q.shape[-1]:
        return f"takes head widths 64 and 128, the same for values, not {q.shape[-1]} (values {v.shape[-1]})"
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
    interpret: Any = None,
) -> tuple[Array, Array]:
    """q [B, Lq, H, K], k [B, Lk, G, K], v [B, Lk, G, K] -> out [B, Lq, H, K] in q's dtype and lse float32 [B, Lq, H].

    mask: see `tiles`; q_ids, k_ids: int32 [B, Lq], [B, Lk] segments, or None.
    q_offset: position of the first query, the first key being at 0.
    A row without keys gives out 0 and lse -1e30. Differentiable (reverse mode) in q, k, v through out and lse.
    interpret: ``plgpu.InterpretGPUParams`` to run on a CPU. Lengths that tiles do not divide are padded with a copy.

    Raises NotImplementedError with a reason for what `refusal` refuses.
    """
    why = refusal(q, k, v)
    if why:
        raise NotImplementedError(f"the GPU attention kernel {why}")
    fixed = isinstance(q_offset, int | np.integer)
    call = _Call(
        mask,
        int(q_offset) if fixed else None,
        sizes or Tiles(),
        interpret,
        q.shape[1],
        k.shape[1],
        q_ids is not None,
    )
    if q_ids is None:
        q_ids, k_ids = jnp.zeros((1, q.shape[1]), jnp.int32), jnp.zeros((1, k.shape[1]), jnp.int32)
    unit = ROWS * WORKERS
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % unit)) + ((0, 0),) * (x.ndim - 2))
    offset = jnp.asarray(q_offset, jnp.int32).reshape(1)
    out, lse = _attention(call, pad(q), pad(k), pad(v), offset, pad(q_ids), pad(k_ids))
    return out[:, : q.shape[1]], jnp.transpose(lse[:, :, : q.shape[1]], (0, 2, 1))


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is static of a call."""

    mask: tiles.Mask
    q_offset: int | None  # None: known at run time only
    sizes: Tiles
    interpret: Any
    q_len: int
    k_len: int
    segments: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call, q, k, v, offset, q_ids, k_ids):
    return _forward(call, q, k, v, offset, q_ids, k_ids)[0]


def _forward(call, q, k, v, offset, q_ids, k_ids):
    work = _Work(call, q, k, offset, q_ids, k_ids, call.sizes.forward)
    like_lse = jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)
    out, lse = work.run(_forward_body, (q, k, v), [q, like_lse], owned=1, streamed=2)
    return (out, lse), (q, k, v, offset, q_ids, k_ids, out, lse)


def _backward(call, saved, gradients):
    q, k, v, offset, q_ids, k_ids, out, lse = saved
    d_out, d_lse = gradients
    delta = jnp.einsum("blhk,blhk->bhl", d_out.astype(jnp.float32), out.astype(jnp.float32)) - d_lse
    # in powers of two, as the kernels use it; a row without keys has probability 0 everywhere
    lse = jnp.where(lse > NO_KEYS / 2, lse * LOG2E, -NO_KEYS)
    arrays = (q, k, v, d_out.astype(q.dtype), lse, delta)
    work = _Work(call, q, k, offset, q_ids, k_ids, call.sizes.dq)
    (dq,) = work.run(_dq_body, arrays, [q], owned=2, streamed=2)
    work = _Work(call, q, k, offset, q_ids, k_ids, call.sizes.dkv, by_keys=True)
    dk, dv = work.run(_dkv_body, arrays, [k, v], owned=2, streamed=2, rows_streamed=2)
    return dq, dk, dv, None, None, None


_attention.defvjp(_forward, _backward)


class _Work:
    """One pass: blocks of (head, rows, batch), and the tiles of the other side that each of them walks over."""

    def __init__(self, call, q, k, offset, q_ids, k_ids, tile, by_keys=False):
        self.mask, self.sizes, self.by_keys = call.mask, call.sizes, by_keys
        self.spill, self.interpret = call.interpret is not None, call.interpret
        self.q_len, self.k_len, self.segments = call.q_len, call.k_len, call.segments
        self.tile, self.dtype, self.width = tile, q.dtype, q.shape[-1]
        self.scale, self.group = q.shape[-1] ** -0.5, q.shape[2] // k.shape[2]
        rows = ROWS * WORKERS
        where = offset[0] if call.q_offset is None else call.q_offset
        sides = (tile, rows) if by_keys else (rows, tile)
        ids = (q_ids[:, : call.q_len], k_ids[:, : call.k_len]) if call.segments else ()
        some, every = tiles.visible(call.mask, where, call.q_len, call.k_len, *sides, *ids)
        if by_keys:
            some, every = some.swapaxes(-1, -2), every.swapaxes(-1, -2)
        counts, order = tiles.ordered(some, every)
        self.careful = not isinstance(counts, np.ndarray) or bool(counts[..., 1].any())
        three = lambda x: jnp.asarray(x if x.ndim == 3 else x[None])
        self.inputs = (three(counts), three(order), offset, q_ids, k_ids)
        self.grid = (k.shape[2] if by_keys else q.shape[2], counts.shape[-2], q.shape[0])
        self.stages = max(2, call.sizes.stages)

    def run(self, body, arrays, outputs, owned, streamed, rows_streamed=0):
        """owned, streamed: how many [rows, K] and [tile, K] buffers; rows_streamed: how many [tile] ones."""
        swizzle = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        matrix = lambda *shape: plgpu.SMEM(shape, self.dtype, transforms=swizzle)
        scratch = [
            [matrix(WORKERS, ROWS, self.width) for _ in range(owned)],
            [plgpu.SMEM((WORKERS, ROWS), jnp.float32) for _ in range(2)],
            [matrix(self.stages, self.tile, self.width) for _ in range(streamed)]
            + [plgpu.SMEM((self.stages, self.tile), jnp.float32) for _ in range(rows_streamed)],
            [matrix(WORKERS, ROWS, self.tile)] if self.spill else [],
            plgpu.Barrier(
                num_arrivals=owned + (2 if owned == 2 and not rows_streamed else 0), num_barriers=WORKERS
            ),
            [plgpu.Barrier(num_barriers=self.stages) for _ in range(streamed + rows_streamed)],
            plgpu.Barrier(num_arrivals=WORKERS, num_barriers=self.stages),
        ]

        def kernel(*refs):
            tables, refs = refs[: len(self.inputs)], refs[len(self.inputs) :]
            place = _Place(self, tables, refs[-len(scratch) :])
            body(place, *refs[: -len(scratch)])

        kernel.__name__ = f"attention{body.__name__}"
        options = {} if self.interpret is None else {"interpret": self.interpret}
        return plgpu.kernel(
            kernel,
            out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
            scratch_types=scratch,
            grid=self.grid,
            grid_names=("head", "row", "batch"),
            num_threads=WORKERS + 1,
            thread_name="warpgroup",
            compiler_params=plgpu.CompilerParams(approx_math=True),
            **options,
        )(*self.inputs, *arrays)


class _Place:
    """A warpgroup in a block: where it is, what it walks over, and its shared memory."""

    def __init__(self, work, tables, scratch):
        self.work = work
        self.counts, self.order, self.offset, self.q_ids, self.k_ids = tables
        self.owned, self.per_row, self.streamed, self.spilled, self.owned_came, self.came, self.used = scratch
        self.batch, self.head, self.row = (lax.axis_index(name) for name in ("batch", "head", "row"))
        self.me = lax.axis_index("warpgroup")
        self.base = self.row * (ROWS * WORKERS) + self.me * ROWS
        # tables of one batch serve all
        self.table = (self.batch if self.counts.shape[0] > 1 else 0, self.row)
        self.repeats = work.group if work.by_keys else 1
        self.whole = self.counts[*self.table, 0] * self.repeats
        self.total = self.whole + self.counts[*self.table, 1] * self.repeats

    def step(self, t):
        """(head of queries, tile of the other side) of step t: whole tiles of all heads, then the others."""
        if self.repeats == 1:
            return self.head, self.order[*self.table, t]
        whole = self.counts[*self.table, 0]
        first = t < self.whole
        per_head = jnp.maximum(jnp.where(first, whole, self.counts[*self.table, 1]), 1)
        at = jnp.where(first, t, t - self.whole)
        turn = lax.div(at, per_head)
        place = at - turn * per_head + jnp.where(first, 0, whole)
        return self.head * self.repeats + turn, self.order[*self.table, place]

    def load_tiles(self, sources):
        """The loading warpgroup: sources(head, tile) -> what fills the streamed buffers, a slot after the other."""
        stages = jnp.int32(self.work.stages)
        plgpu.set_max_registers(24, action="decrease")

        def load(t, slot):
            for source, buffer, came in zip(sources(*self.step(t)), self.streamed, self.came, strict=True):
                plgpu.copy_gmem_to_smem(source, buffer.at[slot], came.at[slot])

        for i in range(self.work.stages):
            pl.when(i < self.total)(functools.partial(load, jnp.int32(i), i))

        def again(t, _):
            slot = lax.rem(t, stages)
            plgpu.barrier_wait(self.used.at[slot])
            load(t, slot)
            return None

        lax.fori_loop(stages, self.total, again, None)
        for i in range(self.work.stages):  # leave no barrier with an arrival that nobody saw
            pl.when(i < self.total)(functools.partial(plgpu.barrier_wait, self.used.at[i]))

    def over_tiles(self, tile, sums):
        """Fold ``tile(sums, slot, index, careful)`` over the walk; it must not touch the slot's buffers afterwards."""
        plgpu.set_max_registers(240, action="increase")

        def step(careful, left, carry):
            slot, sums = carry
            _, index = self.step(self.total + left) if careful else (None, None)
            sums = tile(sums, slot, index, careful)
            plgpu.barrier_arrive(self.used.at[slot])
            return jnp.where(slot == self.work.stages - 1, 0, slot + 1), sums

        # towards zero: a bound that is no constant would be one register too many in dk and dv
        walk = lambda steps, careful, carry: lax.fori_loop(
            -steps, jnp.int32(0), functools.partial(step, careful), carry
        )
        carry = walk(self.whole, False, (jnp.int32(0), sums))
        if self.work.careful:
            carry = walk(self.total - self.whole, True, carry)
        return carry[1]

    def wait(self, stream, slot):
        plgpu.barrier_wait(self.came[stream].at[slot])
        return self.streamed[stream].at[slot]

    def allowed(self, index):
        """bool [rows, tile] of a tile of the other side, or None."""
        work, shape = self.work, (ROWS, self.work.tile)
        # numbers per row and per column, spread over the tile at the end: integers divide slowly
        mine = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=ROW) + self.base
        other = plgpu.broadcasted_iota(jnp.int32, (work.tile,), 0, layout=COLUMN) + index * work.tile
        wide = lambda row, column: (_spread(row, shape), _spread(column, shape, 1))

        def spread(q, k):
            return wide(k, q)[::-1] if work.by_keys else wide(q, k)

        q, k = (other, mine) if work.by_keys else (mine, other)
        parts = [tiles.holds(work.mask, q + self.offset[0], k, spread)]
        q, k = spread(q, k)
        ahead = k - q  # in every comparison: the compiler finds no layout for what rows or columns say alone
        if work.q_len % (ROWS * WORKERS):
            parts.append(ahead > k - work.q_len)
        if work.k_len % (ROWS * WORKERS):
            parts.append(ahead < work.k_len - q)
        if work.segments:
            ids = (self.k_ids, self.q_ids) if work.by_keys else (self.q_ids, self.k_ids)
            row = load(ids[0].at[self.batch, pl.ds(self.base, ROWS)], layout=ROW, optimized=False)
            column = load(
                ids[1].at[self.batch, pl.ds(index * work.tile, work.tile)], layout=COLUMN, optimized=False
            )
            row, column = wide(row, column)
            parts.append(row - column + ahead == ahead)
        return functools.reduce(lambda a, b: b if a is None else a if b is None else a & b, parts)

    def product(self, a, b, start=None):
        """start + a b^T of two tiles in shared memory, [rows, tile] in float32."""
        across = b.transpose((1, 0))
        if start is not None and not self.work.spill:
            return pl.run_state(lambda ref: plgpu.wgmma(ref, a, across))(plgpu.ACC.init(start))

        def multiply(sums):
            plgpu.wgmma(sums, a, across)
            return sums[...]

        sums = pl.run_scoped(multiply, plgpu.ACC((ROWS, self.work.tile), jnp.float32))
        return sums if start is None else start + sums

    def add_product(self, sums, a, b):
        """sums + a b, with a in registers and b in shared memory."""
        a = a.astype(self.work.dtype)
        if not self.work.spill:
            return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(plgpu.ACC.init(sums))
        spilled = self.spilled[0].at[self.me]
        spilled[...] = a
        plgpu.commit_smem()

        def multiply(ref):
            plgpu.wgmma(ref, spilled, b)
            return ref[...]

        return sums + pl.run_scoped(multiply, plgpu.ACC(sums.shape, jnp.float32))

    def zeros(self):
        return plgpu.layout_cast(jnp.zeros((ROWS, self.work.width), jnp.float32), WIDE)

    def store(self, owned, value, out, head):
        """Write [rows, K] to the tokens of this warpgroup, by way of one of its own buffers."""
        buffer = self.owned[owned].at[self.me]
        buffer[...] = value.astype(self.work.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(buffer, out.at[self.batch, pl.ds(self.base, ROWS), head])


def _spread(x, shape, axis=0):
    """A number per row (axis 0) or per column (axis 1) over the whole tile."""
    return lax.broadcast_in_dim(x, shape, [axis])


def _forward_body(place, q, k, v, out, lse):
    work, me = place.work, place.me
    shape = (ROWS, work.tile)
    kv_head = lax.div(place.head, jnp.int32(work.group))
    mine = (place.batch, pl.ds(place.base, ROWS), place.head)

    @pl.when(me < WORKERS)
    def _():
        queries = place.owned[0].at[me]
        plgpu.copy_gmem_to_smem(q.at[mine], queries, place.owned_came.at[me])
        plgpu.barrier_wait(place.owned_came.at[me])

        def tile(sums, slot, index, careful):
            acc, top, total = sums
            scores = place.product(queries, place.wait(0, slot))
            allowed = place.allowed(index) if careful else None
            scores = scores if allowed is None else jnp.where(allowed, scores, NO_KEYS)
            high = jnp.maximum(top, scores.max(axis=1))
            keep = jnp.exp2((top - high) * (work.scale * LOG2E))
            p = jnp.exp2((scores - _spread(high, shape)) * (work.scale * LOG2E))
            total = total * keep + p.sum(axis=1)
            acc = place.add_product(acc * _spread(keep, acc.shape), p, place.wait(1, slot))
            return acc, high, total

        per_row = lambda value: plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), ROW)
        acc, top, total = place.over_tiles(tile, (place.zeros(), per_row(NO_KEYS), per_row(0.0)))
        seen = top > NO_KEYS / 2
        safe = jnp.where(seen, total, 1.0)
        weight = jnp.where(seen, 1.0 / safe, 0.0)
        place.per_row[0].at[me][...] = jnp.where(seen, top * work.scale + jnp.log(safe), NO_KEYS)
        place.store(0, acc * _spread(weight, acc.shape), out, place.head)
        plgpu.copy_smem_to_gmem(
            place.per_row[0].at[me], lse.at[place.batch, place.head, pl.ds(place.base, ROWS)]
        )
        plgpu.wait_smem_to_gmem(0)

    @pl.when(me == WORKERS)
    def _():
        def sources(head, index):
            at = (place.batch, pl.ds(index * work.tile, work.tile), kv_head)
            return k.at[at], v.at[at]

        place.load_tiles(sources)


def _dq_body(place, q, k, v, d_out, lse, delta, dq):
    work, me = place.work, place.me
    shape = (ROWS, work.tile)
    kv_head = lax.div(place.head, jnp.int32(work.group))

    @pl.when(me < WORKERS)
    def _():
        came = place.owned_came.at[me]
        queries, d_outs = place.owned[0].at[me], place.owned[1].at[me]
        per_row = [place.per_row[i].at[me] for i in range(2)]
        for source, buffer in ((q, queries), (d_out, d_outs)):
            plgpu.copy_gmem_to_smem(source.at[place.batch, pl.ds(place.base, ROWS), place.head], buffer, came)
        for source, buffer in zip((lse, delta), per_row, strict=True):
            plgpu.copy_gmem_to_smem(source.at[place.batch, place.head, pl.ds(place.base, ROWS)], buffer, came)
        plgpu.barrier_wait(came)
        log, change = (load(buffer, layout=ROW) for buffer in per_row)

        def tile(acc, slot, index, careful):
            keys = place.wait(0, slot)
            p = jnp.exp2(place.product(queries, keys) * (work.scale * LOG2E) - _spread(log, shape))
            allowed = place.allowed(index) if careful else None
            p = p if allowed is None else jnp.where(allowed, p, 0.0)
            d_scores = p * (place.product(d_outs, place.wait(1, slot)) - _spread(change, shape))
            return place.add_product(acc, d_scores, keys)

        place.store(0, place.over_tiles(tile, place.zeros()) * work.scale, dq, place.head)
        plgpu.wait_smem_to_gmem(0)

    @pl.when(me == WORKERS)
    def _():
        def sources(head, index):
            at = (place.batch, pl.ds(index * work.tile, work.tile), kv_head)
            return k.at[at], v.at[at]

        place.load_tiles(sources)


def _dkv_body(place, q, k, v, d_out, lse, delta, dk, dv):
    work, me = place.work, place.me
    shape = (ROWS, work.tile)

    @pl.when(me < WORKERS)
    def _():
        came = place.owned_came.at[me]
        keys, values = place.owned[0].at[me], place.owned[1].at[me]
        for source, buffer in ((k, keys), (v, values)):
            plgpu.copy_gmem_to_smem(source.at[place.batch, pl.ds(place.base, ROWS), place.head], buffer, came)
        plgpu.barrier_wait(came)

        def tile(sums, slot, index, careful):
            dk_acc, dv_acc = sums
            queries, d_outs = place.wait(0, slot), place.wait(1, slot)
            log = load(place.wait(2, slot), layout=COLUMN)
            p = jnp.exp2(place.product(keys, queries) * (work.scale * LOG2E) - _spread(log, shape, 1))
            allowed = place.allowed(index) if careful else None
            p = p if allowed is None else jnp.where(allowed, p, 0.0)
            dv_acc = place.add_product(dv_acc, p, d_outs)
            # the sums begin with it: beside them it would not fit into registers
            change = _spread(-load(place.wait(3, slot), layout=COLUMN), shape, 1)
            d_scores = p * place.product(values, d_outs, change)
            return place.add_product(dk_acc, d_scores, queries), dv_acc

        dk_acc, dv_acc = place.over_tiles(tile, (place.zeros(), place.zeros()))
        place.store(0, dk_acc * work.scale, dk, place.head)
        place.store(1, dv_acc, dv, place.head)
        plgpu.wait_smem_to_gmem(0)

    @pl.when(me == WORKERS)
    def _():
        def sources(head, index):
            at = pl.ds(index * work.tile, work.tile)
            return (
                q.at[place.batch, at, head],
                d_out.at[place.batch, at, head],
                lse.at[place.batch, head, at],
                delta.at[place.batch, head, at],
            )

        place.load_tiles(sources)
