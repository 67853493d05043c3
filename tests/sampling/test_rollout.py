# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.schedule import over_frames
from jaxvid.sampling import plan as plans
from jaxvid.sampling import rollout as rolls
from jaxvid.sampling import sample as loop
from jaxvid.sampling import solvers
from jaxvid.sampling.noise import frame_noise, seed_keys
from jaxvid.types import InputError

FRAME = (2, 3, 2)
KEYS = seed_keys([5, 6])
TIMES = jnp.asarray(plans.time_table(4, 2.0))


def causal(x, t, memory):
    """A toy causal network: each frame is told the mean of all frames before it, in this chunk and in memory."""
    total, count = memory
    sums = total[:, None] + jnp.cumsum(x, 1)
    counts = count[:, None] + jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[None]
    before = (sums - x) / jnp.maximum(over_frames(counts, x) - 1, 1)
    return 0.7 * jnp.tanh(x) + 0.3 * before, (sums[:, -1], counts[:, -1])


def nothing_yet():
    return jnp.zeros((2, *FRAME), jnp.float32), jnp.zeros((2,), jnp.float32)


def bidirectional(x, t, memory=None):
    return 0.5 * jnp.tanh(x) + 0.4 * jnp.mean(x, 1, keepdims=True), memory


def stepper(denoise, frames, solver=None):
    plan = plans.together(4, frames)
    solver = solver or solvers.unipc()
    return jax.jit(lambda roll: rolls.next_chunk(roll, denoise, solver, TIMES, plan.k, plan.update))


def shapes(tree):
    return [(leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in jax.tree.leaves(tree)]


def test_memory_is_constant_and_compiled_once():
    step, roll = stepper(causal, 4), rolls.begin(KEYS, FRAME, memory=nothing_yet())
    first, chunks = shapes(roll), []
    for _ in range(6):
        roll, latents, bad = step(roll)
        assert shapes(roll) == first and bad.tolist() == [-1, -1]
        chunks.append(np.asarray(latents))
    assert step._cache_size() == 1 and roll.frame == 24
    video = np.concatenate(chunks, 1)
    # what was committed is the clean video, each frame once
    assert np.allclose(roll.memory[0], video.sum(1), atol=1e-4) and np.all(roll.memory[1] == 24)
    # and every chunk read it: the last one by hand from the frames before it
    memory = jnp.asarray(video[:, :20].sum(1)), jnp.full((2,), 20.0)
    noise = frame_noise(KEYS, 20, 4, FRAME)
    again = loop.sample(causal, solvers.unipc(), plans.together(4, 4), TIMES, noise, memory=memory)
    assert np.allclose(again, video[:, 20:], atol=1e-5)


def test_a_causal_rollout_goes_on_from_a_clip():
    clip = jax.random.normal(jax.random.key(0), (2, 5, *FRAME))
    roll = rolls.append(rolls.begin(KEYS, FRAME, memory=nothing_yet()), causal, clip)
    assert roll.frame == 5 and np.allclose(roll.memory[0], clip.sum(1), atol=1e-5)
    roll, latents, _ = stepper(causal, 4)(roll)
    assert roll.frame == 9 and latents.shape == (2, 4, *FRAME)


def test_overlap_hands_the_tail_on_bit_for_bit():
    step, roll = stepper(bidirectional, 6), rolls.begin(KEYS, FRAME, overlap=2)
    windows = []
    for i in range(4):
        assert rolls.window_start(roll) == 4 * i
        roll, latents, _ = step(roll)
        windows.append(np.asarray(latents))
        assert roll.frame == 6 + 4 * i
    assert step._cache_size() == 1  # the first window too
    for before, after in zip(windows, windows[1:], strict=False):
        assert np.array_equal(before[:, -2:], after[:, :2])
        assert np.abs(after[:, 2:] - before[:, :4]).max() > 1e-3
    plan = plans.together(4, 6)
    plain = loop.sample(bidirectional, solvers.unipc(), plan, TIMES, frame_noise(KEYS, 0, 6, FRAME))
    assert np.allclose(windows[0], plain, atol=1e-5)  # the first window has no given frames
    held = plans.given(plan, [True, True, False, False, False, False])
    noise = frame_noise(KEYS, 4, 6, FRAME).at[:, :2].set(windows[0][:, -2:])
    second = loop.sample(bidirectional, solvers.unipc(), held, TIMES, noise)
    assert np.allclose(windows[1], second, atol=1e-5)


def test_an_overlapping_rollout_goes_on_from_a_clip():
    clip = jax.random.normal(jax.random.key(0), (2, 5, *FRAME))
    roll = rolls.append(rolls.begin(KEYS, FRAME, overlap=2), bidirectional, clip)
    assert rolls.window_start(roll) == 3
    roll, latents, _ = stepper(bidirectional, 6)(roll)
    assert np.array_equal(latents[:, :2], clip[:, -2:]) and roll.frame == 9


def test_given_frames_and_flags():
    roll = rolls.begin(KEYS, FRAME, overlap=2)
    value = jax.random.normal(jax.random.key(3), (2, 6, *FRAME))
    given = jnp.zeros((2, 6), bool).at[:, 0].set(True).at[1, 5].set(True)
    assert np.array_equal(rolls.window_given(roll, 6, given), given)
    plan = plans.together(4, 6)
    step = jax.jit(
        lambda roll: rolls.next_chunk(
            roll, bidirectional, solvers.euler(), TIMES, plan.k, plan.update, given=given, value=value
        )
    )
    roll, latents, _ = step(roll)
    assert np.array_equal(np.asarray(latents)[np.asarray(given)], np.asarray(value)[np.asarray(given)])
    later = rolls.window_given(roll, 6, given)
    assert later.tolist() == [
        [True, True, False, False, False, False],
        [True, True, False, False, False, True],
    ]
    after = step(roll)[1]  # where both would give a frame, the tail is right
    assert np.array_equal(after[:, :2], latents[:, -2:]) and np.array_equal(after[1, 5], value[1, 5])


def test_watched_in_steps_is_the_same_video():
    roll, plan, solver = (
        rolls.begin(KEYS, FRAME, memory=nothing_yet()),
        plans.staircase(4, 4, 1),
        solvers.unipc(),
    )
    _, whole, _ = rolls.next_chunk(roll, causal, solver, TIMES, plan.k, plan.update)
    window = rolls.open_window(roll, 4)
    carry = loop.init(solver, window.noise, window.given, window.value)
    for r in range(plan.rows):
        carry = loop.rows(
            causal,
            solver,
            TIMES,
            carry,
            plan.k[r : r + 1],
            plan.update[r : r + 1],
            memory=roll.memory,
            given=window.given,
            value=window.value,
        )
    assert np.allclose(carry.x, whole, atol=1e-6)
    assert rolls.close_window(roll, causal, carry.x).frame == 4


def test_user_errors():
    plan = plans.together(4, 2)
    for wrong in (
        lambda: rolls.open_window(rolls.begin(KEYS, FRAME, overlap=2), 2),
        lambda: rolls.append(rolls.begin(KEYS, FRAME, overlap=4), bidirectional, jnp.zeros((2, 3, *FRAME))),
        lambda: rolls.next_chunk(
            rolls.begin(KEYS, FRAME, memory=nothing_yet(), overlap=1),
            causal,
            solvers.euler(),
            TIMES,
            plan.k,
            plan.update,
        ),
    ):
        with pytest.raises(InputError):
            wrong()
