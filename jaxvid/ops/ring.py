# SPDX-License-Identifier: Apache-2.0
"""Attention over a sequence that is cut among devices: rings, Ulysses, and both together, on global arrays.

Letters of this file: B batch, L tokens, H heads, G key heads (G divides H), K head width, R devices of the axis.

Arrays come and go in natural order, tokens along ``axis``, the batch along data and fsdp, heads along tensor. Inside

    full, and whatever has no rule of its own      R - 1 hops of keys and values (`ring_hops`)
    causal, block-causal                           the same in zig-zag order, equal work for all (`ring_zigzag`)
    band, and whatever reaches no farther          one exchange of edges (`ring_halo`)

With ``ways`` above 1, so many neighbours first swap tokens for heads (Ulysses), and the ring goes over such groups.
Values and gradients are those of one device. Memory and tokens of a device fall as 1/R; no device holds the sequence.

Ref: Ring attention (arXiv 2310.01889), DeepSpeed Ulysses (arXiv 2309.14509), USP (arXiv 2405.07719).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxvid.ops import masks, ring_halo, ring_hops, ring_zigzag
from jaxvid.ops.attention import attention
from jaxvid.ops.ring_parts import Parts
from jaxvid.ops.sequence_ssd import sequence_parallel_ssd as sequence_parallel_ssd
from jaxvid.ops.shards import Layout, Shards, fast_ways, make_layout
from jaxvid.types import InputError

Mask = masks.Mask | Bool[Array, "..."] | np.ndarray | None


def ring_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G Kv"],
    *,
    mesh: Mesh,
    axis: str = "sequence",
    mask: Mask = None,
    implementation: str | None = None,
) -> Float[Array, "B L H Kv"]:
    """`sequence_attention` by a ring: keys and values travel, heads stay together."""
    return sequence_attention(q, k, v, mesh=mesh, axis=axis, mask=mask, implementation=implementation, ways=1)


def ulysses_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G Kv"],
    *,
    mesh: Mesh,
    axis: str = "sequence",
    mask: Mask = None,
    implementation: str | None = None,
) -> Float[Array, "B L H Kv"]:
    """`sequence_attention` by an all-to-all: every device gets all tokens of its part of the heads."""
    ways = mesh.shape.get(axis, 1)
    return sequence_attention(
        q, k, v, mesh=mesh, axis=axis, mask=mask, implementation=implementation, ways=ways
    )


def sequence_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G Kv"],
    *,
    mesh: Mesh,
    axis: str = "sequence",
    mask: Mask = None,
    implementation: str | None = None,
    ways: int | None = None,
) -> Float[Array, "B L H Kv"]:
    """Self-attention with the tokens of q, k and v cut along ``axis`` of ``mesh`` -> [B, L, H, Kv], cut likewise.

    mask: as for `jaxvid.ops.attention.attention`, but without an axis of heads. implementation: what attends inside a
    device, by a name of that module; one that cannot give a log-sum-exp refuses. ways: how many neighbours split heads;
    1 is a ring, the size of the axis is Ulysses, None takes as many as have a fast link and divide both counts of heads
    (1 where a mask needs neighbours only).

    Reverse-mode derivatives only. Raises InputError for what does not fit the mesh: an axis that is not there, tokens
    fewer than devices or not divisible among them, heads that ``ways`` does not divide, keys of another length; and
    NotImplementedError when the named implementation refuses.
    """
    mask = masks.as_mask(mask)
    ranks = {x.ndim for x in (q, k, v)}
    if (
        ranks != {4}
        or q.shape[-1] != k.shape[-1]
        or 0 in (*q.shape, *k.shape, *v.shape)
        or q.shape[:2] != k.shape[:2]
        or k.shape[:3] != v.shape[:3]
        or q.shape[2] % k.shape[2]
    ):
        raise InputError(
            f"ring attention got q {q.shape}, k {k.shape}, v {v.shape}; want q [B,L,H,K], k [B,L,G,K], v [B,L,G,Kv] "
            "of one length with G dividing H, and none of them empty"
        )
    _check_arrays(mask, q.shape[0], q.shape[1])
    layout = make_layout("ring attention", mesh, axis, *q.shape[:2], (q.shape[2], k.shape[2]))
    if mesh.shape[axis] == 1:
        return attention(q, k, v, mask=mask, implementation=implementation)
    for leaf in jax.tree.leaves(mask):
        if leaf.dtype == bool and leaf.ndim > 2 and leaf.shape[-3] > 1:
            raise NotImplementedError("ring attention takes no mask with an axis of heads")
    plan = Plan(layout, _shards(layout, q, k, mask, ways), Parts(implementation))
    rows = plan.specs(mask)
    return _attend(plan, *(layout.put(x, rows[0]) for x in (q, k, v)), mask)


def _check_arrays(mask: masks.Mask, batch: int, length: int) -> None:
    """Raises InputError for a table or ids of other than so many tokens: JAX would take something behind an end, too."""
    if isinstance(mask, (masks.And, masks.Or)):
        _check_arrays(mask.a, batch, length)
        _check_arrays(mask.b, batch, length)
    elif isinstance(mask, masks.Frames):
        _check_arrays(mask.mask, batch, -(-length // mask.tokens))
    elif isinstance(mask, (masks.Segments, masks.Table)):
        ids = isinstance(mask, masks.Segments)
        for leaf in jax.tree.leaves(mask):
            ends = leaf.shape[-1:] if ids else leaf.shape[-2:]
            first = leaf.shape[:-1] if ids else leaf.shape[:-3]
            if any(n not in ((length,) if ids else (1, length)) for n in ends) or any(
                n not in (1, batch) for n in first
            ):
                want = (
                    f"[{batch}, {length}] or [{length}]"
                    if ids
                    else f"one that broadcasts to [{batch}, 1, {length}, {length}]"
                )
                raise InputError(
                    f"ring attention got a mask with an array of shape {leaf.shape}; want {want}"
                )


def local_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G Kv"],
    mask: Bool[Array, "B 1 1 S"],
    mesh: Mesh | None,
    axis: str = "sequence",
) -> Float[Array, "B L H Kv"]:
    """Attention of queries that are cut along ``axis`` to keys that every device has: no message is sent.

    mask: which keys there are. A mesh of None is one device.
    """
    if mesh is None or q.shape[1] % mesh.shape[axis]:
        return attention(q, k, v, mask=mask)
    where = make_layout("attention", mesh, axis, *q.shape[:2], (q.shape[2], k.shape[2]))
    tokens = PartitionSpec(where.batch, where.tokens, where.heads)
    keys, rows = PartitionSpec(where.batch, None, where.heads), PartitionSpec(where.batch)
    run = jax.shard_map(
        lambda q, k, v, mask: attention(q, k, v, mask=mask),
        mesh=mesh,
        in_specs=(tokens, keys, keys, rows),
        out_specs=tokens,
        check_vma=False,
    )
    return run(q, k, v, mask)


def roll_frames(x: Array, by: int, mesh: Mesh | None, axis: str = "sequence") -> Array:
    """``jnp.roll(x, by, 1)`` of x [B, T, ...] whose frames are cut along ``axis``: neighbours exchange ``by`` frames."""
    if not by:
        return x
    size = 1 if mesh is None else mesh.shape[axis]
    if size == 1 or x.shape[1] % size or abs(by) > x.shape[1] // size:
        return jnp.roll(x, by, 1)
    where = make_layout("rolling", mesh, axis, *x.shape[:2], ())
    shards, spec = Shards(axis, size), PartitionSpec(where.batch, where.tokens)

    return jax.shard_map(
        lambda x: shards.roll(x, by), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )(x)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is known before the arrays are."""

    layout: Layout
    shards: Shards
    parts: Parts

    def specs(self, mask: masks.Mask):
        """PartitionSpecs of q, k, v and o, of log-sum-exps, and of a mask's arrays."""
        where = self.layout
        rows = PartitionSpec(where.batch, where.tokens, where.heads)

        def table(leaf):  # ids [B, L] or [L], or booleans up to [B, 1, L, L]: whole, but for the batch
            batched = leaf.ndim == (4 if leaf.dtype == bool else 2) and leaf.shape[0] > 1
            return PartitionSpec(where.batch if batched else None)

        return rows, rows, jax.tree.map(table, mask)

    def method(self, mask: masks.Mask, tokens: int):
        """The file whose `forward` and `backward` serve a mask, for so many tokens a member of the ring."""
        if ring_zigzag.suits(mask, tokens, self.shards.ranks):
            return ring_zigzag
        if ring_halo.edges(mask, tokens, self.shards.ranks) is not None:
            return ring_halo
        return ring_hops

    def map(self, f, mask, inputs, outputs):
        """``f`` on every device; ``inputs`` and ``outputs`` are specs of arrays, the mask comes last."""
        specs = (*inputs, self.specs(mask)[2])
        return jax.shard_map(f, mesh=self.layout.mesh, in_specs=specs, out_specs=outputs, check_vma=False)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q, k, v, mask):
    return _forward(plan, q, k, v, mask)[0]


def _forward(plan: Plan, q, k, v, mask):
    shards, (rows, logs, _) = plan.shards, plan.specs(mask)

    def local(q, k, v, mask):
        own, kv = shards.split_heads(q), _split_together(k, v, shards)
        o, lse = plan.method(mask, own.shape[1]).forward(own, kv, mask, shards, plan.parts)
        return shards.join_heads(o.astype(q.dtype)), shards.join_heads(lse)

    o, lse = plan.map(local, mask, (rows, rows, rows), (rows, logs))(q, k, v, mask)
    return o, (q, k, v, o, lse, mask)


def _backward(plan: Plan, residuals, do):
    q, k, v, o, lse, mask = residuals
    shards, (rows, logs, _) = plan.shards, plan.specs(mask)

    def local(q, k, v, o, lse, do, mask):
        delta = jnp.sum(do.astype(lse.dtype) * o.astype(lse.dtype), -1)
        own, told = shards.split_heads(q), [shards.split_heads(x) for x in (do, lse, delta)]
        kv = _split_together(k, v, shards)
        method = plan.method(mask, own.shape[1])
        dq, (dk, dv) = method.backward(own, kv, *told, mask, shards, plan.parts)
        dq, dk, dv = dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)
        back = shards.join_heads(jnp.concatenate([dk, dv], -1))
        return shards.join_heads(dq), *jnp.split(back, [k.shape[-1]], -1)

    inputs = (rows, rows, rows, rows, logs, rows)
    gradients = plan.map(local, mask, inputs, (rows, rows, rows))(q, k, v, o, lse, do, mask)
    return *gradients, None


_attend.__wrapped__.defvjp(_forward, _backward)


def _split_together(k, v, shards: Shards):
    """Keys and values as one message of the all-to-all."""
    if shards.ways == 1:
        return k, v
    return tuple(jnp.split(shards.split_heads(jnp.concatenate([k, v], -1)), [k.shape[-1]], -1))


def _shards(layout: Layout, q, k, mask: masks.Mask, ways: int | None) -> Shards:
    """Ring, Ulysses or both."""
    size = layout.mesh.shape[layout.tokens]
    tensor = layout.mesh.shape[layout.heads] if layout.heads else 1
    heads = math.gcd(q.shape[2] // tensor, k.shape[2] // tensor)
    if ways is None:
        near = ring_halo.edges(mask, q.shape[1] // size, size) is not None
        ways = 1 if near else math.gcd(heads, fast_ways(layout.mesh, layout.tokens))
    if ways < 1 or size % ways:
        raise InputError(
            f"ways={ways} does not divide the {size} devices of {layout.tokens!r}; use a divisor"
        )
    if heads % ways:
        able = math.gcd(heads, ways)
        raise InputError(
            f"{q.shape[2] // tensor} heads with {k.shape[2] // tensor} key heads cannot be split among {ways} devices "
            f"(Ulysses); use {f'ways={able}, or ' if able > 1 else ''}ways=1, which is a ring"
        )
    return Shards(layout.tokens, size, ways)
