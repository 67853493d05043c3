# SPDX-License-Identifier: Apache-2.0
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion import prediction
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import Cosine, RectifiedFlow, add_noise, rates, shifted
from jaxvid.types import InputError, Video

SCHEDULES = [RectifiedFlow(), RectifiedFlow(shift=4.0), Cosine()]
PAIRS = list(itertools.product(SCHEDULES, prediction.KINDS))
SHAPE = (2, 5, 3, 2, 4)
T = jnp.broadcast_to(jnp.array([0.0, 0.03, 0.5, 0.96, 1.0], jnp.float32), (2, 5))


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedules_are_exact_at_the_ends(schedule):
    ends = jnp.array([0.0, 1.0], jnp.float32)
    assert np.array_equal(schedule.alpha(ends), [1, 0]) and np.array_equal(schedule.sigma(ends), [0, 1])
    t = jnp.linspace(0, 1, 33)
    assert np.all(np.diff(schedule.alpha(t)) < 0) and np.all(np.diff(schedule.sigma(t)) > 0)
    da, ds = rates(schedule, t[1:-1])
    h = 1e-3
    assert np.allclose(da, (schedule.alpha(t[1:-1] + h) - schedule.alpha(t[1:-1] - h)) / (2 * h), atol=2e-3)
    assert np.allclose(ds, (schedule.sigma(t[1:-1] + h) - schedule.sigma(t[1:-1] - h)) / (2 * h), atol=2e-3)


def test_shift_of_a_known_table():
    t = jnp.array([1.0, 0.75, 0.5, 0.25])
    assert np.allclose(shifted(t, 5.0) * 1000, [1000, 937.5, 833.333, 625], atol=1e-3)
    assert np.allclose(shifted(t, 8.0) * 1000, [1000, 960, 888.889, 727.273], atol=1e-3)


@pytest.mark.parametrize("schedule,kind", PAIRS, ids=str)
def test_predictions_round_trip_at_every_level(schedule, kind):
    x0, eps = normal(0), normal(1)
    x = add_noise(schedule, x0, eps, T)
    assert np.array_equal(x[:, 0], x0[:, 0]) and np.allclose(x[:, -1], eps[:, -1], atol=1e-6)
    back = prediction.to_x0(schedule, kind, x, T, prediction.target(schedule, kind, x0, eps, T))
    assert np.all(np.isfinite(back))
    levels = slice(0, 4) if kind == "eps" else slice(None)  # noise does not tell the video at t = 1
    assert np.allclose(back[:, levels], x0[:, levels], atol=2e-5)


@pytest.mark.parametrize("schedule,kind", PAIRS, ids=str)
def test_error_scale_is_the_derivative_of_the_target(schedule, kind):
    t, x0, eps = T[:, 1:4], normal(0)[:, 1:4], normal(1)[:, 1:4]
    x = add_noise(schedule, x0, eps, t)
    a, s = (f(t).reshape(t.shape + (1, 1, 1)) for f in (schedule.alpha, schedule.sigma))

    def told(x0):  # what `kind` would have to be for this x0, x being what it is
        return prediction.target(schedule, kind, x0, (x - a * x0) / s, t)

    _, slope = jax.jvp(told, (x0,), (jnp.ones_like(x0),))
    assert np.allclose(
        np.abs(slope[..., 0, 0, 0]), prediction.error_scale(schedule, kind, t, 1e-6), rtol=1e-3
    )


def oracle(process, x0, key):
    """A network that knows the answer."""

    def network(x, t, cond, memory):
        eps = jax.random.normal(key, x0.shape)
        return prediction.target(process.schedule, process.predicts, x0, eps, t), memory

    return network


def clip(ok=None):
    return Video(
        x=normal(3),
        sec=jnp.broadcast_to(jnp.arange(5) / 16, (2, 5)),
        ok=jnp.ones((2, 5), bool) if ok is None else ok,
    )


@pytest.mark.parametrize("predicts,loss_on", list(itertools.product(prediction.KINDS, prediction.KINDS)))
def test_the_right_answer_costs_nothing_and_gradients_are_finite(predicts, loss_on, key):
    process, video, ones = Process(Cosine(), predicts, loss_on), clip(), jnp.ones((2, 5))
    t = T[:, :4].repeat(2, 1)[:, :5] if predicts == "eps" else T
    loss, metrics = process.loss(oracle(process, video.x, key), video, {}, t, ones, key)
    assert 0 <= loss < 1e-4 and metrics["frames_q1"] >= 2

    def wrong(c):
        return process.loss(lambda x, t, cond, m: (c * jnp.ones_like(x), m), video, {}, T, ones, key)[0]

    value, slope = jax.value_and_grad(wrong)(0.1)
    assert np.isfinite(value) and value > 0.01 and np.isfinite(slope)


def test_x0_network_under_the_flow_loss(key):
    process, video, t = Process(predicts="x0", loss_on="flow"), clip(), T
    weight = normal(4, (2, 5)) ** 2 + 0.1
    network = lambda x, t, cond, m: (0.5 * x, m)
    loss, _ = process.loss(network, video, {}, t, weight, key)
    x = add_noise(process.schedule, video.x, jax.random.normal(key, SHAPE), t)
    clamp = jnp.maximum(t, 0.05).reshape(2, 5, 1, 1, 1)
    v, v_hat = (x - video.x) / clamp, (x - 0.5 * x) / clamp
    assert np.isclose(loss, jnp.mean(jnp.mean((v - v_hat) ** 2, (2, 3, 4)) * weight), rtol=1e-5)


def test_given_frames_and_padding_do_not_matter(key):
    ok = jnp.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
    given = jnp.array([[1, 0, 0, 0, 0], [0, 0, 1, 0, 1]], bool)
    process, cond, weight = Process(), {"given": given}, jnp.ones((2, 5))
    seen = {}

    def network(x, t, cond, memory):  # every frame looks at all frames
        seen.update(x=x, t=t)
        return x.mean(1, keepdims=True) * t.reshape(2, 5, 1, 1, 1) + 0 * x, memory

    def loss(video, t, off=0.0):
        def net(x, t, cond, m):
            out, m = network(x, t, cond, m)
            return out + off, m

        return process.loss(net, video, cond, t, weight, key)

    base, metrics = loss(clip(ok), T)
    inside = np.asarray(given & ok)
    assert np.array_equal(np.asarray(seen["x"])[inside], np.asarray(clip().x)[inside])
    assert np.all(np.asarray(seen["t"])[inside] == 0) and np.all(np.asarray(seen["t"])[~np.asarray(ok)] == 1)
    assert np.isclose(metrics["scored"], 5 / 10)
    assert sum(metrics[f"frames_q{i}"] for i in (1, 2, 3, 4)) == 5

    padding = (~ok).reshape(2, 5, 1, 1, 1)
    spoiled = clip(ok).replace(x=jnp.where(padding, jnp.nan, clip().x))
    assert loss(spoiled, jnp.where(ok & ~given, T, 0.77))[0] == base  # nor do the levels drawn there
    aside = jnp.where(ok & ~given, 0.0, 1e6).reshape(2, 5, 1, 1, 1)
    assert loss(clip(ok), T, aside)[0] == base  # nor what the network says there


def test_loss_is_float32_for_a_bfloat16_network(key):
    seen = []

    def network(x, t, cond, memory):
        seen.append(x.dtype)
        return x.astype(jnp.bfloat16), memory

    video = clip()
    half = video.replace(x=video.x.astype(jnp.bfloat16))
    loss, metrics = Process().loss(network, half, {}, T, jnp.ones((2, 5)), key)
    assert loss.dtype == jnp.float32 and all(m.dtype == jnp.float32 for m in metrics.values())
    x0, _ = Process().denoiser(network, {})(video.x, T)
    assert x0.dtype == jnp.float32 and seen == [jnp.float32, jnp.float32]


def test_denoiser_passes_conditions_and_memory_on():
    def network(x, t, cond, memory):
        return x + cond["text"], memory + 1

    x0, memory = Process(predicts="x0").denoiser(network, {"text": 2.0})(normal(0), T, jnp.int32(4))
    assert np.allclose(x0, normal(0) + 2) and memory == 5


def test_unknown_words_are_named():
    for make in (
        lambda: Process(predicts="x1"),
        lambda: Process(loss_on="mse"),
        lambda: RectifiedFlow(0.0),
        lambda: Process(sigma_floor=0.0),
    ):
        with pytest.raises(InputError):
            make()
