# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvid.training.optimizer import adamw, constant, cosine, decays, linear, parts, wsd
from jaxvid.types import InputError

SCHEDULES = [
    constant(1e-3, 10),
    cosine(1e-3, 100, 10, 0.1),
    linear(1e-3, 100, 10, 0.1),
    wsd(1e-3, 100, 10, 0.2, 0.1),
]


@pytest.mark.parametrize("rate", SCHEDULES)
def test_schedules_warm_up_and_come_down(rate):
    values = np.asarray(jax.jit(jax.vmap(rate))(jnp.arange(130)))
    assert 0 < values[0] <= 1.0001e-4 and np.all(np.diff(values[:10]) > 0)
    np.testing.assert_allclose(values.max(), 1e-3, rtol=0.01)
    assert np.all(np.diff(values[10:]) <= 1e-12)


def test_ends_are_reached_and_kept():
    for rate in SCHEDULES[1:]:
        np.testing.assert_allclose([rate(100), rate(500)], 1e-4, rtol=1e-5)
    np.testing.assert_allclose(wsd(1.0, 100, 0, 0.2)(79), 1.0)
    np.testing.assert_allclose(linear(1.0, 100)(50), 0.5)
    np.testing.assert_allclose(cosine(1.0, 100)(50), 0.5, atol=1e-6)


def test_without_gradient_only_kernels_shrink():
    params = {
        "layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "table": jnp.ones((6, 2))},
        "mamba": {k: jnp.ones((3, 2)) for k in ("A_log", "D", "dt_bias")},
        "norm": {"scale": jnp.ones((4, 2))},
        "embed": jnp.ones((5, 2)),
    }
    optimizer = adamw(rate=constant(0.1), decay=0.5)
    updates, _ = jax.jit(lambda p: optimizer.update(jax.tree.map(jnp.zeros_like, p), optimizer.init(p), p))(
        params
    )
    moved = {
        jax.tree_util.keystr(p): float(jnp.abs(v).max())
        for p, v in jax.tree_util.tree_flatten_with_path(updates)[0]
    }
    assert {k for k, v in moved.items() if v} == {"['layer']['kernel']"}
    np.testing.assert_allclose(moved["['layer']['kernel']"], 0.05, rtol=1e-6)
    assert jax.tree.leaves(decays(params)).count(True) == 1


def test_gradients_are_clipped_together():
    params = {"a": np.zeros(3, np.float32), "b": np.zeros(4, np.float32)}
    grads = {"a": np.array([1, -2, 3], np.float32), "b": np.full(4, 100, np.float32)}
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    # eps beside which the moments are small: AdamW forgets the scale of gradients otherwise
    clipped, free = (adamw(rate=1e-2, clip=c, eps=1e3) for c in (1.0, None))
    one, _ = jax.jit(lambda g: clipped.update(g, clipped.init(params), params))(grads)
    two, _ = jax.jit(lambda g: free.update(g, free.init(params), params))(
        jax.tree.map(lambda g: g / norm, grads)
    )
    np.testing.assert_allclose(one["a"], two["a"], rtol=1e-5)


@pytest.mark.parametrize("wrong", [lambda: constant(0.0), lambda: cosine(1e-3, 10, 20), lambda: wsd(1e-3, 10, decay=0.0),
                                   lambda: adamw(rate=1e-3, b1=1.0), lambda: constant(float("nan"))])  # fmt: skip
def test_settings_that_cannot_train(wrong):
    with pytest.raises(InputError):
        wrong()


def test_parts_take_turns_and_rest():
    """A part whose gradient is zero stays bit for bit, though Adam's moments would carry it on; the other goes as alone."""
    params = {"one": {"kernel": jnp.ones((2, 2))}, "two": {"kernel": jnp.full((2, 2), 3.0)}}
    both, alone = parts(one=adamw(1e-2), two=adamw(1e-1)), adamw(1e-2)
    state, single, solo = both.init(params), alone.init(params["one"]), params["one"]
    for turn in ("one", "two", "two", "one"):
        grads = {name: {"kernel": jnp.full((2, 2), 0.3 * (name == turn))} for name in params}
        updates, state = both.update(grads, state, params)
        after = optax.apply_updates(params, updates)
        for name in params:
            rests = np.array_equal(after[name]["kernel"], params[name]["kernel"])
            assert rests == (name != turn)
        params = after
        if turn == "one":
            updates, single = alone.update(grads["one"], single, solo)
            solo = optax.apply_updates(solo, updates)
    np.testing.assert_allclose(params["one"]["kernel"], solo["kernel"], rtol=1e-6)
    assert both.rate(0) == alone.rate(0)
