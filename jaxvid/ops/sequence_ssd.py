# SPDX-License-Identifier: Apache-2.0
"""The state space scan over a sequence that is cut among devices.

Letters of this file: B batch, L tokens, H heads, P head width, G groups, N state size, R devices of the axis.

A scan is linear in the state that it begins with. So every device scans its shard from zero, the devices exchange what
is left (a state and one decay per head: small, whatever the length), and every device adds what the state that really
entered its shard contributes:

    y_t += exp(sum_{u <= t} dt_u A) h C_t

The scan does not wait for the exchange. The sum of decays here begins at 0, where exp is not small, and is accurate
there: nothing cancels, unlike in differences of two long sums.

Ref: Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060), section 8.2; prefix sums by doubling: Hillis and Steele (1986).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxvid.ops.ring_parts import wide
from jaxvid.ops.shards import Shards, make_layout
from jaxvid.ops.ssd import ssd

GATHER = 16  # up to so many devices everyone gathers all states; more of them double their reach in log2 R messages


def sequence_parallel_ssd(
    x: Float[Array, "B L H P"],
    dt: Float[Array, "B L H"],
    A: Float[Array, "H"],
    B: Float[Array, "B L G N"],
    C: Float[Array, "B L G N"],
    D: Float[Array, "H"] | Float[Array, "H P"] | None = None,
    *,
    mesh: Mesh,
    axis: str = "sequence",
    initial_state: Float[Array, "B H P N"] | None = None,
    chunk: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B L H P"], Float[Array, "B H P N"]]:
    """`jaxvid.ops.ssd.ssd` with its tokens cut along ``axis`` of ``mesh``: the same arguments, the same results.

    y is cut like x; the final state [B, H, P, N] is on every device of the axis. Gradients flow through both and to
    initial_state. The batch is cut along data and fsdp, heads along tensor, where they divide.

    Raises InputError for an axis that is not there and for tokens fewer than its devices or not divisible among them,
    and NotImplementedError when the named implementation refuses.
    """
    groups, heads = B.shape[2], x.shape[2]
    where = make_layout("the scan", mesh, axis, *x.shape[:2], (heads, heads if groups == 1 else groups))
    size = mesh.shape[axis]
    if size == 1:
        return ssd(x, dt, A, B, C, D, initial_state=initial_state, chunk=chunk, implementation=implementation)
    shards = Shards(axis, size)
    spec = PartitionSpec
    tokens = spec(where.batch, where.tokens, where.heads)
    shared = tokens if groups > 1 else spec(where.batch, where.tokens)
    state = spec(where.batch, where.heads)
    specs = [tokens, tokens, spec(where.heads), shared, shared, spec(where.heads), state]

    def local(x, dt, A, B, C, D, initial_state):
        y, left = ssd(x, dt, A, B, C, D, chunk=chunk, implementation=implementation)
        dtype = wide(x)
        decay = jnp.cumsum(dt.astype(dtype) * A.astype(dtype)[None, None], 1)
        start = jnp.zeros_like(left) if initial_state is None else initial_state.astype(dtype)
        exchange = _gather if size <= GATHER else _double
        entering, final = exchange(left, decay[:, -1], start, shards)
        entering = entering.reshape(entering.shape[0], B.shape[2], -1, *entering.shape[2:])
        reached = jnp.einsum("blgn,bgrpn->blgrp", C.astype(dtype), entering).reshape(x.shape)
        return (y.astype(dtype) + reached * jnp.exp(decay)[..., None]).astype(x.dtype), final

    values = [
        None if v is None else where.put(v, s)
        for v, s in zip((x, dt, A, B, C, D, initial_state), specs, strict=True)
    ]
    run = jax.shard_map(local, mesh=mesh, in_specs=tuple(specs), out_specs=(tokens, state), check_vma=False)
    return jax.jit(run)(*values)


def _gather(left, decay, start, shards: Shards):
    """(the state that enters my shard, the one that leaves the last) from what all shards leave behind."""
    lefts, decays = lax.all_gather((left, decay), shards.axis)
    rank, state, entering = shards.rank(), start, start
    for source in range(shards.size):
        entering = jnp.where(rank == source, state, entering)
        state = _after(state, lefts[source], decays[source])
    return entering, state


def _double(left, decay, start, shards: Shards):
    """The same by messages to the device 1, 2, 4, ... places on; nothing arrives where nobody is."""
    reach = 1
    while reach < shards.size:
        before_left, before_decay = _onward((left, decay), reach, shards)
        left, decay = _after(before_left, left, decay), before_decay + decay
        reach *= 2
    before_left, before_decay = _onward((left, decay), 1, shards)
    last = shards.rank() == shards.size - 1
    final = jnp.where(last, _after(start, left, decay), 0)
    return _after(start, before_left, before_decay), lax.psum(final, shards.axis)


def _after(state, left, decay):
    """The state behind a shard, from that before it; left [B, H, P, N], decay [B, H]."""
    return jnp.exp(decay)[..., None, None] * state + left


def _onward(tree, by: int, shards: Shards):
    pairs = [(i, i + by) for i in range(shards.size - by)]
    return jax.tree.map(lambda a: lax.ppermute(a, shards.axis, pairs), tree)
