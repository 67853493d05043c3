# SPDX-License-Identifier: Apache-2.0
"""Masks: each rule against a loop over pairs, combinations, lifting, and what is said about tiles."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.ops import masks

Q, K, OFFSET, K_OFFSET = 7, 12, 4, 2
RULES = {
    "full": (masks.full(), lambda i, j: True),
    "causal": (masks.causal(), lambda i, j: j <= i),
    "block_causal": (masks.block_causal(3), lambda i, j: j // 3 <= i // 3),
    "band": (masks.band(2, 1), lambda i, j: -2 <= j - i <= 1),
    "left": (masks.band(2, None), lambda i, j: j >= i - 2),
    "sink": (masks.band(1, 0) | masks.sink(4), lambda i, j: -1 <= j - i <= 0 or j < 4),
    "and": (masks.causal() & masks.band(3, 3), lambda i, j: i - 3 <= j <= i),
    "frames": (masks.frames(masks.block_causal(2), 2), lambda i, j: j // 4 <= i // 4),
    "mixed": (
        masks.frames(masks.causal(), 3) & masks.band(None, 1),
        lambda i, j: j // 3 <= i // 3 and j <= i + 1,
    ),
}


def loop(rule, q_len=Q, k_len=K, offset=OFFSET, k_offset=K_OFFSET):
    return np.array([[rule(i + offset, j + k_offset) for j in range(k_len)] for i in range(q_len)])


@pytest.mark.parametrize("name", RULES)
def test_dense_is_the_rule_pair_by_pair(name):
    mask, rule = RULES[name]
    np.testing.assert_array_equal(mask.dense(Q, K, OFFSET, K_OFFSET), loop(rule))
    traced = jax.jit(lambda mask, at: mask.dense(Q, K, at, K_OFFSET))(mask, OFFSET)  # masks are pytrees
    np.testing.assert_array_equal(traced, loop(rule))


@pytest.mark.parametrize("name", RULES)
def test_tiles_never_lie(name):
    mask, rule = RULES[name]
    for (q0, q1), (k0, k1) in itertools.product([(0, 3), (2, 2), (5, 9), (8, 15)], repeat=2):
        tile = loop(rule, q1 - q0 + 1, k1 - k0 + 1, q0, k0)
        some, every = mask.some_every(q0, q1, k0, k1)
        assert some or not tile.any()
        assert not every or tile.all()


def test_plain_rules_know_their_tiles_exactly():
    for name in ("full", "causal", "block_causal", "band", "left", "frames"):
        mask, rule = RULES[name]
        for (q0, q1), (k0, k1) in itertools.product([(0, 3), (2, 2), (5, 9)], repeat=2):
            tile = loop(rule, q1 - q0 + 1, k1 - k0 + 1, q0, k0)
            assert mask.some_every(q0, q1, k0, k1) == (tile.any(), tile.all())


def test_skip_causal_hides_the_own_clean_copy():
    got = np.asarray(masks.skip_causal(2, clean=6).dense(12, 12))
    for i, j in np.ndindex(12, 12):
        q_block, k_block = i % 6 // 2, j % 6 // 2
        if i < 6:
            want = j < 6 and k_block <= q_block
        else:
            want = k_block == q_block if j >= 6 else k_block < q_block
        assert got[i, j] == want


def test_printed_rows():
    """Blocks of two frames (Ca2-VDM, CausVid), single ones (FAR), and clean blocks beside noisy ones (ACDiT)."""
    rows = lambda mask, n: ["".join("01"[int(v)] for v in row) for row in np.asarray(mask.dense(n, n))]
    assert rows(masks.block_causal(2), 6) == "110000 110000 111100 111100 111111 111111".split()
    assert rows(masks.block_causal(1), 3) == "100 110 111".split() == rows(masks.causal(), 3)
    assert rows(masks.skip_causal(1, clean=3), 6) == "100000 110000 111000 000100 100010 110001".split()


def test_segments_by_batch_and_lifted():
    q_ids, k_ids = jnp.array([[0, 0, 1], [2, 1, 1]]), jnp.array([[0, 1, 1, 2], [1, 1, 2, 2]])
    want = np.asarray(q_ids)[:, None, :, None] == np.asarray(k_ids)[:, None, None, :]
    np.testing.assert_array_equal(masks.segments(q_ids, k_ids).dense(3, 4), want)
    lifted = masks.frames(masks.segments(q_ids, k_ids), 2).dense(6, 8)
    np.testing.assert_array_equal(lifted, want.repeat(2, 2).repeat(2, 3))
    both = (masks.segments(q_ids, k_ids) & masks.causal()).dense(3, 4)
    np.testing.assert_array_equal(both, want & loop(lambda i, j: j <= i, 3, 4, 0, 0))


def test_arrays_combine_and_are_checked():
    values = np.random.default_rng(0).random((2, 1, 5, 6)) > 0.5
    want = values & loop(lambda i, j: j <= i, 5, 6, 0, 0)
    np.testing.assert_array_equal((masks.causal() & values).dense(5, 6), want)
    np.testing.assert_array_equal((masks.array(values) & masks.causal()).dense(5, 6), want)
    assert masks.array(values[:, :, :1]).dense(5, 6).shape == (2, 1, 5, 6)
    with pytest.raises(ValueError, match="give booleans"):
        masks.array(values.astype(np.float32))
    with pytest.raises(ValueError, match="block=0"):
        masks.block_causal(0)


def test_values_are_hashable_and_equal_by_content():
    make = lambda: masks.frames(masks.causal() & (masks.band(3, 0) | masks.sink(2)), 4)
    assert make() == make() and hash(make()) == hash(make())
    assert masks.causal() == masks.band(None, 0) and masks.band(1, 0) != masks.band(2, 0)
    ids = jnp.arange(3)
    assert isinstance(hash(masks.segments(ids, ids)), int)
