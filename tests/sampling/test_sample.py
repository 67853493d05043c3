# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion import guidance
from jaxvid.diffusion.schedule import RectifiedFlow, over_frames
from jaxvid.sampling import plan as plans
from jaxvid.sampling import sample as loop
from jaxvid.sampling import solvers
from jaxvid.sampling.noise import frame_noise, seed_keys
from jaxvid.types import InputError

SHAPE = (2, 6, 3, 2, 3)
WEIGHT = jax.random.normal(jax.random.key(9), (3, 3)) / 3


def mixing(x, t, memory=None):
    """A denoiser in which frames see each other."""
    near = jnp.tanh(x @ WEIGHT) + 0.3 * jnp.roll(x, 1, 1) * over_frames(1 - t, x)
    return 0.6 * near + 0.2 * jnp.mean(x, 1, keepdims=True), memory


@pytest.fixture(scope="module")
def setting():
    plan = plans.staircase(5, 6, 2, block=2)
    x = frame_noise(seed_keys([3, 4]), 0, 6, SHAPE[2:])
    return plan, jnp.asarray(plans.time_table(5, 2.0)), x


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "unipc", "ancestral"])
def test_slices_of_rows_are_the_whole_bit_for_bit(name, setting):
    plan, times, x = setting
    solver, keys = solvers.by_name(name), seed_keys([3, 4])
    run = jax.jit(lambda carry, k, update: loop.rows(mixing, solver, times, carry, k, update, keys=keys))
    start = jax.jit(lambda x: loop.init(solver, x))(x)
    whole = run(start, plan.k, plan.update)
    for size in (1, 3):
        carry = start
        for r in range(0, plan.rows, size):
            carry = run(carry, plan.k[r : r + size], plan.update[r : r + size])
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(carry), strict=True):
            assert np.array_equal(a, b)
    assert whole.row == plan.rows and plan.rows == 9
    assert run._cache_size() == 3  # whole, single rows, three rows: no weak type doubles them
    alone = jax.jit(lambda x: loop.sample(mixing, solver, plan, times, x, keys=keys))(x)
    assert np.allclose(alone, whole.x, atol=1e-6)


def test_without_a_lag_it_is_the_plain_sampler(setting):
    _, times, x = setting
    made = jax.jit(lambda x: loop.sample(mixing, solvers.euler(), plans.make_level_plan(6, 5, 0), times, x))(
        x
    )

    @jax.jit
    def step(x, now, after):
        now, after = (jnp.full(x.shape[:2], t) for t in (now, after))
        return solvers.move(RectifiedFlow(), x, mixing(x, now)[0], now, after)

    for n in range(5):
        x = step(x, times[n + 1], times[n + 2])
    np.testing.assert_allclose(made, x, atol=1e-6)


def test_without_a_lag_it_is_the_plain_sampler_bit_for_bit(setting):
    """Operation by operation; compiled, the two are fused differently and agree as above."""
    _, times, x = setting
    plan, schedule = plans.make_level_plan(6, 2, 0), RectifiedFlow()
    times = jnp.asarray(plans.time_table(2, 2.0))
    with jax.disable_jit():
        made = loop.sample(mixing, solvers.euler(), plan, times, x)
        for n in (1, 2):
            now, after = (jnp.full(x.shape[:2], times[i]) for i in (n, n + 1))
            x = solvers.move(schedule, x, mixing(x, now)[0], now, after)
    np.testing.assert_array_equal(made, x)


def test_given_frames_are_shown_clean_and_never_changed(setting):
    _, times, x = setting
    plan, value = plans.together(5, 6), jax.random.normal(jax.random.key(5), SHAPE)
    given = jnp.array([[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]], bool)
    shown = []

    def spy(x, t, memory=None):
        jax.debug.callback(lambda x, t: shown.append((np.asarray(x), np.asarray(t))), x, t)
        return mixing(x, t, memory)

    made = loop.sample(spy, solvers.heun(), plan, times, x, given=given, value=value)
    jax.effects_barrier()
    mask = np.asarray(given)
    assert np.array_equal(np.asarray(made)[mask], np.asarray(value)[mask]) and np.all(np.isfinite(made))
    assert len(shown) == 10
    for seen, t in shown:
        assert np.array_equal(seen[mask], np.asarray(value)[mask]) and np.all(t[mask] == 0)
    # the same as a plan whose columns are given, where that is the same for all samples
    mask = jnp.broadcast_to(given[:1], given.shape)
    held = plans.given(plan, np.asarray(given)[0])
    one = loop.sample(mixing, solvers.unipc(), plan, times, x, given=mask, value=value)
    two = loop.sample(mixing, solvers.unipc(), held, times, jnp.where(over_frames(mask, x), value, x))
    assert np.allclose(one, two, atol=1e-6)


def test_a_past_that_is_shown_noisy_stays_as_it_is(setting):
    """SkyReels: the model sees 0.98 x + 0.02 eps at level 0.02, and the prefix comes out bit for bit."""
    _, times, x = setting
    value, eps = jax.random.normal(jax.random.key(5), (2, *SHAPE))
    given = jnp.broadcast_to(jnp.arange(6) < 2, (2, 6))
    shown = []

    def spy(x, t, cond, memory=None):
        jax.debug.callback(lambda x, t: shown.append((np.asarray(x), np.asarray(t))), x, t)
        return mixing(x, t, memory)

    network = guidance.history(spy, guidance.history_scheme(1.0, shown=0.02), eps)
    denoise = lambda x, t, memory=None: network(x, t, {"given": given}, memory)
    plan = plans.make_level_plan(6, 5, 0, prefix=2)
    made = loop.sample(denoise, solvers.unipc(), plan, times, x, given=given, value=value)
    jax.effects_barrier()
    np.testing.assert_array_equal(made[:, :2], value[:, :2])
    assert len(shown) == 5
    for seen, t in shown:
        np.testing.assert_allclose(seen[:, :2], 0.98 * value[:, :2] + 0.02 * eps[:, :2], atol=1e-6)
        assert np.all(t[:, :2] == np.float32(0.02)) and np.all(t[:, 2:] > 0.02)


def test_what_is_not_given_is_not_seen(setting):
    """MCVD's and SEINE's masked conditioning: it might as well be zeros."""
    _, times, x = setting
    given = jnp.array([[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]], bool)
    value = jax.random.normal(jax.random.key(5), SHAPE)
    run = jax.jit(
        lambda value: loop.sample(
            mixing, solvers.euler(), plans.together(5, 6), times, x, given=given, value=value
        )
    )
    zeros = jnp.where(over_frames(given, value), value, 0)
    np.testing.assert_array_equal(run(value), run(zeros))


def test_one_compilation_for_any_mask_and_plan_of_a_shape(setting):
    _, times, x = setting
    solver = solvers.unipc()

    @jax.jit
    def run(x, k, update, times, given, value):
        carry = loop.init(solver, x, given, value)
        return loop.rows(mixing, solver, times, carry, k, update, given=given, value=value).x

    for plan, shift in ((plans.together(9, 6), 1.0), (plans.staircase(9, 6, 0), 4.0)):
        run(
            x,
            plan.k,
            plan.update,
            jnp.asarray(plans.time_table(9, shift)),
            jnp.zeros((2, 6), bool),
            jnp.zeros_like(x),
        )
    assert run._cache_size() == 1


def test_the_first_bad_row_is_named(setting):
    plan, times, x = setting

    def breaks(x, t, memory=None):  # once the first frame has come below t = 0.8, in the second sample only
        late = (t[:, :1] < 0.8) & (jnp.arange(2) == 1)[:, None]
        return jnp.where(over_frames(late, x), jnp.nan, x), memory

    solver = solvers.euler()
    carry = loop.rows(breaks, solver, times, loop.init(solver, x), plan.k, plan.update)
    row = int(np.argmax(np.asarray(times)[plan.k[:, 0]] < 0.8))
    assert carry.bad.tolist() == [-1, row] and row > 0


def test_same_video_alone_or_in_a_batch(setting):
    plan, times, _ = setting
    keys = seed_keys([11, 12])

    def run(keys):
        x = frame_noise(keys, 0, 6, SHAPE[2:])
        return jax.jit(lambda x, keys: loop.sample(mixing, solvers.ancestral(), plan, times, x, keys=keys))(
            x, keys
        )

    assert np.allclose(run(keys)[1:], run(keys[1:]), atol=1e-5)


def test_memory_is_read_by_every_call_and_dtypes_stay(setting):
    plan, times, x = setting

    def denoise(x, t, memory):
        return (0.5 * x + memory).astype(jnp.bfloat16), memory + 1  # what it would write is not kept

    one = loop.sample(denoise, solvers.dpmpp_2m(), plan, times, x, memory=jnp.float32(2.0))
    two = loop.sample(lambda x, t, m: denoise(x, t, jnp.float32(2.0)), solvers.dpmpp_2m(), plan, times, x)
    assert one.dtype == jnp.float32 and np.array_equal(one, two)


def test_user_errors(setting):
    plan, times, x = setting
    for wrong in (
        lambda: loop.sample(mixing, solvers.euler(), plans.together(5, 4), times, x),
        lambda: loop.sample(mixing, solvers.euler(), plans.together(4, 6), times, x),
        lambda: loop.init(solvers.euler(), x, jnp.zeros((2, 6), bool)),
    ):
        with pytest.raises(InputError):
            wrong()
