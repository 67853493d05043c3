# SPDX-License-Identifier: Apache-2.0
"""Attention to some of the keys, put together from parts: what every way of cutting a sequence is made of.

Letters: B batch, n tokens of a part, H heads, G key heads, K head width; lse is a natural log-sum-exp [B, n, H].

A part is (o, lse): attention over some keys, normalised over them alone. Parts over disjoint keys merge by their lse.
Going back, with the lse of *all* keys and delta = rowsum(do * o), a part has weight w = exp(lse_part - lse), so that

    d o_part = w do,    d lse_part = w (do . o_part - delta)

and the part's own derivative does the rest: any implementation that returns a differentiable lse can stand in a ring.

Ref: Ring attention (arXiv 2310.01889); the merge is that of online softmax (arXiv 1805.02867).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxvid.ops import masks
from jaxvid.ops.attention import NO_KEYS, attention_with_lse
from jaxvid.ops.pick import platform

Array = Any


@dataclasses.dataclass(frozen=True)
class Parts:
    """Attention over parts, done by one implementation of `jaxvid.ops.attention`."""

    implementation: str | None = None

    def attend(self, q: Array, kv: tuple[Array, Array], mask: masks.Mask, q_offset: int = 0):
        """(o at least float32 [B, n, H, Kv], lse [B, n, H]) of queries over a part's keys."""

        def run(q, kv):
            o, lse = self._run(q, *kv, mask=mask, q_offset=q_offset)
            return o.astype(lse.dtype), lse

        return _alone(run, q, kv)

    def gradients(self, q, kv, do, lse, delta, mask: masks.Mask, q_offset: int = 0):
        """(dq, (dk, dv)) of a part, at least float32; ``lse`` and ``delta`` [B, n, H] are those of all keys."""

        def run(q, kv, do, lse, delta):
            part = functools.partial(self._run, mask=mask, q_offset=q_offset)
            (o, own), back = jax.vjp(part, q, *kv)
            weight = jnp.where(own > NO_KEYS / 2, jnp.exp(own - lse), 0)
            do = do.astype(own.dtype)
            towards = jnp.sum(do * o.astype(own.dtype), -1) - delta
            dq, dk, dv = back(((weight[..., None] * do).astype(o.dtype), weight * towards))
            return dq.astype(own.dtype), (dk.astype(own.dtype), dv.astype(own.dtype))

        return _alone(run, q, kv, do, lse, delta)

    def _run(self, q, k, v, *, mask, q_offset):
        return attention_with_lse(q, k, v, mask=mask, q_offset=q_offset, implementation=self.implementation)


def _alone(f: Callable[..., Any], *operands: Any) -> Any:
    """``f(*operands)``, on CPUs as the branch of a choice that is always made.

    XLA for CPUs orders what depends on nothing, such as the zeros that a loop begins with, before everything else, for
    all hops at once. Inside a branch it comes when its turn is.
    """
    if platform() != "cpu":
        return f(*operands)
    made = jax.eval_shape(f, *operands)
    never = jax.tree.leaves(operands)[0].ravel()[0] < -jnp.inf
    empty = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made)
    return lax.cond(never, empty, f, *operands)


def wide(x: Array) -> Any:
    """The dtype in which parts are summed."""
    return jnp.promote_types(x.dtype, jnp.float32)


def nothing(q: Array, values: int):
    """The part over no keys."""
    return jnp.zeros((*q.shape[:3], values), wide(q)), jnp.full(q.shape[:3], NO_KEYS, wide(q))


def merge(one, other):
    """Two parts over disjoint keys as one."""
    (o1, l1), (o2, l2) = one, other
    top = jnp.maximum(l1, l2)
    a, b = jnp.exp(l1 - top), jnp.exp(l2 - top)
    total = a + b
    return o1 * (a / total)[..., None] + o2 * (b / total)[..., None], top + jnp.log(total)


def in_turn(message: Any, done: Any) -> tuple[Any, Any]:
    """The message that arrived and what was computed meanwhile; neither goes on before both are there.

    One `optimization_barrier`. XLA for CPUs drops it before it orders a program, and would then send everything first
    and keep all keys alive: there the message also needs what was computed, by a comparison that is never true.
    """
    message, done = lax.optimization_barrier((message, done))
    if platform() == "cpu":
        never = sum(jnp.sum(a) for a in jax.tree.leaves(done)) < -jnp.inf
        message = jax.tree.map(lambda a: jnp.where(never, 0, a), message)
    return message, done


def add(one: Any, other: Any) -> Any:
    """The sum of two trees."""
    return jax.tree.map(jnp.add, one, other)


def choose(condition: Array, one: Any, other: Any) -> Any:
    """One of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def pack(kv: tuple[Array, Array]) -> Array:
    """Keys and values as one message [B, n, G, K + Kv]."""
    return jnp.concatenate(kv, -1)


def unpack(message: Array, width: int) -> tuple[Array, Array]:
    """The inverse of `pack` for keys of that width."""
    return message[..., :width], message[..., width:]


def by_rank(rank: Array, row: Sequence[Any], do: Callable[..., Any], *operands: Any) -> Any:
    """``do(row[rank], *operands)`` where every device takes only its own branch; one branch needs no choice."""
    kinds = list(dict.fromkeys(row))
    if len(kinds) == 1:
        return do(kinds[0], *operands)
    which = jnp.asarray([kinds.index(kind) for kind in row])[rank]
    return lax.switch(which, [functools.partial(do, kind) for kind in kinds], *operands)


def invariant(mask: masks.Mask, by: int) -> bool:
    """Whether a mask says the same after queries and keys have both moved by ``by`` tokens."""
    match mask:
        case masks.Full() | masks.Band():
            return True
        case masks.BlockCausal(block):
            return by % block == 0
        case masks.Frames(inner, tokens):
            return by % tokens == 0 and invariant(inner, by // tokens)
        case masks.And(a, b) | masks.Or(a, b):
            return invariant(a, by) and invariant(b, by)
    return False


def sees(mask: masks.Mask, n: int, query: int, key: int) -> tuple[bool, bool]:
    """(some, every) pair of tokens of shard ``query`` and shard ``key``, both of ``n`` tokens, may attend."""
    return mask.some_every(query * n, (query + 1) * n - 1, key * n, (key + 1) * n - 1)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mask", "q_by", "k_by"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Moved(masks.Mask):
    """A mask over whole sequences, asked about the shards that begin at ``q_by`` and ``k_by``, both int32 []."""

    mask: masks.Mask
    q_by: Array
    k_by: Array

    def allowed(self, q, k, q_position, k_position):
        return self.mask.allowed(q + self.q_by, k + self.k_by, q_position + self.q_by, k_position + self.k_by)
