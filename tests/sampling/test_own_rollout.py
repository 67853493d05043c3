# SPDX-License-Identifier: Apache-2.0
"""A student's roll-out in training is its roll-out in sampling, and is differentiated where it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.schedule import over_frames
from jaxvid.sampling import rollout as rolling
from jaxvid.sampling.noise import STEP, fold, frame_noise, seed_keys
from jaxvid.sampling.own_rollout import Voices, own_rollout
from jaxvid.sampling.plan import time_table, together
from jaxvid.sampling.solvers import renoise
from jaxvid.types import InputError

FRAMES, BLOCK, STEPS, FRAME = 6, 2, 3, (2, 3)
TIMES, KEYS = time_table(STEPS, 5.0), seed_keys([1, 2])
NOTHING = jnp.zeros((2, FRAMES), bool), jnp.zeros((2, FRAMES, *FRAME))


def toy(w, x, t, memory):
    """Frames of a block see each other and the mean of all clean blocks before them, which `w` writes too."""
    seen = jnp.tanh(w * x) * over_frames(1 - 0.3 * t, x) + 0.2 * jnp.mean(x, 1, keepdims=True)
    return seen + w * memory[:, None], 0.5 * memory + 0.5 * w * jnp.mean(jnp.sin(x), 1)


def voices(w):
    frozen = lambda x, t, memory: toy(jax.lax.stop_gradient(w), x, t, memory)
    return lambda first: Voices(lambda x, t, memory: toy(w, x, t, memory), frozen, frozen)


def start():
    return jnp.zeros((2, *FRAME))


def own(w, last, given=NOTHING):
    return own_rollout(voices(w), TIMES, last, KEYS, given[1], given[0], block=BLOCK, memory=start())


def test_to_the_last_step_it_is_what_sampling_makes():
    made = jax.jit(own)(0.7, STEPS)
    denoise = lambda x, t, memory=None: toy(0.7, x, t, memory)
    plan, rollout = together(STEPS, BLOCK), rolling.begin(KEYS, FRAME, memory=start())
    step = jax.jit(
        lambda r: rolling.next_chunk(r, denoise, renoise(), jnp.asarray(TIMES), plan.k, plan.update)
    )
    for first in range(0, FRAMES, BLOCK):
        rollout, latents, _ = step(rollout)
        np.testing.assert_allclose(made[:, first : first + BLOCK], latents, atol=1e-5)


def by_hand(w, still, last):
    """The loop written out: `w` acts in the last step of each block, `still` everywhere else."""
    memory, blocks = start(), []
    for first in range(0, FRAMES, BLOCK):
        x = frame_noise(KEYS, first, BLOCK, FRAME)
        level = lambda n: jnp.full((2, BLOCK), TIMES[n])
        for n in range(1, last):
            x0 = toy(still, x, level(n), memory)[0]
            eps = frame_noise(fold(fold(KEYS, STEP), n - 1), first, BLOCK, FRAME)
            x = (1 - TIMES[n + 1]) * x0 + TIMES[n + 1] * eps
        x0 = toy(w, x, level(last), memory)[0]
        memory = toy(still, jax.lax.stop_gradient(x0), 0 * level(1), memory)[1]
        memory = jax.lax.stop_gradient(memory)
        blocks.append(x0)
    return jnp.concatenate(blocks, 1)


def test_gradients_flow_through_one_step_of_each_block_and_not_through_the_memory():
    weight = jax.random.normal(jax.random.key(3), (2, FRAMES, *FRAME))
    slope = jax.jit(jax.value_and_grad(lambda w, last: jnp.sum(weight * own(w, last))))
    for last in (1, STEPS):
        value, found = slope(0.7, last)
        wanted, right = jax.value_and_grad(lambda w, n=last: jnp.sum(weight * by_hand(w, 0.7, n)))(0.7)
        np.testing.assert_allclose(value, wanted, rtol=1e-4)
        np.testing.assert_allclose(found, right, rtol=1e-4)
    assert slope._cache_size() == 1  # the step to leave at is a number, not a program


def test_given_frames_come_out_as_they_are():
    given = jnp.arange(FRAMES)[None] < jnp.array([[1], [0]])
    value = jax.random.normal(jax.random.key(4), NOTHING[1].shape)
    made = own(0.7, 2, (given, value))
    np.testing.assert_array_equal(made[0, 0], value[0, 0])
    assert np.abs(made[0, 1:] - value[0, 1:]).min() > 0
    plain = own(0.7, 2)
    assert np.abs(made[0, 1] - plain[0, 1]).max() > 1e-3 and np.array_equal(made[1], plain[1])


def test_blocks_need_a_memory():
    for block, memory in ((BLOCK, None), (4, start())):
        with pytest.raises(InputError, match="blocks"):
            own_rollout(voices(0.7), TIMES, 1, KEYS, NOTHING[1], NOTHING[0], block=block, memory=memory)
