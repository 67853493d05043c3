# SPDX-License-Identifier: Apache-2.0
"""Attention inside shifted 3-D windows for Hopper GPUs (Pallas, Mosaic GPU), forward and backward, without a partition copy.

Letters: B batch, T Y X frames, rows and columns, H heads, K head width, n tokens of a window.

    o_i = sum_j p_ij v_j,   p_ij = softmax_j(q_i . k_j / sqrt(K)) over the tokens j of i's window

A block is one head of one window (`boxes`). TMA brings it row of columns by row of columns, so that shared memory holds an
ordinary [n, K] matrix; what a border cuts off lies outside of the array, where TMA reads zeros and writes nothing. Each
warpgroup owns 64 tokens: first as queries (o; dq, and the statistics that the others need), then as keys (dk, dv). The
backward pass makes the probabilities again from q and k: nothing but q, k and v is kept.

The interpreter knows no places before the start of an array: with ``interpret`` arrays are padded by a window all round.

Ref: LinGen's TESA, arXiv:2412.09856.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import boxes
from pallas_kernels.boxes import Boxes
from pallas_kernels.load_gpu import load

Array = Any
NO_KEYS = -1e30
LOG2E = math.log2(math.e)
ROWS = 64  # of a warpgroup: what one wgmma makes
EIGHT = 8  # rows of a tile of shared memory, which TMA fills as a whole
WIDE, ROW, COLUMN = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def refusal(q: Any, k: Any, v: Any, window, shift) -> str | None:
    """Why these arrays (or their shapes and dtypes) cannot be served; None if they can."""
    why = boxes.refusal(q.shape[1:4], window, shift)
    if why:
        return why
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float16, jnp.bfloat16):
        return f"takes bfloat16 or float16, all the same, not {q.dtype}, {k.dtype}, {v.dtype}"
    if q.shape[-1] not in (64, 128):
        return f"takes head widths 64 and 128, not {q.shape[-1]}"
    found = Boxes(q.shape[1:4], tuple(window), tuple(shift))
    if found.tokens not in (ROWS, 2 * ROWS) or window[2] % EIGHT:
        return f"takes windows of 64 or 128 tokens whose columns are a multiple of 8, not {tuple(window)}"
    if shift[2] % EIGHT:
        return f"shifts columns by a multiple of 8 only, not {shift[2]}: TMA brings whole tiles of 8 rows"
    for axis, n, w in zip(found.axes, found.grid, found.window, strict=True):
        if any(size < w and start and start + size < n for start, size in axis):
            return f"takes shifted windows on grids that they divide, not {tuple(window)} on {found.grid}"
    return None


def attention(q: Array, k: Array, v: Array, *, window, shift, interpret: Any = None) -> Array:
    """q, k, v [B, T, Y, X, H, K] -> [B, T, Y, X, H, K] in q's dtype; every token looks at those of its window.

    window, shift: three numbers each; interpret: ``plgpu.InterpretGPUParams`` to run on a CPU. Differentiable (reverse
    mode). Raises NotImplementedError with a reason for what `refusal` refuses.
    """
    why = refusal(q, k, v, window, shift)
    if why:
        raise NotImplementedError(f"the GPU window kernel {why}")
    call = _Call(Boxes(q.shape[1:4], tuple(window), tuple(shift)), q.shape[-1], interpret)
    flat = (a.reshape(*a.shape[:4], -1) for a in (q, k, v))  # TMA knows five axes
    return _attention(call, *flat).reshape(q.shape)


@dataclasses.dataclass(frozen=True)
class _Call:
    boxes: Boxes
    width: int
    interpret: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call, q, k, v):
    return _run(call, _forward_body, (q, k, v), 1)[0]


def _forward(call, q, k, v):
    return _attention(call, q, k, v), (q, k, v)


def _backward(call, saved, d_out):
    return tuple(_run(call, _backward_body, (*saved, d_out.astype(saved[0].dtype)), 3))


_attention.defvjp(_forward, _backward)


def _run(call, body, arrays, outputs):
    """The body over all heads of all windows of all videos."""
    found, width = call.boxes, call.width
    pads = found.window if call.interpret is not None else (0, 0, 0)
    around = [(0, 0), *((p, p) for p in pads), (0, 0)]
    if any(pads):
        arrays = [jnp.pad(a, around) for a in arrays]
    like = arrays[0]
    # per axis and run: where its window begins, and which places of it there are
    tables = []
    for axis, w, pad, unit in zip(found.axes, found.window, pads, (1, 1, EIGHT), strict=True):
        missing = [w - size if start == 0 else 0 for start, size in axis]
        rows = [((s - m + pad) // unit, m, m + n) for (s, n), m in zip(axis, missing, strict=True)]
        tables.append(jnp.asarray(np.asarray(rows, np.int32)))
    workers = found.tokens // ROWS
    swizzle = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    matrix = lambda *shape: plgpu.SMEM(shape, like.dtype, transforms=swizzle)
    scratch = [
        [matrix(workers, ROWS, width) for _ in arrays],
        matrix(workers, ROWS, width),
        [matrix(workers, ROWS, ROWS)] if call.interpret is not None else [],
        [plgpu.SMEM((workers, ROWS), jnp.float32) for _ in range(2)],
        plgpu.Barrier(num_arrivals=len(arrays) * found.tokens // found.window[2]),
        plgpu.Barrier(num_arrivals=workers),
    ]

    def kernel(*refs):
        inner = refs[-len(scratch) :]
        count = len(arrays)
        targets = refs[3 + count : 3 + count + outputs]
        body(_Place(call, workers, refs[:3], refs[3 : 3 + count], inner), *targets)

    kernel.__name__ = f"windows{body.__name__}"
    options = {} if call.interpret is None else {"interpret": call.interpret}
    made = plgpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(like.shape, like.dtype)] * outputs,
        scratch_types=scratch,
        grid=(like.shape[-1] // width, math.prod(len(t) for t in tables), like.shape[0]),
        grid_names=("head", "window", "batch"),
        num_threads=workers,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **options,
    )(*tables, *arrays)
    inside = tuple(slice(low, n - high) for (low, high), n in zip(around, like.shape, strict=True))
    return [a[inside] for a in made] if any(pads) else made


class _Place:
    """A warpgroup in a block: where it is, and its shared memory."""

    def __init__(self, call, workers, tables, sources, scratch):
        self.boxes, self.width, self.workers, self.spill = (
            call.boxes,
            call.width,
            workers,
            call.interpret is not None,
        )
        self.dtype, self.sources = sources[0].dtype, sources
        self.held, self.out, self.spilled, self.statistics, self.came, self.told = scratch
        self.batch, self.head, rest = (lax.axis_index(name) for name in ("batch", "head", "window"))
        self.me = lax.axis_index("warpgroup")
        self.begin, self.seen = [], []
        for table in tables[::-1]:
            count = jnp.int32(table.shape[0])
            run, rest = lax.rem(rest, count), lax.div(rest, count)
            self.begin.insert(0, table[run, 0])
            self.seen.insert(0, (table[run, 1], table[run, 2]))
        self.begin[2] *= EIGHT  # the compiler has to see that it is a multiple
        self.scale = self.width**-0.5
        # the warpgroups' tokens, one's own first
        self.parts = [lax.rem(self.me + i, jnp.int32(workers)) for i in range(workers)]

    def pieces(self):
        """(warpgroup, its rows, the place in the array) of every row of columns."""
        frames, rows, columns = self.boxes.window
        for number, (t, y) in enumerate(itertools.product(range(frames), range(rows))):
            worker, row = divmod(number * columns, ROWS)
            at = (self.batch, self.begin[0] + t, self.begin[1] + y, pl.ds(self.begin[2], columns))
            yield worker, pl.ds(row, columns), (*at, pl.ds(self.head * self.width, self.width))

    def load(self):
        """Each warpgroup brings its own tokens, and all wait for all."""
        for worker, rows, at in self.pieces():

            @pl.when(self.me == worker)
            def _(worker=worker, rows=rows, at=at):
                for source, buffer in zip(self.sources, self.held, strict=True):
                    plgpu.copy_gmem_to_smem(source.at[at], buffer.at[worker, rows], self.came)

        plgpu.barrier_wait(self.came)

    def store(self, value, target):
        """Write [ROWS, K] to this warpgroup's tokens."""
        self.out.at[self.me][...] = value.astype(self.dtype)
        plgpu.commit_smem()
        for worker, rows, at in self.pieces():

            @pl.when(self.me == worker)
            def _(worker=worker, rows=rows, at=at):
                plgpu.copy_smem_to_gmem(self.out.at[worker, rows], target.at[at])

        plgpu.wait_smem_to_gmem(0)

    def hidden(self, part):
        """What is added to scores [ROWS, ROWS] of the keys of a warpgroup: nothing, or much for keys that are not there."""
        if self.boxes.whole:
            return None
        _, rows, columns = self.boxes.window
        key = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=COLUMN) + part * ROWS
        frame = lax.div(key, jnp.int32(rows * columns))
        rest = key - frame * (rows * columns)
        row = lax.div(rest, jnp.int32(columns))
        places = (frame, row, rest - row * columns)
        there = [(p >= low) & (p < high) for p, (low, high) in zip(places, self.seen, strict=True)]
        return _spread(jnp.where(functools.reduce(lambda a, b: a & b, there), 0.0, NO_KEYS), 1)

    def product(self, a, b):
        """a b^T of two [ROWS, K] in shared memory, float32."""

        def multiply(sums):
            plgpu.wgmma(sums, a, b.transpose((1, 0)))
            return sums[...]

        return pl.run_scoped(multiply, plgpu.ACC((ROWS, ROWS), jnp.float32))

    def add_product(self, sums, a, b):
        """sums + a b, with a [ROWS, ROWS] in registers and b [ROWS, K] in shared memory."""
        a = a.astype(self.dtype)
        if not self.spill:
            return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(plgpu.ACC.init(sums))
        spilled = self.spilled[0].at[self.me]
        spilled[...] = a
        plgpu.commit_smem()

        def multiply(ref):
            plgpu.wgmma(ref, spilled, b)
            return ref[...]

        return sums + pl.run_scoped(multiply, plgpu.ACC(sums.shape, jnp.float32))

    def zeros(self):
        return plgpu.layout_cast(jnp.zeros((ROWS, self.width), jnp.float32), WIDE)

    def scores(self, queries, keys):
        """In powers of two, a tile per warpgroup of keys, and their log-sum-exp [ROWS]."""
        found = []
        for part in self.parts:
            tile, hidden = self.product(queries, keys.at[part]) * (self.scale * LOG2E), self.hidden(part)
            found.append(tile if hidden is None else tile + hidden)
        top = functools.reduce(jnp.maximum, [tile.max(axis=1) for tile in found])
        total = sum(jnp.exp2(tile - _spread(top)).sum(axis=1) for tile in found)
        return found, top + jnp.log2(total)


def _spread(x, axis=0):
    """A number per row (axis 0) or per column (axis 1) over a tile."""
    return lax.broadcast_in_dim(x, (ROWS, ROWS), [axis])


def _forward_body(place, out):
    q, k, v = place.held
    place.load()
    scores, log = place.scores(q.at[place.me], k)
    acc = place.zeros()
    for part, tile in zip(place.parts, scores, strict=True):
        acc = place.add_product(acc, jnp.exp2(tile - _spread(log)), v.at[part])
    place.store(acc, out)


def _backward_body(place, dq, dk, dv):
    q, k, v, d_out = place.held
    logs, changes = place.statistics
    me = place.me
    place.load()
    scores, log = place.scores(q.at[me], k)
    p = [jnp.exp2(tile - _spread(log)) for tile in scores]
    d_p = [place.product(d_out.at[me], v.at[part]) for part in place.parts]
    change = sum((a * b).sum(axis=1) for a, b in zip(p, d_p, strict=True))
    logs.at[me][...] = log
    changes.at[me][...] = change
    plgpu.commit_smem()
    plgpu.barrier_arrive(place.told)
    acc = place.zeros()
    for part, tile, d_tile in zip(place.parts, p, d_p, strict=True):
        acc = place.add_product(acc, tile * (d_tile - _spread(change)), k.at[part])
    place.store(acc * place.scale, dq)
    plgpu.barrier_wait(place.told)
    d_keys, d_values = place.zeros(), place.zeros()
    for part in place.parts:  # as keys: queries lie across
        log = load(logs.at[part], layout=COLUMN)
        change = load(changes.at[part], layout=COLUMN)
        tile = place.product(k.at[me], q.at[part]) * (place.scale * LOG2E)
        tile = jnp.exp2(tile - _spread(log, 1))
        d_values = place.add_product(d_values, tile, d_out.at[part])
        d_scores = tile * (place.product(v.at[me], d_out.at[part]) - _spread(change, 1))
        d_keys = place.add_product(d_keys, d_scores, q.at[part])
    place.store(d_keys * place.scale, dk)
    place.store(d_values, dv)
