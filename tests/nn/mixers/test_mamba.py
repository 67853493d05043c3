# SPDX-License-Identifier: Apache-2.0
"""Scan orders, review tokens and directions of the Mamba mixer."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.nn.mixers.mamba import ORDERS, Mamba, pool, to_grid, to_sequence
from jaxvid.types import InputError

T, H, W = 5, 4, 6


@pytest.mark.parametrize("order", range(4))
def test_orders_are_undone_by_their_inverses(order):
    x = jnp.arange(2 * T * H * W * 3.0).reshape(2, T, H, W, 3)
    np.testing.assert_array_equal(to_grid(to_sequence(x, order), (T, H, W), order), x)


@pytest.mark.parametrize("order", range(4))
def test_position_of_a_token_in_the_sequence(order):
    formula = [
        lambda t, h, w: (t * H + h) * W + w,
        lambda t, h, w: (t * W + w) * H + h,
        lambda t, h, w: (h * W + w) * T + t,
        lambda t, h, w: (w * H + h) * T + t,
    ][order]
    x = jnp.arange(T * H * W).reshape(1, T, H, W, 1)
    seq = np.asarray(to_sequence(x, order)).ravel()
    t, h, w = np.unravel_index(seq, (T, H, W))
    np.testing.assert_array_equal(formula(t, h, w), np.arange(T * H * W))


def test_orders_on_the_grid_of_the_specification():
    x = jnp.arange(12).reshape(1, 2, 2, 3, 1)
    assert list(np.asarray(to_sequence(x, 1)).ravel()) == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert list(np.asarray(to_sequence(x, 2)).ravel()) == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
    assert list(np.asarray(to_sequence(x, 3)).ravel()) == [0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11]


def test_every_axis_neighbour_is_a_scan_neighbour_in_some_order():
    assert {axes[-1] for axes in ORDERS} == {0, 1, 2}


def test_pool_averages_what_is_inside_at_the_border():
    x = jax.random.normal(jax.random.key(0), (2, T, H, W, 3))
    y = pool(x, (2, 3, 4))
    assert y.shape == (2, 3, 2, 2, 3)
    np.testing.assert_allclose(y[:, 2, 1, 1], x[:, 4:, 3:, 4:].mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[:, 0, 0, 0], x[:, :2, :3, :4].mean((1, 2, 3)), rtol=1e-5, atol=1e-6)


def made(**kw):
    mixer = Mamba(head=8, state=4, chunk=16, **kw)
    params = nn.unbox(mixer.init(jax.random.key(0), jnp.zeros((1, T, H, W, 16)), None))
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    return jax.jit(lambda x: mixer.apply(params, x, None)[0])


def test_reversing_the_grid_reverses_the_result():
    """Both directions share their parameters, so time has no arrow (without review tokens)."""
    run = made(order=2, review=None)
    x = jax.random.normal(jax.random.key(1), (1, T, H, W, 16))
    np.testing.assert_allclose(run(x[:, ::-1, ::-1, ::-1]), run(x)[:, ::-1, ::-1, ::-1], atol=1e-5)


@pytest.mark.parametrize("order, twin", [(0, 1), (2, 3)])
def test_transposing_rows_and_columns_swaps_the_orders(order, twin):
    x = jax.random.normal(jax.random.key(1), (1, T, H, W, 16))
    a, b = made(order=order, review=(2, 2, 2)), made(order=twin, review=(2, 2, 2))
    np.testing.assert_allclose(a(x), b(x.transpose(0, 1, 3, 2, 4)).transpose(0, 1, 3, 2, 4), atol=1e-5)


@pytest.mark.parametrize("corner", [(0, 0, 0), (T - 1, H - 1, W - 1)])
def test_review_tokens_come_first_in_both_directions(corner):
    """The first token of a direction sees, besides the other direction, the whole grid only through the review.

    With one direction cut off by a zeroed decay this cannot be seen, so look at gradients: without review the
    first token of the scan gets its news of the far corner from the backward direction alone; with review,
    from both, and the amounts differ.
    """
    x = jax.random.normal(jax.random.key(1), (1, T, H, W, 16))
    far = tuple(n - 1 - c for n, c in zip((T, H, W), corner, strict=True))

    def reach(run):
        g = jax.grad(lambda x: (run(x)[(0, *corner)] ** 2).sum())(x)
        return np.abs(np.asarray(g[(0, *far)])).sum()

    assert reach(made(order=0, review=(2, 2, 2))) > reach(made(order=0, review=None)) > 0


def test_the_first_token_of_each_direction_hears_the_review(monkeypatch):
    """One direction at a time: the other's contribution is removed by taking the scan apart."""
    mixer = Mamba(order=0, review=(1, 1, 1), head=8, state=4, chunk=16)
    rest_of = {}

    def spy(self, rest, scan):
        rest_of["heard"] = jax.grad(lambda r: _direction(self, r, scan, False)[:, 0].sum())(rest)
        rest_of["heard back"] = jax.grad(lambda r: _direction(self, r, scan, True)[:, 0].sum())(rest)
        return original(self, rest, scan)

    def _direction(self, rest, scan, back):
        def laid_out(part):
            review, seq = to_sequence(pool(part, self.review), 0), to_sequence(part, 0)
            return jnp.concatenate([review[:, ::-1], seq[:, ::-1]] if back else [review, seq], 1)

        y, _, _ = scan(tuple(laid_out(part) for part in rest))
        return y[:, -math.prod(rest[0].shape[1:4]) :]

    original = Mamba._both_ways
    x = jax.random.normal(jax.random.key(1), (1, 2, 2, 3, 16))
    params = nn.unbox(mixer.init(jax.random.key(0), x, None))
    monkeypatch.setattr(Mamba, "_both_ways", spy)
    mixer.apply(params, x, None)
    for name in ("heard", "heard back"):
        per_token = sum(np.abs(np.asarray(part)).sum((0, 4)) for part in rest_of[name])
        assert (per_token > 0).all(), f"{name}: the first token does not hear the whole grid"


def test_one_frame_is_an_image():
    run = made(order=3, review=(2, 2, 2))
    assert np.isfinite(run(jnp.ones((1, 1, H, W, 16)))).all()


@pytest.mark.parametrize("bad", [dict(order=4), dict(causal=True), dict(causal=True, order=2, review=None)])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError):
        Mamba(**bad)
