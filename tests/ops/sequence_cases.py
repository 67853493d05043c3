# SPDX-License-Identifier: Apache-2.0
"""What `test_ring.py` and `test_sequence_ssd.py` run in an interpreter of its own, with eight CPU devices.

Prints one JSON object: case -> the largest relative differences of values and gradients to one device, in float64.
"""

import json
import sys

from tests import conftest  # noqa: F401  the rules of all tests, before JAX

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np

from jaxvid.ops import masks, sequence_ssd
from jaxvid.ops.attention import attention
from jaxvid.ops.ring import ring_attention, sequence_attention, sequence_parallel_ssd, ulysses_attention
from jaxvid.ops.ssd import ssd
from jaxvid.sharding import make_mesh

LENGTH, BATCH = 48, 2


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape))


def attention_masks():
    ids = jnp.asarray(np.sort(np.random.default_rng(1).integers(0, 3, (BATCH, LENGTH)), 1), jnp.int32)
    return {
        "full": None,
        "causal": masks.causal(),
        "block_causal": masks.block_causal(3),
        "block_causal across shards": masks.block_causal(5),
        "frames": masks.frames(masks.block_causal(2), 3),
        "band": masks.band(4, 2),
        "band of the past": masks.band(5, 0),
        "wide band": masks.band(17, 9),
        "band of frames": masks.frames(masks.band(1, 1), 2),
        "sink": masks.causal() & (masks.band(4, 0) | masks.sink(3)),
        "segments": masks.segments(ids, ids),
        "causal segments": masks.causal() & masks.segments(ids, ids),
        "array": jnp.asarray(np.random.default_rng(2).random((LENGTH, LENGTH)) > 0.6),
        "nothing": masks.sink(0),
    }


def worst(run, reference, *arguments):
    """Largest difference of values and of gradients, relative to the largest entry."""

    def both(f):
        def g(*a):
            out, back = jax.vjp(f, *a)
            return out, back(
                jax.tree.map(lambda o: jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape), out)
            )

        return jax.jit(g)(*arguments)

    pairs = zip(jax.tree.leaves(both(run)), jax.tree.leaves(both(reference)), strict=True)
    return max(float(jnp.abs(a - b).max() / (1e-9 + jnp.abs(b).max())) for a, b in pairs)


def attention_case(mask, how, *, dtype=jnp.float64, heads=(4, 2), **sizes):
    mesh = make_mesh(**{"data": 1, **sizes})
    shape = (BATCH, LENGTH)
    q, k = draw(*shape, heads[0], 6, seed=1).astype(dtype), draw(*shape, heads[1], 6, seed=2).astype(dtype)
    v = draw(*shape, heads[1], 5, seed=3).astype(dtype)
    return worst(
        lambda *a: how(*a, mesh=mesh, mask=mask),
        lambda *a: attention(*a, mask=mask, implementation="reference"),
        q, k, v,
    )  # fmt: skip


def scan_case(*, groups=2, skip=True, begin=True, gather=16, dtype=jnp.float64, **sizes):
    sequence_ssd.GATHER = gather
    heads, width, state = 4, 3, 5
    x, decay = draw(BATCH, LENGTH, heads, width), -jnp.exp(draw(heads))
    dt = jax.nn.softplus(draw(BATCH, LENGTH, heads) - 1)
    b, c = draw(BATCH, LENGTH, groups, state, seed=4), draw(BATCH, LENGTH, groups, state, seed=5)
    d, first = draw(heads, seed=6), draw(BATCH, heads, width, state, seed=7)
    mesh = make_mesh(**{"data": 1, **sizes})

    def call(how, **kw):
        def run(x, dt, decay, b, c, d, first):
            return how(x, dt, decay, b, c, d if skip else None, initial_state=first if begin else None, **kw)

        return run

    reference = call(ssd, implementation="reference")
    arrays = (a.astype(dtype) for a in (x, dt, decay, b, c, d, first))
    return worst(call(sequence_parallel_ssd, mesh=mesh), reference, *arrays)


def explicit_mesh():
    """A mesh as `jax.make_mesh` makes it, with arrays laid out on it and with arrays that are not."""
    mesh = jax.make_mesh((8,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    x = draw(BATCH, LENGTH, 2, 4)
    want = attention(x, x, x, mask=masks.causal())
    there = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P(None, "sequence")))
    found = [
        ring_attention(x, x, x, mesh=mesh, mask=masks.causal()),
        jax.jit(lambda x: ring_attention(x, x, x, mesh=mesh, mask=masks.causal()))(there),
    ]
    return max(float(jnp.abs(np.asarray(f) - want).max()) for f in found)


def both_ways(q, k, v, **kw):
    return sequence_attention(q, k, v, ways=2, **kw)


SPLIT_HEADS = ("full", "causal", "block_causal", "band", "sink", "segments")
SINGLE = (  # in float32: what it is called, the way, the mask, heads
    ("zig-zag", ring_attention, "causal", (4, 2)),
    ("halo", ring_attention, "band", (4, 2)),
    ("hops", ring_attention, "segments", (4, 2)),
    ("ulysses", ulysses_attention, "full", (8, 8)),
    ("combined", both_ways, "block_causal", (4, 2)),
)


def attention_cases():
    whole = dict(sequence=8)
    for name, mask in attention_masks().items():
        sizes = whole if name in ("full", "causal", "block_causal", "band") else dict(sequence=4, data=2)
        yield f"ring, {name}", lambda mask=mask, sizes=sizes: attention_case(mask, ring_attention, **sizes)
    for name in SPLIT_HEADS:
        mask = attention_masks()[name]
        yield (
            f"ulysses, {name}",
            lambda mask=mask: attention_case(mask, ulysses_attention, data=2, sequence=4, heads=(8, 4)),
        )
        yield f"combined, {name}", lambda mask=mask: attention_case(mask, both_ways, **whole)
        yield (
            f"chosen, {name}",
            lambda mask=mask: attention_case(mask, sequence_attention, sequence=2, tensor=2, fsdp=2),
        )
    for label, how, name, heads in SINGLE:
        mask = attention_masks()[name]
        yield (
            f"float32, {label}",
            lambda mask=mask, how=how, heads=heads: attention_case(
                mask, how, dtype=jnp.float32, heads=heads, **whole
            ),
        )
    yield "explicit", explicit_mesh


def scan_cases():
    yield "gathered", lambda: scan_case(sequence=8)
    yield "doubled", lambda: scan_case(sequence=8, gather=1)
    yield "from zero", lambda: scan_case(sequence=4, data=2, skip=False, begin=False)
    yield "one group", lambda: scan_case(sequence=2, data=2, tensor=2, groups=1)
    yield "heads cut", lambda: scan_case(sequence=4, tensor=2, gather=1)
    yield "float32", lambda: scan_case(sequence=8, dtype=jnp.float32)


def main():
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # the programs are compiled once and run once
    cases = {"attention": attention_cases, "scan": scan_cases}[sys.argv[1]]
    print(json.dumps({name: run() for name, run in cases()}))


if __name__ == "__main__":
    main()
