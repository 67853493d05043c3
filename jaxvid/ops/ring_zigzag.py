# SPDX-License-Identifier: Apache-2.0
"""The ring for causal masks, balanced: rank r works on the chunks r and 2R - 1 - r of 2R.

In natural order the last device would do R times the work of the first. In zig-zag order all do the same at every hop,
and off the diagonal no block needs a mask: with keys from an earlier rank, both of my chunks look at its low one; with
keys from a later rank, my high chunk looks at both of its.

Sequences come and go in natural order. Of two neighbouring chunks one is even and one is odd, and so are the two that a
rank works on, so that one message for each brings a shard into zig-zag order.

Ref: zig-zag ring attention as in `ring-flash-attention` (github.com/zhuzilin/ring-flash-attention) and Llama 3's
context parallelism (arXiv 2407.21783).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxvid.ops import masks
from jaxvid.ops.ring_parts import Parts, add, choose, in_turn, invariant, merge, pack, sees, unpack
from jaxvid.ops.shards import Shards


def suits(mask: masks.Mask, n: int, ranks: int) -> bool:
    """Whether a mask looks causal from afar: of half shards, all of every earlier one and nothing of a later one."""
    if n % 2 or ranks < 2 or not invariant(mask, n // 2):
        return False
    far = range(1, 2 * ranks)
    return all(sees(mask, n // 2, d, 0)[1] and not sees(mask, n // 2, 0, d)[0] for d in far)


def forward(q, kv, mask: masks.Mask, shards: Shards, parts: Parts):
    """As `ring_hops.forward`."""
    rank, width = shards.rank(), q.shape[-1]
    q_low, q_high = to_zigzag(q, shards)
    message = to_zigzag(pack(kv), shards)
    for i in range(shards.ranks):
        arriving = shards.send(message) if i + 1 < shards.ranks else None
        kv_low, kv_high = (unpack(m, width) for m in message)
        if i == 0:
            low, high = _halves(parts.attend(_both(q_low, q_high), _both(kv_low, kv_high), mask))
            high = merge(high, parts.attend(q_high, kv_low, masks.full()))
        else:
            earlier = rank >= i
            q_two, kv_two = choose(earlier, q_low, q_high), choose(earlier, kv_low, kv_high)
            one, two = _halves(parts.attend(_both(q_high, q_two), _both(kv_low, kv_two), masks.full()))
            high = merge(high, one)
            merged = merge(choose(earlier, low, high), two)
            low, high = choose(earlier, merged, low), choose(earlier, high, merged)
        if arriving is not None:
            message, (low, high) = in_turn(arriving, (low, high))
    return tuple(from_zigzag(pair, shards) for pair in zip(low, high, strict=True))


def backward(q, kv, do, lse, delta, mask: masks.Mask, shards: Shards, parts: Parts):
    """As `ring_hops.backward`."""
    rank, width = shards.rank(), q.shape[-1]
    rows = [to_zigzag(x, shards) for x in (q, do, lse, delta)]
    low, high = ([pair[side] for pair in rows] for side in (0, 1))
    message = to_zigzag(pack(kv), shards)
    dq_low, dq_high, owed = None, None, None
    for i in range(shards.ranks):
        arriving = shards.send(message) if i + 1 < shards.ranks else None
        following = shards.send(owed) if i else None
        kv_low, kv_high = (unpack(m, width) for m in message)

        def gradients(one, kv_one, two, kv_two, mask):
            q, *rest = _both(one, two)
            dq, dkv = parts.gradients(q, _both(kv_one, kv_two), *rest, mask)
            return (*_halves(dq), *(pack(half) for half in _halves(dkv)))

        if i == 0:
            dq_low, dq_high, to_low, to_high = gradients(low, kv_low, high, kv_high, mask)
            more, to_kv = parts.gradients(high[0], kv_low, *high[1:], masks.full())
            dq_high, owed = dq_high + more, (to_low + pack(to_kv), to_high)
        else:
            earlier = rank >= i
            two, kv_two = choose(earlier, low, high), choose(earlier, kv_low, kv_high)
            one_q, two_q, one_kv, two_kv = gradients(high, kv_low, two, kv_two, masks.full())
            zero = jnp.zeros_like(two_q)
            dq_low = dq_low + jnp.where(earlier, two_q, zero)
            dq_high = dq_high + one_q + jnp.where(earlier, zero, two_q)
            zero = jnp.zeros_like(two_kv)
            new = one_kv + jnp.where(earlier, two_kv, zero), jnp.where(earlier, zero, two_kv)
            owed = add(following, new)
        if arriving is not None:
            message, (dq_low, dq_high, owed) = in_turn(arriving, (dq_low, dq_high, owed))
    home = from_zigzag(shards.send(owed, 1), shards)
    return from_zigzag((dq_low, dq_high), shards), unpack(home, width)


def to_zigzag(x, shards: Shards):
    """My shard [B, n, ...] in natural order -> my (low, high) chunk [B, n/2, ...] of zig-zag order."""
    even, odd = jnp.split(x, 2, 1)
    even, odd = _permute(even, shards, 0), _permute(odd, shards, 1)
    is_even = shards.rank() % 2 == 0  # chunk r is even exactly on even ranks
    return jnp.where(is_even, even, odd), jnp.where(is_even, odd, even)


def from_zigzag(pair, shards: Shards):
    """The inverse of `to_zigzag`."""
    low, high = pair
    is_even = shards.rank() % 2 == 0
    even, odd = jnp.where(is_even, low, high), jnp.where(is_even, high, low)
    return jnp.concatenate([_permute(even, shards, 0, True), _permute(odd, shards, 1, True)], 1)


def _permute(x, shards: Shards, odd: int, back: bool = False):
    """Chunk 2r + odd of every rank r to the rank that works on it."""
    ranks, ways = shards.ranks, shards.ways
    pairs = []
    for rank in range(ranks):
        chunk = 2 * rank + odd
        target = chunk if chunk < ranks else 2 * ranks - 1 - chunk
        pairs += [(rank * ways + j, target * ways + j) for j in range(ways)]
    if back:
        pairs = [(b, a) for a, b in pairs]
    return lax.ppermute(x, shards.axis, pairs)


def _both(one, two):
    """Two trees as one, along the batch."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, two)


def _halves(tree):
    """The inverse of `_both`."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = [jnp.split(leaf, 2) for leaf in leaves]
    return tuple(structure.unflatten([pair[side] for pair in pairs]) for side in (0, 1))
