# SPDX-License-Identifier: Apache-2.0
"""Masks as rules of kernels, and who is chosen where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.ops import masks, pick
from jaxvid.ops.attention import attention, attention_with_lse
from jaxvid.ops.mask_rules import mask_rules
from jaxvid.ops.ssd import ssd
from pallas_kernels import tiles

IDS = np.asarray([0, 0, 1, 1, 1, 2, 2, 3])
RULES = {
    "full": masks.full(),
    "causal": masks.causal(),
    "no limit": masks.band(None, None) & masks.full(),
    "band": masks.band(5, 2),
    "block_causal": masks.block_causal(4),
    "sink": masks.causal() & (masks.band(4, 0) | masks.sink(3)),
    "frames": masks.frames(masks.block_causal(2) & masks.band(4, None), 3),
    "skip_causal": masks.frames(masks.skip_causal(2, clean=4), 2),
    "segments": masks.causal() & masks.frames(masks.segments(IDS, IDS), 3),
    "frames of frames": masks.frames(masks.frames(masks.band(1, 1) | masks.sink(1), 2), 2),
}


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("name", RULES)
def test_rules_are_the_mask(name, offset):
    q_len, k_len = 17, 24
    rules, q_ids, k_ids = mask_rules(RULES[name], 1, q_len, k_len)
    q, k = np.arange(q_len)[:, None] + offset, np.arange(k_len)[None]
    allowed = tiles.holds(rules, q, k)
    allowed = np.ones((q_len, k_len), bool) if allowed is None else allowed
    if q_ids is not None:
        allowed = allowed & (np.asarray(q_ids[0])[:, None] == np.asarray(k_ids[0])[None])
    np.testing.assert_array_equal(allowed, RULES[name].dense(q_len, k_len, offset))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_tiles_and_walks_never_lie(name, traced):
    q_len, k_len, q_tile, k_tile, offset = 22, 24, 4, 5, 2
    rules, q_ids, k_ids = mask_rules(RULES[name], 1, q_len, k_len)
    start = jnp.asarray(offset) if traced else offset
    some, every = tiles.visible(rules, start, q_len, k_len, q_tile, k_tile, q_ids, k_ids)
    walk = np.asarray(tiles.walk(some, every))
    counts, order = (np.asarray(x) for x in tiles.ordered(some, every))
    some, every = (np.asarray(x).reshape(-1, *x.shape[-2:])[0] for x in (some, every))
    walk, counts, order = (x.reshape(-1, *x.shape[-2:])[0] for x in (walk, counts, order))
    dense = np.asarray(RULES[name].dense(q_len, k_len, offset))
    for i, j in np.ndindex(some.shape):
        tile = dense[i * q_tile : (i + 1) * q_tile, j * k_tile : (j + 1) * k_tile]
        assert some[i, j] or not tile.any()
        assert not every[i, j] or (tile.all() and tile.shape == (q_tile, k_tile))
    for i in range(some.shape[0]):
        row = walk[i if len(walk) > 1 else 0]
        assert [e for e in row if e >= 0] == [2 * j + (not every[i, j]) for j in np.flatnonzero(some[i])]
        whole, part = counts[i]
        assert list(order[i, :whole]) == list(np.flatnonzero(some[i] & every[i]))
        assert list(order[i, whole : whole + part]) == list(np.flatnonzero(some[i] & ~every[i]))


def test_what_kernels_have_no_words_for():
    with pytest.raises(NotImplementedError, match="no words for a mask of Table"):
        mask_rules(masks.array(np.ones((4, 4), bool)), 1, 4, 4)
    with pytest.raises(NotImplementedError, match="no words for a mask of Segments"):
        mask_rules(masks.sink(1) | masks.segments(IDS, IDS), 1, 8, 8)
    with pytest.raises(NotImplementedError, match="one pair of segment ids"):
        mask_rules(masks.segments(IDS, IDS) & masks.segments(IDS, IDS), 1, 8, 8)
    with pytest.raises(NotImplementedError, match="at most 8 alternatives"):
        many = masks.band(1, 0)
        for n in range(2, 12):
            many = many | masks.band(n, -n)
        mask_rules(many, 1, 8, 8)


def arrays(length=128, width=64):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal((1, length, 1, width)), jnp.float32) for _ in range(3))


def test_named_kernels_refuse_elsewhere_unless_interpreted():
    mask = masks.causal() & masks.segments(np.arange(128) // 50, np.arange(128) // 50)
    with pytest.raises(NotImplementedError, match="runs on tpu, not on cpu"):
        attention(*arrays(), implementation="mosaic_tpu")
    with pytest.raises(NotImplementedError, match="runs on gpu, not on cpu"):
        attention(*arrays(), implementation="mosaic_gpu")
    with pick.interpreted():
        got = attention_with_lse(*arrays(), mask=mask, implementation="mosaic_tpu")
        with pytest.raises(NotImplementedError, match="head widths 64 and 128, not 32"):
            attention(*arrays(width=32), implementation="mosaic_tpu")
        # on jax 0.10 there is no interpreter for it; float32 it takes nowhere
        with pytest.raises(NotImplementedError, match="interpreter needs jax 0.11|bfloat16 or float16"):
            attention(*arrays(), implementation="mosaic_gpu")
    want = attention_with_lse(*arrays(), mask=mask, implementation="reference")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_chosen_where_they_run():
    """A trace for a platform takes its kernel; what the kernel refuses goes to plain JAX."""

    def kernels(f, *shapes):
        # a new function each time: what was traced before keeps its implementation
        return str(jax.make_jaxpr(lambda *a: f(*a))(*shapes)).count("pallas_call")

    square = lambda width: [jax.ShapeDtypeStruct((1, 256, 1, width), jnp.float32)] * 3
    assert kernels(attention, *square(64)) == 0
    with pick.tracing_for("tpu"):
        assert kernels(attention, *square(64)) == 1
        assert kernels(attention, *square(32)) == 0
        assert kernels(lambda x: ssd(x, x[..., 0], x[0, 0, :, 0], x, x)[0], square(64)[0]) == 1
    with pick.tracing_for("gpu"):
        assert kernels(lambda x: ssd(x, x[..., 0], x[0, 0, :, 0], x, x)[0], square(64)[0]) == 0
