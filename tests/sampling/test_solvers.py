# SPDX-License-Identifier: Apache-2.0
"""Against the closed-form flow: for x0 ~ N(m, s^2) the best guess is linear in x and every trajectory is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.schedule import Cosine, RectifiedFlow, over_frames
from jaxvid.sampling import plan as plans
from jaxvid.sampling import sample as loop
from jaxvid.sampling import solvers
from jaxvid.sampling.noise import seed_keys
from jaxvid.types import InputError

MEAN, STD = 0.7, 0.4
SHAPE = (2, 3, 2, 1, 2)
ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 2}


def gaussian(schedule):
    def denoise(x, t, memory=None):
        a, s = over_frames(schedule.alpha(t), x), over_frames(schedule.sigma(t), x)
        return MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * MEAN), memory

    return denoise


@functools.partial(jax.jit, static_argnums=(0, 1))
def follow(solver, schedule, k, update, times, x):
    carry = loop.init(solver, x)
    return loop.rows(gaussian(schedule), solver, times, carry, k, update).x


def solve(solver, schedule, plan, times, x):
    return np.asarray(follow(solver, schedule, plan.k, plan.update, times, x))


def table(steps, shift):
    t = np.arange(steps, -1, -1) / steps
    return np.concatenate([[1.0], shift * t / (1 + (shift - 1) * t)])  # as `plan.time_table`, in float64


def errors(name, schedule, shift, lag, steps):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
        assert x.dtype == jnp.float64
        exact = MEAN + STD * np.asarray(x)
        solver, found = solvers.by_name(name, schedule), []
        most = plans.staircase(max(steps), SHAPE[1], lag).rows
        for n in steps:  # rows in which nothing moves are added, so that one compilation serves all of them
            plan = plans.staircase(n, SHAPE[1], lag)
            k = np.pad(plan.k, [(0, most - plan.rows), (0, 0)], constant_values=n + 1)
            update = np.pad(plan.update, [(0, most - plan.rows), (0, 0)])
            times = jnp.asarray(np.pad(table(n, shift), (0, max(steps) - n)))
            found.append(np.abs(np.asarray(follow(solver, schedule, k, update, times, x)) - exact).max())
    return np.array(found)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(
    "schedule,shift,lag", [(RectifiedFlow(), 1.0, 0), (RectifiedFlow(), 3.0, 5), (Cosine(), 1.0, 2)]
)
def test_orders(name, schedule, shift, lag):
    coarse, fine = errors(name, schedule, shift, lag, (192, 384))
    order = np.log2(coarse / fine)
    if name == "dpmpp_2m":
        # Its steps near both ends are of constant length in lambda, which makes the error h^2 log(1/h).
        order += np.log2(np.log(384) / np.log(192))
    assert order > ORDERS[name] - 0.25


def test_second_order_is_worth_it():
    found = {name: errors(name, RectifiedFlow(), 1.0, 0, (24,))[0] for name in ORDERS}
    assert max(found["heun"], found["dpmpp_2m"], found["unipc"]) < found["euler"] / 5
    assert found["unipc"] < found["dpmpp_2m"]


@pytest.mark.parametrize("name", [*ORDERS, "ancestral", "renoise"])
def test_an_oracle_is_followed_to_the_end_by_every_plan(name):
    """A denoiser that knows x0 is believed: x0 exactly, whatever the plan."""
    truth = jax.random.normal(jax.random.key(1), SHAPE)
    solver = solvers.renoise() if name == "renoise" else solvers.by_name(name)
    for plan in (plans.together(5, 3), plans.staircase(5, 3, 2), plans.from_starts([4, 0, 1], 5)):
        x = jax.random.normal(jax.random.key(2), SHAPE)
        keys = seed_keys([1, 2])
        made = loop.sample(lambda x, t, m: (truth, m), solver, plan, plans.time_table(5, 2.0), x, keys=keys)
        assert np.allclose(made, truth, atol=1e-6)


@pytest.mark.parametrize("name", ORDERS)
def test_history_is_per_frame(name):
    """With a denoiser that looks at each frame by itself, when a frame starts does not matter."""
    schedule, times = RectifiedFlow(), jnp.asarray(plans.time_table(6, 2.0))
    x = jax.random.normal(jax.random.key(2), SHAPE)
    solver = solvers.by_name(name, schedule)
    one = solve(solver, schedule, plans.together(6, 3), times, x)
    for plan in (plans.staircase(6, 3, 1), plans.staircase(6, 3, 6), plans.from_starts([3, 0, 9], 6)):
        assert np.allclose(solve(solver, schedule, plan, times, x), one, atol=2e-6)
    # a pause in the middle, which no constructor makes, changes nothing either
    steady = plans.together(6, 3)
    k = np.insert(steady.k, 3, steady.k[3], 0)
    update = np.insert(steady.update, 3, False, 0)
    paused = plans.check(plans.LevelPlan(k, update), 6)
    assert np.allclose(solve(solver, schedule, paused, times, x), one, atol=2e-6)


@pytest.mark.parametrize("name", [*ORDERS, "ancestral"])
def test_frames_that_do_not_move_stay_bit_for_bit(name):
    """Not started, finished, given: identical across a row, and finite at t = 0 and 1."""
    schedule, plan, times = RectifiedFlow(), plans.staircase(3, 3, 2), plans.time_table(3)
    plan = plans.given(plan, [False, True, False])
    solver = solvers.by_name(name, schedule)
    carry = loop.init(solver, jax.random.normal(jax.random.key(0), SHAPE))
    one = jax.jit(
        lambda c, k, u: loop.rows(gaussian(schedule), solver, times, c, k, u, keys=seed_keys([1, 2]))
    )
    for r in range(plan.rows):
        after = one(carry, plan.k[r : r + 1], plan.update[r : r + 1])
        still = ~plan.update[r]
        assert np.array_equal(np.asarray(carry.x)[:, still], np.asarray(after.x)[:, still])
        assert not np.array_equal(np.asarray(carry.x)[:, ~still], np.asarray(after.x)[:, ~still])
        assert np.all(np.isfinite(after.x)) and after.bad.tolist() == [-1, -1]
        carry = after


def test_ancestral_without_noise_is_euler_and_its_spread_is_right():
    schedule, times = RectifiedFlow(), plans.time_table(40)
    x = jax.random.normal(jax.random.key(2), (4, 2, 16, 16, 2))
    plan = plans.together(40, 2)
    euler = loop.sample(gaussian(schedule), solvers.euler(), plan, times, x)
    keys = seed_keys(range(4))
    calm = loop.sample(gaussian(schedule), solvers.ancestral(schedule, 0.0), plan, times, x, keys=keys)
    assert np.allclose(euler, calm, atol=2e-5)
    wild = loop.sample(gaussian(schedule), solvers.ancestral(schedule), plan, times, x, keys=keys)
    assert abs(np.mean(wild) - MEAN) < 0.03 and abs(np.std(wild) / STD - 1) < 0.1
    assert np.abs(np.asarray(wild) - euler).max() > 0.1


def test_user_errors():
    with pytest.raises(InputError, match="dpmpp_2m"):
        solvers.by_name("euler2")
    with pytest.raises(InputError):
        solvers.ancestral(eta=1.5)
    x = jnp.zeros(SHAPE)
    with pytest.raises(InputError, match="keys"):
        loop.sample(
            gaussian(RectifiedFlow()), solvers.renoise(), plans.together(2, 3), plans.time_table(2), x
        )
