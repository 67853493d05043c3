# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.schedule import over_frames
from jaxvid.sampling import plan as plans
from jaxvid.sampling import sample as loop
from jaxvid.sampling import solvers
from jaxvid.sampling.inpaint import inpainting
from jaxvid.sampling.noise import frame_noise, seed_keys
from jaxvid.sampling.skip import skipping
from jaxvid.types import InputError

SHAPE = (2, 4, 3, 2, 3)
X = frame_noise(seed_keys([3, 4]), 0, 4, SHAPE[2:])
STEPS = 8
TIMES = jnp.asarray(plans.time_table(STEPS, 2.0))


def mixing(x, t, memory=None):
    return 0.6 * jnp.tanh(x) + 0.3 * jnp.mean(x, 1, keepdims=True) * over_frames(1 - t, x), memory


def run(solver, plan, denoise=mixing):
    go = jax.jit(lambda x: loop.rows(denoise, solver, TIMES, loop.init(solver, x), plan.k, plan.update))
    return go(X)


def test_threshold_zero_is_the_plain_sampler_and_infinity_asks_twice():
    solver, plan = solvers.dpmpp_2m(), plans.together(STEPS, 4)
    plain, all_ = run(solver, plan), run(skipping(solver, 0.0), plan)
    assert np.allclose(plain.x, all_.x, atol=1e-6) and all_.state.calls == STEPS
    few = run(skipping(solver, float("inf")), plan)
    assert few.state.calls == 2 and np.all(np.isfinite(few.x))


def test_more_skipping_means_fewer_calls_and_more_error():
    plan, solver = plans.together(STEPS, 4), solvers.euler()
    exact = run(solver, plan).x
    made = [run(skipping(solver, limit), plan) for limit in (0.0, 0.3, 1.0)]
    calls = [int(one.state.calls) for one in made]
    errors = [float(jnp.abs(one.x - exact).max()) for one in made]
    assert calls[0] > calls[1] > calls[2] >= 2 and errors[0] < 1e-6 < errors[1] < errors[2] < 1


def test_a_constant_velocity_is_reused_without_error():
    target = jax.random.normal(jax.random.key(1), SHAPE)
    plan = plans.together(STEPS, 4)
    made = run(skipping(solvers.euler(), 10.0), plan, lambda x, t, memory=None: (target, memory))
    assert made.state.calls == 2 and np.allclose(made.x, target, atol=1e-5)


def test_rows_in_which_a_frame_starts_are_computed():
    plan = plans.staircase(STEPS, 4, 2)
    made = run(skipping(solvers.euler(), float("inf")), plan)
    # four starts, and the last row
    assert made.state.calls == 5


def test_a_video_is_the_same_alone_and_in_a_batch():
    """Each video skips by its own change; the network is called in the rows of any of them."""
    wild = X.at[1].multiply(30.0)
    plan, solver = plans.together(STEPS, 4), skipping(solvers.dpmpp_2m(), 0.3)
    go = jax.jit(lambda x: loop.rows(mixing, solver, TIMES, loop.init(solver, x), plan.k, plan.update))
    both, apart = go(wild), [go(wild[i : i + 1]) for i in (0, 1)]
    answers = [int(one.state.answers[0]) for one in apart]
    assert both.state.answers.tolist() == answers and answers[0] != answers[1]
    assert max(answers) <= both.state.calls <= STEPS
    for i, one in enumerate(apart):
        assert np.allclose(both.x[i], one.x[0], rtol=1e-5, atol=1e-5)


def test_a_given_part_is_itself_in_the_end_and_acts_on_the_rest():
    value = jax.random.normal(jax.random.key(5), SHAPE)
    keep = jax.random.uniform(jax.random.key(6), SHAPE[:-1]) < 0.4
    for name in ("euler", "unipc"):
        solver = inpainting(solvers.by_name(name), keep, value, X)
        for plan in (plans.together(STEPS, 4), plans.staircase(STEPS, 4, 3)):
            made = np.asarray(run(solver, plan).x)
            assert np.array_equal(made[np.asarray(keep)], np.asarray(value)[np.asarray(keep)])
            assert (
                np.abs(made - np.asarray(run(solvers.by_name(name), plan).x))[~np.asarray(keep)].max() > 1e-3
            )
    nothing = inpainting(solvers.euler(), jnp.zeros_like(keep), value, X)
    assert np.allclose(run(nothing, plan).x, run(solvers.euler(), plan).x, atol=1e-6)


def test_user_errors():
    with pytest.raises(InputError):
        skipping(solvers.euler(), -0.1)
