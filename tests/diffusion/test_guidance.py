# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion import guidance
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import Cosine, over_frames
from jaxvid.types import InputError

SHAPE = (2, 4, 2, 3, 2)
T = jnp.array([[0.0, 0.2, 0.6, 1.0], [1.0, 0.6, 0.2, 0.0]])
X = jax.random.normal(jax.random.key(0), SHAPE)
calls = []


def network(x, t, cond, memory):
    calls.append(x.shape[0])
    text = jnp.where(cond["drop"], 0.1, cond["text"])
    out = jnp.sin(x * over_frames(1 + text, x)) + over_frames(t, x)
    return out, None if memory is None else memory + over_frames(text, memory)


COND = {"text": jnp.array([1.0, 2.0]), "given": T == 0}


def pair(process=Process()):
    return guidance.doubled(process, network, COND)


def told(process=Process(), drop=False):
    return process.denoiser(network, {**COND, "drop": jnp.full(2, drop)})


GUIDES = [guidance.classifier_free, guidance.apg, guidance.cfg_zero_star]


@pytest.mark.parametrize("guide", GUIDES)
def test_scale_one_and_outside_the_interval_are_the_told_guess(guide):
    c, _ = told()(X, T)
    assert np.array_equal(guide(pair(), 1.0)(X, T)[0], c)
    assert np.array_equal(guide(pair(), 7.0, (2.0, 3.0))(X, T)[0], c)
    some, _ = guide(pair(), 7.0, (0.2, 0.6))(X, T)
    inside = np.asarray((T > 0.2) & (T <= 0.6))  # per frame
    assert np.array_equal(np.asarray(some)[~inside], np.asarray(c)[~inside])
    assert np.all(np.any(np.asarray(some != c), axis=(2, 3, 4))[inside])


def test_one_call_on_a_doubled_batch_is_two_calls():
    del calls[:]
    both, _ = pair()(X, T)
    assert calls == [4]
    for got, want in zip(both, (told()(X, T)[0], told(drop=True)(X, T)[0]), strict=True):
        assert np.allclose(got, want, atol=1e-6)
    apart = guidance.classifier_free(guidance.two(told(), told(drop=True)), 3.0)(X, T)[0]
    assert np.allclose(guidance.classifier_free(pair(), 3.0)(X, T)[0], apart, atol=1e-5)


def test_memory_is_for_both_branches_and_stays_doubled():
    memory = jnp.zeros((4, 3))
    _, memory = guidance.classifier_free(pair(), 2.0)(X, T, memory)
    assert memory.shape == (4, 3) and np.allclose(memory[:, 0], [1, 2, 0.1, 0.1])
    _, apart = guidance.two(told(), told(drop=True))(X, T, (jnp.zeros((2, 1)), jnp.zeros((2, 1))))
    assert np.allclose(apart[0][:, 0], [1, 2]) and np.allclose(apart[1][:, 0], 0.1)


def test_a_negative_prompt_takes_the_place_of_the_null_text():
    stacked = guidance.stack_conditions(COND, {"text": jnp.array([5.0, 6.0])}, 2)
    assert np.array_equal(stacked["text"], [1, 2, 5, 6]) and not np.any(stacked["drop"])
    assert np.array_equal(stacked["given"], np.concatenate([COND["given"], COND["given"]]))
    assert guidance.stack_conditions(COND, None, 2)["drop"].tolist() == [False, False, True, True]


@pytest.mark.parametrize("process", [Process(), Process(Cosine(), "x0")], ids=str)
def test_guidance_combines_velocities(process):
    c, u = (told(process, drop)(X, T)[0] for drop in (False, True))
    a, s = (over_frames(f(T), X) for f in (process.schedule.alpha, process.schedule.sigma))
    noisy = np.asarray(T > 0)
    v_c, v_u = (X - (a + s) * c) / s, (X - (a + s) * u) / s

    def x0(v):
        return np.asarray((X - s * v) / (a + s))[noisy]

    got = guidance.classifier_free(pair(process), 4.0)(X, T)[0]
    assert np.allclose(np.asarray(got)[noisy], x0(v_u + 4 * (v_c - v_u)), atol=2e-5)
    free = guidance.apg(pair(process), 4.0, parallel=1.0, largest=1e9, schedule=process.schedule)(X, T)[0]
    assert np.allclose(np.asarray(free)[noisy], x0(v_u + 4 * (v_c - v_u)), atol=1e-4)
    fit = guidance.fitted(v_c, v_u)
    zero = guidance.cfg_zero_star(pair(process), 4.0, schedule=process.schedule)(X, T)[0]
    assert np.allclose(np.asarray(zero)[noisy], x0(fit * v_u + 4 * (v_c - fit * v_u)), atol=1e-4)
    cut = guidance.apg(pair(process), 4.0, largest=0.5, schedule=process.schedule)(X, T)[0]
    assert np.all(np.isfinite(cut)) and np.all(np.isfinite(zero))


def test_numbers_by_hand():
    c, u = (jnp.asarray(v).reshape(1, 1, 3) for v in ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]))
    update = guidance.project(c, c - u, 0.0, 1.0)
    assert np.allclose(c + 2 * update, [0.4889, 1.87222, 3.25555], atol=2e-5)  # the paper's form, scale 3
    assert np.allclose(u + 3 * update, [0.23335, 0.80834, 1.38333], atol=2e-5)
    assert np.allclose(jnp.sum(update * c), 0, atol=1e-6)
    fit = guidance.fitted(c, u)
    assert np.allclose(fit, 2) and np.allclose(fit * u + 2 * (c - fit * u), [0, 2, 4], atol=1e-6)
    assert np.allclose(guidance.fitted(c, c), 1)


def test_another_scale_compiles_nothing():
    run = jax.jit(lambda scale: guidance.classifier_free(pair(), scale)(X, T)[0])
    one, three = run(jnp.float32(1)), run(jnp.float32(3))
    assert run._cache_size() == 1 and not np.array_equal(one, three)
    per_sample = guidance.classifier_free(pair(), jnp.array([1.0, 3.0]))(X, T)[0]
    assert np.allclose(per_sample[0], one[0], atol=1e-6) and np.allclose(per_sample[1], three[1], atol=1e-6)


def test_history_schemes_sum_to_one():
    assert guidance.history_scheme(4.0) == ((0.0, 4.0), (1.0, -3.0))
    assert guidance.history_scheme(3.0, 0.5) == ((0.0, 1.0), (0.5, 2.0), (1.0, -2.0))
    assert guidance.history_scheme(1.0) == ((0.0, 1.0),) == guidance.history_scheme(1.0, 0.3)
    assert guidance.merged(((0.0, 1.0), (1.0, -3.0), (0.0, 3.0))) == ((0.0, 4.0), (1.0, -3.0))
    for scale, fraction, shown in ((4.0, None, 0.02), (2.5, 0.7, 0.0)):
        assert abs(sum(w for _, w in guidance.history_scheme(scale, fraction, shown)) - 1) < 1e-12
    for wrong in ((2.0, None, 1.0), (2.0, 1.0, 0.0)):
        with pytest.raises(InputError):
            guidance.history_scheme(*wrong)


def test_history_guidance_shows_the_past_at_each_level():
    x, eps = jax.random.normal(jax.random.key(0), (2, 2, 4, 3))
    t = jnp.array([[0, 0, 0.6, 0.9]] * 2)
    given = jnp.array([[1, 1, 0, 0]] * 2, bool)

    def net(x, t, cond, memory=None):
        total = jnp.mean(x, 1, keepdims=True) + jnp.sum(t, 1)[:, None, None]
        return jnp.tanh(x + total) + jnp.sum(cond["given"], 1)[:, None, None], memory

    def at(level):
        seen = jnp.where(given[..., None], (1 - level) * x + level * eps, x)
        marks = given if level == 0 else jnp.zeros_like(given)
        return net(seen, jnp.where(given, level, t), {"given": marks})[0]

    for scale, fraction in ((4.0, None), (3.0, 0.5)):
        scheme = guidance.history_scheme(scale, fraction)
        out = guidance.history(net, scheme, eps)(x, t, {"given": given})[0]
        wanted = sum(weight * at(level) for level, weight in scheme)
        assert np.allclose(out, wanted, atol=1e-5)
    # a level that is named twice is one variant
    twice = ((0.0, 1.0), (1.0, -3.0), (0.0, 3.0))
    one, other = (
        guidance.history(net, s, eps)(x, t, {"given": given})[0] for s in (twice, guidance.merged(twice))
    )
    assert np.allclose(one, other, atol=1e-5)
    # masked history cannot be told apart from any other
    hidden = guidance.history(net, ((1.0, 1.0),), eps)
    other = jnp.where(given[..., None], x + 3, x)
    assert np.array_equal(hidden(x, t, {"given": given})[0], hidden(other, t, {"given": given})[0])
    # SkyReels' conditioning on a slightly noisy past, and nothing to show
    shown = guidance.history(net, ((0.02, 1.0),), eps)
    assert np.allclose(shown(x, t, {"given": given})[0], at(0.02), atol=1e-6)
    none = {"given": jnp.zeros_like(given)}
    assert np.allclose(guidance.history(net, scheme, eps)(x, t, none)[0], net(x, t, none)[0], atol=1e-5)
