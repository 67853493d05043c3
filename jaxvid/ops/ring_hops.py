# SPDX-License-Identifier: Apache-2.0
"""The ring: keys and values travel from device to device while every device attends to what it holds.

Hop i brings the keys of the device i places before. Hops that no device needs at the end are left out, blocks that a
mask rules out are not computed, and blocks that it allows whole are computed without a mask. K and V are one message.

One `optimization_barrier` per hop ties the message that arrives to the result so far. Without it XLA may send
everything first and compute afterwards, with all keys alive at once; with it every hop is send, compute, wait.

Going back, the gradients of keys and values travel one hop behind them and take one last hop home.

Ref: Ring attention (arXiv 2310.01889).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxvid.ops import masks
from jaxvid.ops.ring_parts import (
    Moved,
    Parts,
    by_rank,
    in_turn,
    invariant,
    merge,
    nothing,
    pack,
    sees,
    unpack,
    wide,
)
from jaxvid.ops.shards import Shards

ALL, MOVED = (
    "all",
    "moved",
)  # beside these a block is None (skipped) or the distance from its keys to its queries


def forward(q, kv, mask: masks.Mask, shards: Shards, parts: Parts):
    """q [B, n, H, K] and kv ([B, n, G, K], [B, n, G, Kv]) of one shard -> (o, lse) over the keys of all shards."""
    n, rank, rows = q.shape[1], shards.rank(), blocks(mask, q.shape[1], shards.ranks)
    message, result = pack(kv), None
    for i, row in enumerate(rows):
        arriving = shards.send(message) if i + 1 < len(rows) else None

        def attend(kind, q, kv, i=i):
            if kind is None:
                return nothing(q, kv[1].shape[-1])
            return parts.attend(q, kv, *_block(kind, mask, n, rank, i, shards))

        part = by_rank(rank, row, attend, q, unpack(message, q.shape[-1]))
        result = part if result is None else merge(result, part)
        if arriving is not None:
            message, result = in_turn(arriving, result)
    return result


def backward(q, kv, do, lse, delta, mask: masks.Mask, shards: Shards, parts: Parts):
    """(dq, (dk, dv)) of one shard; do [B, n, H, Kv], lse and delta [B, n, H] of its queries."""
    n, rank, rows = q.shape[1], shards.rank(), blocks(mask, q.shape[1], shards.ranks)
    message = pack(kv)
    dq, owed = jnp.zeros(q.shape, wide(q)), jnp.zeros(message.shape, wide(q))
    for i, row in enumerate(rows):
        arriving = shards.send(message) if i + 1 < len(rows) else None

        def gradients(kind, q, kv, do, lse, delta, i=i):
            if kind is None:
                return jnp.zeros(q.shape, wide(q)), tuple(jnp.zeros(a.shape, wide(q)) for a in kv)
            return parts.gradients(q, kv, do, lse, delta, *_block(kind, mask, n, rank, i, shards))

        following = shards.send(owed) if i else owed  # needs nothing of this hop's block: travels beside it
        to_q, to_kv = by_rank(rank, row, gradients, q, unpack(message, q.shape[-1]), do, lse, delta)
        dq, owed = dq + to_q, following + pack(to_kv)
        if arriving is not None:
            message, (dq, owed) = in_turn(arriving, (dq, owed))
    return dq, unpack(shards.send(owed, 1 - len(rows)), q.shape[-1])


def blocks(mask: masks.Mask, n: int, ranks: int) -> list[list]:
    """What each rank (column) does at each hop (row)."""
    steady = invariant(mask, n)
    rows = []
    for i in range(ranks):
        row: list = []
        for rank in range(ranks):
            source = (rank - i) % ranks
            some, every = sees(mask, n, rank, source)
            row.append(None if not some else ALL if every else (rank - source) * n if steady else MOVED)
        rows.append(row)
    while len(rows) > 1 and not any(kind is not None for kind in rows[-1]):
        rows.pop()
    return rows


def _block(kind, mask, n, rank, i, shards):
    """(mask, q_offset) of a block."""
    if kind == ALL:
        return masks.full(), 0
    if kind == MOVED:
        return Moved(mask, rank * n, (rank - i) % shards.ranks * n), 0
    return mask, kind
