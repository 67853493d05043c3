# SPDX-License-Identifier: Apache-2.0
"""Attention inside 3-D windows of a grid of tokens, shifted or not.

Letters of this file: B batch, T H W the grid, N heads, K head width.

For an axis of length n, window w and shift s: roll by -s; the token with index i lands at (i - s) mod n, in window
(that // w), and it wrapped around iff i < s. Two tokens attend iff window and wrap flag agree on all three axes. Axes
that the window does not divide are padded after the roll, and nobody looks at padding.

`reference` is that sentence: full attention under a mask. `partition` rolls, pads and sorts tokens into windows, which
become a batch of short sequences. `mosaic_tpu` and `mosaic_gpu` are kernels that read windows where they lie.

Ref: Swin, arXiv:2103.14030. LinGen's TESA, arXiv:2412.09856.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.ops.attention import attention
from jaxvid.ops.masks import array, segments
from jaxvid.ops.per_device import per_device
from jaxvid.ops.pick import kernel_interprets, pick
from jaxvid.ops.ring import roll_frames
from jaxvid.ops.shards import Shards
from jaxvid.sharding import SEQUENCE, cut_frames, shared_mesh, spread_mesh

Triple = tuple[int, int, int]


def window_attention(
    q: Float[Array, "B T H W N K"],
    k: Float[Array, "B T H W N K"],
    v: Float[Array, "B T H W N K"],
    *,
    window: Triple,
    shift: Triple = (0, 0, 0),
    implementation: str | None = None,
) -> Float[Array, "B T H W N K"]:
    """Every token attends to those of its window; the result has q's dtype.

    window: 1 .. n along each axis, shift: 0 .. window - 1.
    implementation: ``reference | partition | mosaic_gpu | mosaic_tpu``; None chooses by platform.

    Raises ValueError on shapes, windows and shifts that do not fit, NotImplementedError when the named one refuses.
    """
    said = f"window attention got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 6 or not q.shape == k.shape == v.shape:
        raise ValueError(f"{said}; want three equal shapes [B, T, H, W, heads, K]")
    fits = all(1 <= w <= n and 0 <= s < w for n, w, s in zip(q.shape[1:4], window, shift, strict=True))
    if not fits:
        raise ValueError(
            f"{said} and windows {window} shifted by {shift}; want 1 <= window <= axis, shift < window"
        )
    order = {
        "gpu": ("mosaic_gpu", "partition"),
        "tpu": ("mosaic_tpu", "partition"),
        "default": ("partition",),
    }
    return pick("windows", IMPLEMENTATIONS, order, implementation)(q, k, v, tuple(window), tuple(shift))


def regions(grid: Triple, window: Triple, shift: Triple) -> np.ndarray:
    """Region of every token, in rolled and padded order: int [T', H', W'], -1 on padding.

    Inside one window, tokens of equal region attend to each other.
    """
    axes = []
    for n, w, s in zip(grid, window, shift, strict=True):
        original = (np.arange(n) + s) % n
        flag = np.where(original < s, 1, 0)
        axes.append(np.concatenate([flag, np.full(-n % w, -1)]))
    t, h, w = np.meshgrid(*axes, indexing="ij")
    return np.where((t < 0) | (h < 0) | (w < 0), -1, 4 * t + 2 * h + w)


def sort_into_windows(x, window: Triple):
    """[B, T', H', W', ...] -> [B * windows, tokens of a window, ...]."""
    b, t, h, w = x.shape[:4]
    i, j, k = window
    x = x.reshape(b, t // i, i, h // j, j, w // k, k, *x.shape[4:])
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, *range(7, x.ndim))
    return x.reshape(-1, i * j * k, *x.shape[7:])


def merge(x, batch: int, padded: Triple, window: Triple):
    """The inverse of `sort_into_windows`."""
    i, j, k = window
    t, h, w = (n // a for n, a in zip(padded, window, strict=True))
    x = x.reshape(batch, t, h, w, i, j, k, *x.shape[2:])
    return x.transpose(0, 1, 4, 2, 5, 3, 6, *range(7, x.ndim)).reshape(batch, *padded, *x.shape[7:])


def partition(q, k, v, window: Triple, shift: Triple):
    """Windows as a batch: two rolls, a padding and two transpositions around plain attention."""
    b, *grid, heads, width = q.shape
    padded = tuple(n + -n % w for n, w in zip(grid, window, strict=True))
    x = jnp.concatenate([a.reshape(b, *grid, heads * width) for a in (q, k, v)], -1)
    x = _roll(x, [-s for s in shift]) if any(shift) else x
    x = jnp.pad(x, [(0, 0), *((0, p - n) for n, p in zip(grid, padded, strict=True)), (0, 0)])
    q, k, v = jnp.split(sort_into_windows(x, window), 3, -1)
    q, k, v = (a.reshape(*a.shape[:2], heads, width) for a in (q, k, v))
    mask = None
    if any(shift) or padded != tuple(grid):
        ids = sort_into_windows(regions(tuple(grid), window, shift)[None], window)
        ids = jnp.asarray(np.tile(ids, (b, 1)), jnp.int32)
        mask = segments(ids, ids)
    y = attention(q, k, v, mask=mask)
    y = merge(y.reshape(*y.shape[:2], -1), b, padded, window)[:, : grid[0], : grid[1], : grid[2]]
    y = _roll(cut_frames(y), shift) if any(shift) else y
    return y.reshape(b, *grid, heads, width)


def reference(q, k, v, window: Triple, shift: Triple):
    """The definition, on all tokens at once: the oracle."""
    labels = []
    for n, w, s in zip(q.shape[1:4], window, shift, strict=True):
        place = np.arange(n)
        labels.append((place - s) % n // w * 2 + (place < s))
    ids = np.stack(np.meshgrid(*labels, indexing="ij"), -1).reshape(-1, 3)
    mask = array(jnp.asarray((ids[:, None] == ids[None]).all(-1)))
    flat = (a.reshape(a.shape[0], -1, *a.shape[4:]) for a in (q, k, v))
    return attention(*flat, mask=mask, implementation="reference").reshape(q.shape)


def mosaic_tpu(q, k, v, window: Triple, shift: Triple):
    """The kernel of `pallas_kernels.windows_tpu`."""
    from pallas_kernels import windows_tpu

    interpret = kernel_interprets("tpu")
    run = functools.partial(windows_tpu.attention, window=window, interpret=interpret)
    return _kernel(run, q, k, v, window, shift)


def mosaic_gpu(q, k, v, window: Triple, shift: Triple):
    """The kernel of `pallas_kernels.windows_gpu`."""
    interpret = kernel_interprets("gpu", "9.0")
    from pallas_kernels import windows_gpu

    interpret = windows_gpu.plgpu.InterpretGPUParams() if interpret else None
    run = functools.partial(windows_gpu.attention, window=window, interpret=interpret)
    return _kernel(run, q, k, v, window, shift)


def _kernel(run, q, k, v, window: Triple, shift: Triple):
    """``run(q, k, v, shift=shift)``, on a mesh by every device for its rows, heads and frames.

    Shifted frames first go to the device whose windows they are in, and after it back: no device asks for more than
    ``shift`` frames of its neighbour.
    """
    mesh = shared_mesh()
    size = 1 if mesh is None else mesh.shape[SEQUENCE]
    if size == 1:
        return per_device(functools.partial(run, shift=shift), (q, k, v), ("b...h.",) * 3, "b...h.")
    frames = q.shape[1] // size
    if q.shape[1] % size == 0 and frames % window[0]:
        raise NotImplementedError(
            f"windows of {window[0]} frames do not divide the {frames} frames of a device"
        )
    shards, by = Shards(SEQUENCE, size), shift[0]
    unshifted = functools.partial(run, shift=(0, *shift[1:]))

    def around(
        q, k, v
    ):  # the last device has frames of both ends, which the kernel knows by their places in q
        q, k, v = (jnp.roll(a, by, 1) for a in (q, k, v))
        return jnp.roll(run(q, k, v, shift=shift), -by, 1)

    def local(q, k, v):
        if not by:
            return unshifted(q, k, v)
        q, k, v = jnp.split(shards.roll(jnp.concatenate([q, k, v], -1), -by), 3, -1)
        y = jax.lax.cond(shards.rank() == size - 1, around, unshifted, q, k, v)
        return shards.roll(y, by)

    return per_device(local, (q, k, v), ("bt..h.",) * 3, "bt..h.")


IMPLEMENTATIONS = {
    "reference": reference,
    "partition": partition,
    "mosaic_gpu": mosaic_gpu,
    "mosaic_tpu": mosaic_tpu,
}


def _roll(x, shift):
    """Roll [B, T, H, W, D]; frames that are spread over devices go no farther than to the neighbour."""
    x = jnp.roll(x, shift[1:], (2, 3))
    return roll_frames(x, shift[0], spread_mesh())
