# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention with masks as values, in bounded memory where the problem is large.

Letters of this file: B batch, L tokens (Lq queries, Lk keys), H heads, G key and value heads (head h uses h // (H/G)),
K head width.

    o_i = sum_j p_ij v_j,   p_ij = softmax_j(q_i . k_j / sqrt(K)) over the keys that the mask allows

A row without keys gives o = 0 and a log-sum-exp of -1e30. Scores, softmax and sums are in at least float32.
`reference` holds all scores at once. `chunked` walks over tiles with a running maximum and sum, leaves out tiles that
the mask rules out, and recomputes tiles in the backward pass. `mosaic_tpu` and `mosaic_gpu` are kernels, the choice on
their platforms; they have no forward-mode derivative.

Ref: Rabe and Staats, "Self-attention does not need O(n^2) memory" (arXiv 2112.05682); Milakov and Gimelshein, "Online
normalizer calculation for softmax" (arXiv 1805.02867).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxvid.ops import masks
from jaxvid.ops.mask_rules import mask_rules
from jaxvid.ops.per_device import per_device
from jaxvid.ops.pick import kernel_interprets, pick, platform

NO_KEYS = -1e30  # the log-sum-exp of a row without keys: finite, so that merging partial results has no NaN
BLOCK = 512  # tokens of a tile's sides
SMALL = 2**22  # up to this many scores (all heads of the batch together) the plain form is faster
GROUPS = (
    8  # query blocks form so many groups of like reach; within a group all walk over equally many key blocks
)


def attention(
    q: Float[Array, "B Lq H K"],
    k: Float[Array, "B Lk G K"],
    v: Float[Array, "B Lk G Kv"],
    *,
    mask: masks.Mask | Bool[Array, "..."] | np.ndarray | None = None,
    implementation: str | None = None,
    q_offset: int | Int[Array, ""] = 0,
) -> Float[Array, "B Lq H Kv"]:
    """Attend: q [B, Lq, H, K], k [B, Lk, G, K], v [B, Lk, G, Kv] with G dividing H -> [B, Lq, H, Kv] in q's dtype.

    mask: a value of `jaxvid.ops.masks`, or booleans broadcastable to [B, H, Lq, Lk]; None looks everywhere.
    q_offset: the position of the first query, the first key being at 0; with an int, hidden tiles are skipped.
    implementation: ``reference | chunked | cudnn | mosaic_gpu | mosaic_tpu``; None chooses by size and platform.

    Raises ValueError on shapes that do not fit, NotImplementedError when the named implementation refuses.
    """
    return attention_with_lse(
        q, k, v, mask=mask, implementation=implementation, q_offset=q_offset, lse=False
    )[0]


def attention_with_lse(
    q: Float[Array, "B Lq H K"],
    k: Float[Array, "B Lk G K"],
    v: Float[Array, "B Lk G Kv"],
    *,
    mask: masks.Mask | Bool[Array, "..."] | np.ndarray | None = None,
    implementation: str | None = None,
    q_offset: int | Int[Array, ""] = 0,
    lse: bool = True,
) -> tuple[Float[Array, "B Lq H Kv"], Float[Array, "B Lq H"] | None]:
    """As `attention`, with the natural log of the sum of exponentials, at least float32 [B, Lq, H] (-1e30: no keys).

    Results over disjoint sets of keys merge by it: m = max(l1, l2), w_i = exp(l_i - m), o = sum w_i o_i / sum w_i.
    With ``lse=False`` it may be None.
    """
    mask = masks.as_mask(mask)
    _check(q, k, v, mask)
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1]
    one_tile = max(q.shape[1], k.shape[1]) <= BLOCK  # many small windows: tiles would save nothing
    plain = ("reference",) if scores <= SMALL or one_tile else ("chunked",)
    order = {"gpu": ("mosaic_gpu", "cudnn", *plain), "tpu": ("mosaic_tpu", *plain), "default": plain}
    return pick("attention", IMPLEMENTATIONS, order, implementation)(q, k, v, mask, q_offset, lse)


def reference(q, k, v, mask, q_offset, lse):
    """All scores at once: the oracle."""
    scores = _scores(q, k)
    allowed = _allowed(mask, jnp.arange(q.shape[1]), jnp.arange(k.shape[1]), q_offset, scores.shape)
    top, total, out = _softmax_sums(scores, allowed, v)
    return _finish(top, total, out, q, lse)


def chunked(q, k, v, mask, q_offset, lse):
    """Tile by tile with a running softmax; memory is linear in the length."""
    q_len, k_len = q.shape[1], k.shape[1]
    q_block, k_block = min(BLOCK, q_len), min(BLOCK, k_len)
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    q_blocks, k_blocks = -(-q_len // q_block), -(-k_len // k_block)

    def blocks(x, size, count):  # [B, L, ...] -> [count, B, size, ...]
        x = jnp.pad(x, ((0, 0), (0, count * size - x.shape[1]), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    k_tiles, v_tiles = blocks(k, k_block, k_blocks), blocks(v, k_block, k_blocks)
    q_tiles = blocks(q, q_block, q_blocks)
    heads = (k.shape[2], q.shape[2] // k.shape[2])

    @jax.checkpoint
    def tile(carry, key_block, q_tile, q_index):
        top, total, out = carry
        k_index = key_block * k_block + jnp.arange(k_block)  # key_block is -1 when there is none left to see
        at = jnp.maximum(key_block, 0)
        scores = _scores(q_tile, jax.lax.dynamic_index_in_dim(k_tiles, at, 0, keepdims=False))
        inside = jnp.clip(k_index, 0, k_len - 1)
        allowed = _allowed(mask, jnp.minimum(q_index, q_len - 1), inside, q_offset, scores.shape)
        allowed &= ((k_index >= 0) & (k_index < k_len))[None, None, None, None]
        values = jax.lax.dynamic_index_in_dim(v_tiles, at, 0, keepdims=False)
        new_top, new_total, new_out = _softmax_sums(scores, allowed, values)
        high = jnp.maximum(top, new_top)
        old, new = jnp.exp(top - high), jnp.exp(new_top - high)
        return (high, total * old + new_total * new, out * old[..., None] + new_out * new[..., None])

    @jax.checkpoint
    def row(q_tile, block, key_blocks):
        q_index = block * q_block + jnp.arange(q_block)
        shape = (q.shape[0], *heads, q_block)
        empty = (
            jnp.full(shape, NO_KEYS, dtype),
            jnp.zeros(shape, dtype),
            jnp.zeros((*shape, v.shape[-1]), dtype),
        )
        sums, _ = jax.lax.scan(
            lambda sums, key_block: (tile(sums, key_block, q_tile, q_index), None), empty, key_blocks
        )
        return _finish(*sums, q_tile, lse)

    outs, logs = [], []
    for first, table in _reach(mask, q_offset, q_len, k_len, q_block, k_block):
        rows = slice(first, first + len(table))
        number = jnp.arange(rows.start, rows.stop)
        _, (out, log) = jax.lax.scan(
            lambda _, a: (None, row(*a)), None, (q_tiles[rows], number, jnp.asarray(table))
        )
        outs.append(out)
        logs.append(log)

    def together(parts):
        x = jnp.moveaxis(jnp.concatenate(parts), 0, 1)  # [B, blocks, q_block, ...]
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :q_len]

    return together(outs), together(logs) if lse else None


def cudnn(q, k, v, mask, q_offset, lse):
    """cuDNN's flash attention through jax.nn, for the masks that it can name."""
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        raise NotImplementedError(f"cudnn takes float16 and bfloat16, not {q.dtype}")
    if platform() != "gpu":
        raise NotImplementedError("cudnn runs on NVIDIA GPUs only")
    if q.shape[-1] % 8 or q.shape[-1] > 128 or v.shape[-1] != q.shape[-1]:
        raise NotImplementedError(
            f"cudnn takes head widths that are multiples of 8 up to 128, not {q.shape[-1]}"
        )
    if lse:
        raise NotImplementedError("cudnn does not return the log-sum-exp here")
    if not isinstance(q_offset, int) or q_offset:
        raise NotImplementedError("cudnn takes queries that start at position 0")
    if isinstance(mask, masks.Full):
        how = {}
    elif mask == masks.causal():
        how = {"is_causal": True}
    elif isinstance(mask, masks.Band) and mask.right == 0:
        how = {"is_causal": True, "local_window_size": (mask.left, 0)}
    else:
        raise NotImplementedError(f"cudnn has no words for the mask {mask}")
    if how and q.shape[1] != k.shape[1]:
        raise NotImplementedError("cudnn takes causal masks on equal lengths only")
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **how), None


def mosaic_tpu(q, k, v, mask, q_offset, lse):
    """The kernel of `pallas_kernels.attention_tpu`."""
    from pallas_kernels import attention_tpu

    interpret = kernel_interprets("tpu")
    return _kernel(attention_tpu, q, k, v, mask, q_offset, interpret)


def mosaic_gpu(q, k, v, mask, q_offset, lse):
    """The kernel of `pallas_kernels.attention_gpu`."""
    interpret = kernel_interprets("gpu", "9.0")
    from pallas_kernels import attention_gpu

    interpret = attention_gpu.plgpu.InterpretGPUParams() if interpret else None
    return _kernel(attention_gpu, q, k, v, mask, q_offset, interpret)


def _kernel(module, q, k, v, mask, q_offset, interpret):
    why = module.refusal(q, k, v)
    if why:
        raise NotImplementedError(f"the kernel {why}")
    rules, q_ids, k_ids = mask_rules(mask, q.shape[0], q.shape[1], k.shape[1])

    def local(q, k, v, q_ids, k_ids, offset):
        at = q_offset if offset is None else offset
        return module.attention(
            q, k, v, mask=rules, q_ids=q_ids, k_ids=k_ids, q_offset=at, interpret=interpret
        )

    offset = None if isinstance(q_offset, int | np.integer) else q_offset
    keys = "b.h." if k.shape[2] > 1 else "b..."
    words = ("b.h.", keys, keys, "b.", "b.", "")
    return per_device(local, (q, k, v, q_ids, k_ids, offset), words, ("b.h.", "b.h"))


IMPLEMENTATIONS = {
    "reference": reference,
    "chunked": chunked,
    "cudnn": cudnn,
    "mosaic_gpu": mosaic_gpu,
    "mosaic_tpu": mosaic_tpu,
}


def _scores(q, k):
    """[B, G, H/G, q, k], scaled, in at least float32."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    return jnp.einsum("bqgrk,bsgk->bgrqs", q, k, preferred_element_type=dtype) * (q.shape[-1] ** -0.5)


def _allowed(mask, q_index, k_index, q_offset, shape):
    """The mask of a tile, broadcastable to the scores [B, G, H/G, q, k]."""
    if isinstance(mask, masks.Full):
        return jnp.ones((1, 1, 1, 1, 1), bool)
    allowed = mask.allowed(q_index, k_index, q_index + q_offset, k_index)
    allowed = allowed.reshape((1,) * (4 - allowed.ndim) + allowed.shape)
    batch, heads, *tile = allowed.shape
    return allowed.reshape(batch, *((1, 1) if heads == 1 else shape[1:3]), *tile)


def _softmax_sums(scores, allowed, v):
    """Of the allowed keys: maximum [..., q], sum of exponentials [..., q], and their sum of values [..., q, Kv]."""
    allowed = jnp.broadcast_to(allowed, scores.shape)
    # the maximum only keeps exp in range and cancels from the result, so that nothing flows back through it
    top = jax.lax.stop_gradient(jnp.max(jnp.where(allowed, scores, NO_KEYS), axis=-1))
    p = jnp.exp(jnp.where(allowed, scores - top[..., None], NO_KEYS))
    out = jnp.einsum("bgrqs,bsgk->bgrqk", p.astype(v.dtype), v, preferred_element_type=p.dtype)
    return top, jnp.sum(p, axis=-1), out


def _finish(top, total, out, q, lse):
    """Divide, and put heads back behind tokens: [B, Lq, H, Kv] in q's dtype and [B, Lq, H]."""
    safe = jnp.where(total > 0, total, 1)
    out = jnp.moveaxis(out / safe[..., None], 3, 1)
    out = out.reshape(*out.shape[:2], -1, out.shape[-1]).astype(q.dtype)
    if not lse:
        return out, None
    log = jnp.moveaxis(jnp.where(total > 0, top + jnp.log(safe), NO_KEYS), 3, 1)
    return out, log.reshape(*log.shape[:2], -1)


def _reach(mask, q_offset, q_len, k_len, q_block, k_block):
    """Which key blocks each query block can see: pairs (first query block, int32 table [blocks, seen], -1 padded)."""
    q_blocks, k_blocks = -(-q_len // q_block), -(-k_len // k_block)
    known = isinstance(q_offset, int)

    def sees(i, j):
        low, high = i * q_block + q_offset, min((i + 1) * q_block, q_len) - 1 + q_offset
        return mask.some_every(low, high, j * k_block, min((j + 1) * k_block, k_len) - 1)[0]

    seen = [[j for j in range(k_blocks) if not known or sees(i, j)] for i in range(q_blocks)]
    size = -(-q_blocks // GROUPS)
    if len({len(s) for s in seen}) == 1:
        size = q_blocks
    for first in range(0, q_blocks, size):
        rows = seen[first : first + size]
        table = np.full((len(rows), max(1, *(len(r) for r in rows))), -1, np.int32)
        for i, r in enumerate(rows):
            table[i, : len(r)] = r
        yield first, table


def _check(q, k, v, mask):
    said = f"attention got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    fits = q.ndim == k.ndim == v.ndim == 4 and k.shape[:3] == v.shape[:3]
    if not fits or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"{said}; want q [B,Lq,H,K], k [B,Lk,G,K], v [B,Lk,G,Kv]")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{said}; the key heads must divide the query heads")
    if isinstance(mask, masks.Table):
        wanted = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        try:
            ok = jnp.broadcast_shapes(mask.values.shape, wanted) == wanted
        except ValueError:
            ok = False
        if not ok:
            raise ValueError(f"{said} and a mask {tuple(mask.values.shape)}; it must broadcast to {wanted}")
