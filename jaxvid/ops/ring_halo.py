# SPDX-License-Identifier: Apache-2.0
"""Masks that reach no farther than the neighbouring shards: no ring, the edges are exchanged once.

Every device sends the last keys of its shard to the right and the first ones to the left, as many as a query can see,
attends to its own keys while they travel, and then lets the queries near an edge look across it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxvid.ops import masks
from jaxvid.ops.ring_parts import Parts, in_turn, invariant, merge, pack, sees, unpack
from jaxvid.ops.shards import Shards


@dataclasses.dataclass(frozen=True)
class Edge:
    """How far a mask reaches across one edge of a shard, in tokens: so many keys, looked at by so many queries."""

    keys: int
    queries: int


def edges(mask: masks.Mask, n: int, ranks: int) -> tuple[Edge, Edge] | None:
    """What lies beyond the left and the right edge, or None when edges are not enough, or a ring costs less."""
    if ranks < 2 or not invariant(mask, n) or isinstance(mask, masks.Full):
        return None
    if any(sees(mask, n, a, b)[0] for d in range(2, ranks) for a, b in ((0, d), (d, 0))):
        return None

    def left(keys: int, queries: int) -> bool:
        """Whether a query from the ``queries``-th on sees a key more than ``keys`` from the edge."""
        return mask.some_every(n + queries, 2 * n - 1, 0, n - 1 - keys)[0]

    def right(keys: int, queries: int) -> bool:
        return mask.some_every(0, n - 1 - queries, n + keys, 2 * n - 1)[0]

    wide = _least(n, lambda keys: left(keys, 0))
    while not invariant(mask, n - wide):  # the first key of the edge must be where the mask allows to begin
        wide += 1
    found = (
        Edge(wide, _least(n, lambda queries: left(0, queries))),
        Edge(_least(n, lambda keys: right(keys, 0)), _least(n, lambda queries: right(0, queries))),
    )
    return found if sum(edge.keys for edge in found) <= (ranks - 1) * n else None


def forward(q, kv, mask: masks.Mask, shards: Shards, parts: Parts):
    """As `ring_hops.forward`."""
    left, right = edges(mask, q.shape[1], shards.ranks)
    before, after = _neighbours(pack(kv), left, right, shards)
    o, lse = parts.attend(q, kv, mask)
    (before, after), (o, lse) = in_turn((before, after), (o, lse))
    rank, n = shards.rank(), q.shape[1]
    for edge, message, rows, offset, there in _sides(left, right, before, after, rank, n, shards):
        if edge.queries:
            more, log = parts.attend(q[:, rows], unpack(message, q.shape[-1]), mask, offset)
            new = merge((o[:, rows], lse[:, rows]), (more, log))
            o = o.at[:, rows].set(jnp.where(there, new[0], o[:, rows]))
            lse = lse.at[:, rows].set(jnp.where(there, new[1], lse[:, rows]))
    return o, lse


def backward(q, kv, do, lse, delta, mask: masks.Mask, shards: Shards, parts: Parts):
    """As `ring_hops.backward`."""
    left, right = edges(mask, q.shape[1], shards.ranks)
    before, after = _neighbours(pack(kv), left, right, shards)
    dq, to_kv = parts.gradients(q, kv, do, lse, delta, mask)
    owed = pack(to_kv)
    (before, after), (dq, owed) = in_turn((before, after), (dq, owed))
    rank, n = shards.rank(), q.shape[1]
    for edge, message, rows, offset, there in _sides(left, right, before, after, rank, n, shards):
        if edge.queries:
            told = (a[:, rows] for a in (do, lse, delta))
            to_q, to_kv = parts.gradients(q[:, rows], unpack(message, q.shape[-1]), *told, mask, offset)
            to_q, to_kv = jax.tree.map(lambda a, there=there: jnp.where(there, a, 0), (to_q, to_kv))
            dq = dq.at[:, rows].add(to_q)
            by, keys = (-1, slice(n - edge.keys, n)) if edge is left else (1, slice(0, edge.keys))
            owed = owed.at[:, keys].add(shards.send(pack(to_kv), by))
    return dq, unpack(owed, q.shape[-1])


def _neighbours(message, left: Edge, right: Edge, shards: Shards):
    """The edges of my neighbours; at the ends of the sequence they come from the other end, and are not looked at."""
    n = message.shape[1]
    before = shards.send(message[:, n - left.keys :], 1) if left.queries else message[:, :0]
    after = shards.send(message[:, : right.keys], -1) if right.queries else message[:, :0]
    return before, after


def _sides(left: Edge, right: Edge, before, after, rank, n: int, shards: Shards):
    """(edge, its message, my queries that look across, their position counted from its first key, whether it exists)."""
    yield left, before, slice(0, left.queries), left.keys, rank > 0
    yield right, after, slice(n - right.queries, n), -right.queries, rank < shards.ranks - 1


def _least(n: int, beyond: Callable[[int], bool]) -> int:
    """The least number of tokens, up to ``n``, beyond which there is nothing; ``beyond`` falls from True to False."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if beyond(middle) else (low, middle)
    return low
