# SPDX-License-Identifier: Apache-2.0
"""Windowed attention equals full attention under the mask that defines it."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.nn.mixers.window import Window, geometry
from jaxvid.ops.windows import merge, regions, sort_into_windows


def oracle_mask(grid, window, shift):
    """bool [L, L] from the definition: equal window ids and wrap flags on all axes."""
    same = []
    for n, w, s in zip(grid, window, shift, strict=True):
        i = np.arange(n)
        label = ((i - s) % n // w) * 2 + (i < s)
        same.append(label[:, None] == label[None])
    t, h, w = same
    mask = t[:, None, None, :, None, None] & h[None, :, None, None, :, None] & w[None, None, :, None, None, :]
    length = int(np.prod(grid))
    return mask.reshape(length, length)


CASES = [
    ((8, 4, 8), (4, 2, 4), False),
    ((8, 4, 8), (4, 2, 4), True),
    ((5, 4, 6), (2, 3, 4), False),
    ((5, 4, 6), (2, 3, 4), True),
    ((7, 3, 2), (4, 4, 4), True),
    ((1, 4, 6), (8, 2, 2), True),
]


@pytest.mark.parametrize("grid, window, shifted", CASES)
def test_windowed_equals_masked_full_attention(grid, window, shifted):
    """Values: with queries and keys that ignore position (no rotation), the branch is masked attention."""
    window, shift = geometry(grid, window, shifted)
    padded = tuple(n + -n % w for n, w in zip(grid, window, strict=True))
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, *grid, 4))

    def roll_pad(x):
        x = np.roll(x, [-s for s in shift], (1, 2, 3))
        return np.pad(x, [(0, 0), *((0, p - n) for n, p in zip(grid, padded, strict=True)), (0, 0)])

    qw, kw, vw = (np.asarray(sort_into_windows(roll_pad(a), window)) for a in (q, k, v))
    ids = np.tile(sort_into_windows(regions(grid, window, shift)[None], window), (2, 1))
    allowed = ids[:, :, None] == ids[:, None]

    def softmax_attend(q, k, v, mask):
        s = np.where(mask, np.einsum("blk,bmk->blm", q, k), -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        return np.einsum("blm,bmk->blk", p / p.sum(-1, keepdims=True), v)

    got = merge(softmax_attend(qw, kw, vw, allowed), 2, padded, window)[:, : grid[0], : grid[1], : grid[2]]
    got = np.roll(got, shift, (1, 2, 3))
    flat = [a.reshape(2, -1, 4) for a in (q, k, v)]
    want = softmax_attend(*flat, oracle_mask(grid, window, shift)).reshape(got.shape)
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("grid, window, shifted", CASES)
def test_who_hears_whom(grid, window, shifted):
    """The module itself: one token's perturbation reaches exactly the tokens that the mask names."""
    mixer = Window(window, shifted=shifted, head=8)
    x = jax.random.normal(jax.random.key(0), (1, *grid, 8))
    params = nn.unbox(mixer.init(jax.random.key(1), x, None))
    run = jax.jit(lambda x: mixer.apply(params, x, None)[0])
    mask = oracle_mask(grid, *geometry(grid, window, shifted))
    base = np.asarray(run(x)).reshape(-1, 8)
    for token in np.random.default_rng(0).choice(len(mask), 6, replace=False):
        place = np.unravel_index(token, grid)
        moved = np.asarray(run(x.at[(0, *place)].add(1.0))).reshape(-1, 8)
        np.testing.assert_array_equal(np.abs(moved - base).max(-1) > 1e-7, mask[:, token])


def test_mean_number_of_keys_per_query():
    grid, window = (8, 4, 8), (4, 2, 4)
    for shift, mean in [((0, 0, 0), 32), ((2, 0, 0), 24), ((2, 1, 2), 13.5)]:
        assert oracle_mask(grid, window, shift).sum(1).mean() == mean


def test_moving_by_whole_windows_moves_the_result():
    mixer = Window((4, 2, 2), head=8)
    x = jax.random.normal(jax.random.key(0), (1, 8, 4, 6, 8))
    params = nn.unbox(mixer.init(jax.random.key(1), x, None))
    run = jax.jit(lambda x: mixer.apply(params, x, None)[0])
    np.testing.assert_allclose(
        run(jnp.roll(x, (4, 2, 4), (1, 2, 3))), jnp.roll(run(x), (4, 2, 4), (1, 2, 3)), atol=1e-6
    )


def test_two_layers_with_the_shift_join_all_neighbours():
    grid, window = (8, 4, 8), (4, 2, 4)
    plain = oracle_mask(grid, *geometry(grid, window, False))
    shifted = oracle_mask(grid, *geometry(grid, window, True))
    either = (plain | shifted).reshape(*grid, *grid)
    for t, h, w in itertools.product(*map(range, grid)):
        for dt, dh, dw in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
            if t + dt < grid[0] and h + dh < grid[1] and w + dw < grid[2]:
                assert either[t, h, w, t + dt, h + dh, w + dw]
