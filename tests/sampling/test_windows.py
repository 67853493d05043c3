# SPDX-License-Identifier: Apache-2.0
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import RectifiedFlow
from jaxvid.sampling import plan as plans
from jaxvid.sampling import sample as loop
from jaxvid.sampling import solvers, windows
from jaxvid.sampling.windows import partitions, pyramid, random_cuts, window_plan, windowed
from jaxvid.types import InputError


def test_pyramids_and_printed_weights():
    assert pyramid(16).tolist() == [*range(1, 9), *range(8, 0, -1)] and pyramid(5).tolist() == [1, 2, 3, 2, 1]
    plan = window_plan(24, 16, 4)
    assert plan.start.tolist() == [0, 4, 8]
    for frame, expected in {
        4: (5 / 6, 1 / 6, 0),
        7: (2 / 3, 1 / 3, 0),
        8: (8 / 14, 5 / 14, 1 / 14),
        11: (5 / 17, 8 / 17, 4 / 17),
    }.items():
        assert np.allclose(plan.weight[:, frame], expected)


def test_weights_sum_to_one_on_every_frame(fresh):
    draw = np.random.default_rng(fresh)
    for _ in range(300):
        window = int(draw.integers(1, 20))
        frames, stride = window + int(draw.integers(0, 40)), int(draw.integers(1, window + 1))
        for kind in windows.WEIGHTS:
            plan = window_plan(frames, window, stride, kind)
            for one in (plan, random_cuts(plan, draw)):
                assert np.allclose(one.weight.sum(0), 1) and np.all(one.weight >= 0)
                inside = (np.arange(frames) >= one.start[:, None]) & (
                    np.arange(frames) < one.start[:, None] + window
                )
                assert np.all(inside | (one.weight == 0))
    assert np.array_equal(window_plan(16, 16, 4).weight, np.ones((1, 16)))


def test_random_cuts_are_a_linear_ramp_in_expectation():
    plan, draw = window_plan(40, 24, 16), np.random.default_rng(1)
    cuts = [random_cuts(plan, draw).weight for _ in range(4000)]
    assert all(np.all((w == 0) | (w == 1)) for w in cuts)
    later = np.mean(cuts, 0)[1]
    assert np.allclose(later[16:24], np.arange(1, 9) / 8, atol=0.03)
    assert np.all(later[:16] == 0) and np.all(later[24:] == 1)


def test_partitions_of_a_queue():
    plain = partitions(8, 4, ahead=False)
    assert plain.start.tolist() == [0, 4] and np.all(plain.weight.sum(0) == 1)
    ahead = partitions(10, 4)  # two frames of lookahead, and a queue of 8
    assert ahead.start.tolist() == [0, 2, 4, 6]
    written = [np.flatnonzero(row).tolist() for row in ahead.weight]
    assert written == [[0, 1, 2, 3], [4, 5], [6, 7], [8, 9]]
    for wrong in ((9, 4), (10, 3), (2, 4)):
        with pytest.raises(InputError):
            partitions(*wrong)


def net(x, t, cond, memory):
    """Each frame sees the mean of its window, its level, its caption."""
    told = jnp.take_along_axis(cond["text"], cond["span"], 1)[..., None]
    return jnp.tanh(x) + jnp.mean(x, 1, keepdims=True) + t[..., None] + told, memory


def test_windows_are_called_with_their_levels_and_captions():
    x = jax.random.normal(jax.random.key(0), (2, 10, 3))
    t = jax.random.uniform(jax.random.key(1), (2, 10))
    cond = {
        "text": jnp.array([[1.0, 5.0], [2.0, 7.0]]),
        "span": jnp.repeat(jnp.array([[0, 1]]), 2, 0).repeat(5, 1),
    }
    plan = window_plan(10, 4, 3)
    out, memory = jax.jit(lambda *a: windowed(net, plan)(*a))(x, t, cond)
    by_hand = 0
    for start, weight in zip(plan.start, plan.weight, strict=True):
        here = slice(start, start + 4)
        part = net(x[:, here], t[:, here], {**cond, "span": cond["span"][:, here]}, None)[0]
        by_hand = by_hand + jnp.zeros(x.shape).at[:, here].set(weight[None, here, None] * part)
    assert memory is None and np.allclose(out, by_hand, atol=1e-5)
    # one window is the network itself, bit for bit
    whole = jax.jit(lambda *a: windowed(net, window_plan(10, 10, 4))(*a)[0])(x, t, cond)
    assert np.array_equal(whole, jax.jit(net)(x, t, cond, None)[0])


def test_blended_predictions_are_blended_next_steps():
    """Gen-L-Video averages what each window's step leads to; with Euler that is a step along the averaged prediction."""
    x, weight = jax.random.normal(jax.random.key(0), (1, 10, 3)), window_plan(10, 4, 3, "uniform")
    times = plans.time_table(5)
    process, schedule = Process(), RectifiedFlow()
    cond = {"text": jnp.zeros((1, 1)), "span": jnp.zeros((1, 10), jnp.int32)}
    denoise = process.denoiser(windowed(net, weight), cond)
    made = loop.sample(denoise, solvers.euler(), plans.together(5, 10), times, x)
    for now, after in itertools.pairwise(times[1:]):
        total = 0
        for start, w in zip(weight.start, weight.weight, strict=True):
            here = slice(start, start + 4)
            t = jnp.full((1, 4), now)
            part = {**cond, "span": cond["span"][:, here]}
            x0 = process.denoiser(net, part)(x[:, here], t)[0]
            step = solvers.move(schedule, x[:, here], x0, t, jnp.full((1, 4), after))
            total = total + jnp.zeros(x.shape).at[:, here].set(w[None, here, None] * step)
        x = total
    assert np.allclose(made, x, atol=1e-5)


def test_lengths_of_chained_windows():
    """n windows with an overlap of O cover n (W - O) + O frames, and no window reaches beyond them."""
    for window, overlap, count in ((24, 8, 4), (112, 32, 3), (16, 8, 5)):
        frames = count * (window - overlap) + overlap
        starts = windows.window_starts(frames, window, window - overlap)
        assert len(starts) == count and starts[-1] + window == frames


def test_a_network_that_does_not_mix_frames_ignores_windows():
    def alone(x, t, cond, memory):
        return jnp.sin(x) * t[..., None], memory

    x, t = jax.random.normal(jax.random.key(0), (1, 13, 2)), jnp.linspace(0, 1, 13)[None]
    for plan in (window_plan(13, 5, 2), window_plan(13, 5, 5, "uniform"), partitions(13, 13, ahead=False)):
        assert np.allclose(windowed(alone, plan)(x, t, {}, None)[0], alone(x, t, {}, None)[0], atol=1e-6)


def test_user_errors():
    for wrong in (
        lambda: window_plan(8, 9, 1),
        lambda: window_plan(8, 4, 5),
        lambda: window_plan(8, 4, 2, "round"),
        lambda: windowed(net, window_plan(8, 4, 2))(jnp.zeros((1, 9, 1)), jnp.zeros((1, 9)), {}, None),
    ):
        with pytest.raises(InputError):
            wrong()
