# SPDX-License-Identifier: Apache-2.0
"""Attention inside shifted 3-D windows for TPU (Pallas, Mosaic), forward and backward, without a partition copy.

Letters: B batch, T Y X frames, rows and columns, H heads, K head width, n tokens of a window.

    o_i = sum_j p_ij v_j,   p_ij = softmax_j(q_i . k_j / sqrt(K)) over the tokens j of i's window

Arrays stay in the order of the grid. A window is a box of it (`boxes`), which one DMA brings to fast memory for all heads;
the box after it travels while this one is computed, and results leave in the same way. Windows that a border cuts off come
in pieces of `Boxes.unit`, into a box of zeros. A window's scores fit fast memory, so that there is no running softmax, and
the backward pass makes the probabilities again from q and k: nothing but q, k and v is kept.

Ref: LinGen's TESA, arXiv:2412.09856.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import boxes
from pallas_kernels.boxes import Boxes

Array = Any
NO_KEYS = -1e30
SLOTS = 2  # boxes of an array in fast memory: one is computed, the other travels
PIECES = 64  # that a window at a border may come in


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A window is one tile; what is left to choose is how much fast memory a kernel may have."""

    vmem_bytes: int = 64 * 2**20


def refusal(q: Any, k: Any, v: Any, window, shift, sizes: Tiles | None = None) -> str | None:
    """Why these arrays (or their shapes and dtypes) cannot be served; None if they can."""
    why = boxes.refusal(q.shape[1:4], window, shift)
    if why:
        return why
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"takes bfloat16 or float32, all the same, not {q.dtype}, {k.dtype}, {v.dtype}"
    if q.shape[-1] not in (64, 128):
        return f"takes head widths 64 and 128, not {q.shape[-1]}"
    found = Boxes(q.shape[1:4], tuple(window), tuple(shift))
    if found.tokens % 128:
        return f"takes windows of a multiple of 128 tokens, not {found.tokens}"
    pieces = found.tokens // np.prod(found.unit)
    if not found.whole and pieces > PIECES:
        return f"brings windows at borders in at most {PIECES} pieces, not {pieces}; choose even windows"
    # q, k, v, d_out and three gradients, in two slots, and sorted by heads; a head's scores and what follows from them
    need = 21 * found.tokens * (-(-q.shape[4] // 8) * 8) * 128 * q.dtype.itemsize + 24 * found.tokens**2
    limit = (sizes or Tiles()).vmem_bytes
    if need > limit:
        return f"needs {need >> 20} MiB of fast memory for a window with all heads and may have {limit >> 20}"
    return None


def attention(
    q: Array, k: Array, v: Array, *, window, shift, sizes: Tiles | None = None, interpret: Any = False
) -> Array:
    """q, k, v [B, T, Y, X, H, K] -> [B, T, Y, X, H, K] in q's dtype; every token looks at those of its window.

    window, shift: three numbers each. Differentiable (reverse mode). Raises NotImplementedError with a reason for what
    `refusal` refuses.
    """
    sizes = sizes or Tiles()
    why = refusal(q, k, v, window, shift, sizes)
    if why:
        raise NotImplementedError(f"the TPU window kernel {why}")
    call = _Call(Boxes(q.shape[1:4], tuple(window), tuple(shift)), sizes, interpret)
    return _attention(call, q, k, v)


@dataclasses.dataclass(frozen=True)
class _Call:
    boxes: Boxes
    sizes: Tiles
    interpret: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call, q, k, v):
    return _run(call, _forward_kernel, (q, k, v), 1)[0]


def _forward(call, q, k, v):
    return _attention(call, q, k, v), (q, k, v)


def _backward(call, saved, d_out):
    return _run(call, _backward_kernel, (*saved, d_out.astype(saved[0].dtype)), 3)


_attention.defvjp(_forward, _backward)


def _run(call, kernel, arrays, outputs):
    """The kernel over all heads of all windows: ``kernel(allowed, *matrices [n, K]) -> matrices``, as many as outputs."""
    like, found = arrays[0], call.boxes
    axes = found.axes
    counts = (like.shape[0], *map(len, axes))
    runs = np.concatenate([axis.reshape(-1) for axis in axes])
    # where in its window each token is: who of a window at a border is there can be told by comparing
    places = (
        np.stack(np.meshgrid(*map(np.arange, found.window), indexing="ij")).reshape(3, -1).astype(np.int32)
    )
    box = (*found.window, *like.shape[4:])

    def body(runs, places, *refs):
        sources, refs = refs[: len(arrays)], refs[len(arrays) :]
        targets, refs = refs[:outputs], refs[outputs:]
        held, by_head = refs[: (len(refs) - 2) // 2], refs[(len(refs) - 2) // 2 : -2]
        cut = lambda some: (some[: len(arrays)], some[len(arrays) :])
        (coming, leaving), (came, left) = cut(held), refs[-2:]
        work = _Work(found, counts, runs, (sources, coming, came), (targets, leaving, left), cut(by_head))
        work.step(kernel, places)

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        body,
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype)] * outputs,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(int(np.prod(counts)),),
            in_specs=[pl.BlockSpec(places.shape, lambda *_: (0, 0)), *[anywhere] * len(arrays)],
            out_specs=[anywhere] * outputs,
            scratch_shapes=[pltpu.VMEM((SLOTS, *box), like.dtype) for _ in range(len(arrays) + outputs)]
            + [pltpu.VMEM((box[3], found.tokens, box[4]), like.dtype) for _ in range(len(arrays) + outputs)]
            + [pltpu.SemaphoreType.DMA((SLOTS,)) for _ in range(2)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=call.sizes.vmem_bytes
        ),
        interpret=call.interpret,
        name=f"windows{kernel.__name__}",
    )(jnp.asarray(runs), jnp.asarray(places), *arrays)


class _Work:
    """One step of the grid, which is one window of one video."""

    def __init__(self, found, counts, runs, inputs, outputs, by_head):
        self.boxes, self.counts, self.runs, self.inputs, self.outputs = found, counts, runs, inputs, outputs
        self.sorted = by_head
        self.steps = int(np.prod(counts))

    def step(self, kernel, places):
        at = pl.program_id(0)
        slot = jax.lax.rem(at, SLOTS)

        @pl.when(at == 0)
        def _():
            self.fetch(at)

        @pl.when(at + 1 < self.steps)
        def _():
            self.fetch(at + 1)

        self.travel(at, self.inputs, inward=True, wait=True)
        allowed = self.allowed(at, places)
        for buffer, by_head in zip(self.inputs[1], self.sorted[0], strict=True):
            by_head[...] = jnp.swapaxes(buffer[slot].reshape(-1, *buffer.shape[4:]), 0, 1)

        def head(number, _):  # one at a time: the scores of several do not fit registers
            results = kernel(allowed, *(by_head[number] for by_head in self.sorted[0]))
            for result, by_head in zip(results, self.sorted[1], strict=True):
                by_head[number] = result.astype(by_head.dtype)

        jax.lax.fori_loop(0, self.sorted[0][0].shape[0], head, None)

        @pl.when(at >= SLOTS)
        def _():  # what left from this slot before must be gone
            self.travel(at - SLOTS, self.outputs, inward=False, wait=True)

        for buffer, by_head in zip(self.outputs[1], self.sorted[1], strict=True):
            buffer[slot] = jnp.swapaxes(by_head[...], 0, 1).reshape(buffer.shape[1:])
        self.travel(at, self.outputs, inward=False, wait=False)

        @pl.when(at == self.steps - 1)
        def _():
            for before in range(min(SLOTS, self.steps)):
                self.travel(at - before, self.outputs, inward=False, wait=True)

    def fetch(self, at):
        """Start to bring a window; the box of one that a border cuts off is made empty first."""
        if not self.boxes.whole:

            @pl.when(jnp.logical_not(self.is_whole(at)))
            def _():
                for buffer in self.inputs[1]:
                    slot = jax.lax.rem(at, SLOTS)
                    buffer[slot] = jnp.zeros(buffer.shape[1:], buffer.dtype)

        self.travel(at, self.inputs, inward=True, wait=False)

    def place(self, at):
        """(video, starts, lengths) of the window of a step."""
        rest, starts, lengths = at, [], []
        ends = np.cumsum([0, *self.counts[1:]])
        for axis in (2, 1, 0):
            count = self.counts[axis + 1]
            run = ends[axis] + jax.lax.rem(rest, jnp.int32(count))
            rest = jax.lax.div(rest, jnp.int32(count))
            starts.insert(0, self.runs[2 * run])
            lengths.insert(0, self.runs[2 * run + 1])
        return rest, starts, lengths

    def is_whole(self, at):
        _, _, lengths = self.place(at)
        pairs = zip(lengths, self.boxes.window, strict=True)
        return functools.reduce(jnp.logical_and, [length == w for length, w in pairs])

    def travel(self, at, arrays, *, inward, wait):
        """Start, or wait for, the DMAs of a step's boxes."""
        outside, inside, semaphore = arrays
        slot = jax.lax.rem(at, SLOTS)
        video, starts, lengths = self.place(at)

        def copy(corner, size):
            cut = [pl.ds(start + c, n) for start, c, n in zip(starts, corner, size, strict=True)]
            here = [pl.ds(c, n) for c, n in zip(corner, size, strict=True)]
            for far, near in zip(outside, inside, strict=True):
                pair = far.at[video, *cut], near.at[slot, *here]
                copy = pltpu.make_async_copy(*(pair if inward else pair[::-1]), semaphore.at[slot])
                copy.wait() if wait else copy.start()

        if self.boxes.whole:
            copy((0, 0, 0), self.boxes.window)
            return
        whole = self.is_whole(at)
        pl.when(whole)(functools.partial(copy, (0, 0, 0), self.boxes.window))
        unit = self.boxes.unit
        corners = [range(0, w, u) for w, u in zip(self.boxes.window, unit, strict=True)]
        for corner in itertools.product(*corners):
            pairs = zip(corner, lengths, strict=True)
            there = functools.reduce(jnp.logical_and, [c < length for c, length in pairs])
            pl.when(jnp.logical_not(whole) & there)(functools.partial(copy, corner, unit))

    def allowed(self, at, places):
        """bool [1, n]: which tokens of the box are there; None where all are, always."""
        if self.boxes.whole:
            return None
        _, _, lengths = self.place(at)
        parts = [places[axis : axis + 1, :] < length for axis, length in enumerate(lengths)]
        return functools.reduce(jnp.logical_and, parts)


def _dot(a, b, contract):
    """a b with the given axes contracted, summed in float32; in full precision for float32 arrays."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    axes = ((contract[0],), (contract[1],)), ((), ())
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _probabilities(allowed, q, k):
    """float32 [queries, keys]."""
    scores = _dot(q, k, (1, 1)) * (q.shape[-1] ** -0.5)
    if allowed is not None:
        scores = jnp.where(allowed, scores, NO_KEYS)
    p = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return p / jnp.sum(p, axis=-1, keepdims=True)


def _forward_kernel(allowed, q, k, v):
    p = _probabilities(allowed, q, k)
    return (_dot(p.astype(v.dtype), v, (1, 0)),)


def _backward_kernel(allowed, q, k, v, d_out):
    p = _probabilities(allowed, q, k)
    dv = _dot(p.astype(q.dtype), d_out, (0, 0))
    d_p = _dot(d_out, v, (1, 1))
    d_scores = p * (d_p - jnp.sum(p * d_p, axis=-1, keepdims=True)) * (q.shape[-1] ** -0.5)
    d_scores = d_scores.astype(q.dtype)
    dq = _dot(d_scores, k, (1, 0))
    dk = _dot(d_scores, q, (0, 0))
    return dq, dk, dv
