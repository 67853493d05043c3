# SPDX-License-Identifier: Apache-2.0
"""A causal network with memory says what it would say with the whole past before it: cached = uncached."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.context import teacher_forced
from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.mixers.longshort import LongShort
from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.sampling import rollout as rolling
from jaxvid.sampling.noise import frame_noise, seed_keys
from jaxvid.sampling.plan import time_table, together
from jaxvid.sampling.sample import sample
from jaxvid.sampling.solvers import euler
from jaxvid.types import InputError

B, H, W, C, BLOCK, CHUNKS = 2, 2, 2, 3, 2, 4
FRAMES = BLOCK * CHUNKS
MIXERS = {
    "all": (Attention(head=8, causal=True, window=FRAMES, block=BLOCK),),
    "window": (Attention(head=8, causal=True, window=3, block=BLOCK),),
    "sink": (Attention(head=8, causal=True, window=2, sink=1, block=BLOCK),),
    "far": (LongShort(head=8, window=2, past=3, pool=2, block=BLOCK),),
    "state": (Mamba(order=0, causal=True, review=None, head=8, state=4, chunk=8),),
}
T = jnp.full((B, FRAMES), 0.7)


def videos(seed):
    """Two of them: a clean one, and noise."""
    return jax.random.normal(jax.random.key(seed), (2, B, FRAMES, H, W, C))


CLEAN, NOISY = videos(0)


def made(mixers, seed=1):
    model = VideoDiT(mixers=mixers, repeats=3, width=16, head=8, channels=C, patch=(1, 1, 1))
    start, away = jax.random.split(jax.random.key(seed))
    params = nn.unbox(jax.jit(model.init)(start, CLEAN, T, {}))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(away, len(leaves))
    # moved off its zeros, so that layers matter
    params = tree.unflatten(
        [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    )
    return model, jax.jit(lambda x, t, given, memory: model.apply(params, x, t, {"given": given}, memory))


@pytest.mark.parametrize("name", MIXERS)
def test_cached_is_uncached(name, fresh):
    """Each noisy chunk behind its clean past: from the memory that clean passes wrote, and in one pass over all of it.

    Three layers deep and after eviction, the one pass is under the banded mask. The memory is read in every step of the
    solver and does not depend on what is being denoised.
    """
    clean, noisy = videos(fresh)
    model, run = made(MIXERS[name], fresh + 1)
    memory = model.init_memory(B, H, W)
    size = [leaf.shape for leaf in jax.tree.leaves(memory)]
    none, all_ = jnp.zeros((B, BLOCK), bool), jnp.ones((B, BLOCK), bool)
    for chunk in range(CHUNKS):
        here = slice(chunk * BLOCK, (chunk + 1) * BLOCK)
        cached, _ = run(noisy[:, here], T[:, here], none, memory)
        past = jnp.arange(FRAMES)[None] < here.start
        x = jnp.where(past[..., None, None, None], clean, noisy)
        given = jnp.broadcast_to(past, (B, FRAMES))
        whole, nothing = run(x, jnp.where(given, 0, T), given, None)
        assert nothing is None
        np.testing.assert_allclose(cached, whole[:, here], atol=1e-5)
        _, memory = run(clean[:, here], 0 * T[:, here], all_, memory)
        assert [leaf.shape for leaf in jax.tree.leaves(memory)] == size


@pytest.mark.parametrize("name", MIXERS)
def test_cached_generation_is_uncached_generation(name, fresh):
    """A roll-out, chunk after chunk with its memory, and the same video made with all frames before it in every call."""
    model, run = made(MIXERS[name], fresh)
    times, solver, plan = time_table(3, 2.0), euler(), together(3, BLOCK)
    says = lambda clean: lambda x, t, memory: run(x, t, jnp.full(t.shape, clean), memory)
    keys = seed_keys([fresh, fresh ^ 1])
    step = jax.jit(
        lambda roll: rolling.next_chunk(
            roll, says(False), solver, jnp.asarray(times), plan.k, plan.update, clean=says(True)
        )
    )
    noise = frame_noise(keys, 0, FRAMES, (H, W, C))

    @jax.jit
    def whole(video, given):
        def denoise(x, t, memory):
            return run(x, t, given, None)

        return sample(denoise, solver, together(3, FRAMES), times, noise, given=given, value=video)

    roll = rolling.begin(keys, (H, W, C), memory=model.init_memory(B, H, W))
    video = jnp.zeros_like(noise)
    for chunk in range(CHUNKS):
        here = slice(chunk * BLOCK, (chunk + 1) * BLOCK)
        roll, cached, _ = step(roll)
        given = jnp.broadcast_to(jnp.arange(FRAMES) < here.start, (B, FRAMES))
        made_of_all = whole(video, given)[:, here]
        np.testing.assert_allclose(cached, made_of_all, atol=1e-5)
        video = video.at[:, here].set(made_of_all)
    assert np.abs(video).max() > 0.1


def test_forgetting_is_not_truncating():
    """What has left the queue still acts through frames that saw it: the video cut to the window is another one."""
    _, run = made(MIXERS["window"])
    given = jnp.arange(FRAMES)[None] < FRAMES - BLOCK
    given = jnp.broadcast_to(given, (B, FRAMES))
    x = jnp.where(given[..., None, None, None], CLEAN, NOISY)
    whole = run(x, jnp.where(given, 0, T), given, None)[0][:, -BLOCK:]
    cut = slice(FRAMES - BLOCK - 4, None)  # four frames of past where three can be seen
    short = run(x[:, cut], jnp.where(given, 0, T)[:, cut], given[:, cut], None)[0][:, -BLOCK:]
    assert np.abs(whole - short).max() > 1e-3
    moved = run(x.at[:, 0].add(1.0), jnp.where(given, 0, T), given, None)[0][:, -BLOCK:]
    assert np.abs(whole - moved).max() > 1e-5


@pytest.mark.parametrize("name", ["window", "sink", "far"])
def test_one_pass_of_teaching_is_cached_generation_of_every_block(name):
    """The clean video and its noisy copy in one sequence: noisy blocks see the clean ones before them, and themselves."""
    model, run = made(MIXERS[name])
    level = jnp.repeat(jnp.array([[0.9, 0.3, 0.6, 0.5]]), BLOCK, 1) * jnp.ones((B, 1))  # one for each block
    network = lambda x, t, cond, memory: run(x, t, cond["given"], memory)
    taught = teacher_forced(network, CLEAN, model.teaching())
    once, nothing = taught(NOISY, level, {})
    assert nothing is None and once.shape == NOISY.shape
    memory = model.init_memory(B, H, W)
    for chunk in range(CHUNKS):
        here = slice(chunk * BLOCK, (chunk + 1) * BLOCK)
        cached, _ = run(NOISY[:, here], level[:, here], jnp.zeros((B, BLOCK), bool), memory)
        np.testing.assert_allclose(once[:, here], cached, atol=1e-5)
        _, memory = run(CLEAN[:, here], 0 * level[:, here], jnp.ones((B, BLOCK), bool), memory)


def test_the_past_is_remembered_once_for_all_steps():
    """Keys and values of clean frames do not depend on what is being denoised behind them, nor on its level, bit for bit;
    where frames see the future they would."""
    mixers = MIXERS["all"]
    model, run = made(mixers)
    given = jnp.broadcast_to(jnp.arange(FRAMES)[None] < BLOCK, (B, FRAMES))
    held = given[..., None, None, None]

    def remembered(noise, t):
        x, level = jnp.where(held, CLEAN, noise), jnp.where(given, 0, t)
        memory = run(x, level, given, model.init_memory(B, H, W))[1]
        return [np.asarray(memory[0][name])[:, :, : BLOCK * H * W] for name in ("k", "v")]

    early, late = remembered(NOISY, jnp.ones_like(T)), remembered(-NOISY, 0.1 * T)
    for one, other in zip(early, late, strict=True):
        assert np.array_equal(one, other) and np.abs(one).max() > 0.1
    both_ways = (Attention(head=8),)
    _, see = made(both_ways)
    past = [
        see(jnp.where(held, CLEAN, noise), jnp.where(given, 0, T), given, None)[0][:, :BLOCK]
        for noise in (NOISY, -NOISY)
    ]
    assert np.abs(past[0] - past[1]).max() > 1e-3


def test_what_cannot_be_taught_is_refused():
    for mixers in (MIXERS["state"], (Attention(head=8),)):
        with pytest.raises(InputError, match="taught"):
            VideoDiT(mixers=mixers, width=16, head=8, channels=C, patch=(1, 1, 1)).teaching()
