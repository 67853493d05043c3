# SPDX-License-Identifier: Apache-2.0
"""The convolutional head: it begins at nothing, keeps to its frame, treats every place alike, and takes any patch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.refine import Refine

B, T, H, W, C, D = 2, 3, 8, 12, 3, 16


def inputs(patch):
    keys = jax.random.split(jax.random.key(0), 3)
    grid = tuple(n // p for n, p in zip((T, H, W), patch, strict=True))
    tokens = jax.random.normal(keys[0], (B, *grid, D))
    return (
        tokens,
        jax.random.normal(keys[1], (B, T, H, W, C)),
        jax.random.normal(keys[2], (B, grid[0], D)),
        patch,
    )


def moved(params, scale=0.2):
    leaves, tree = jax.tree.flatten(nn.unbox(params))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [a + scale * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module")
def head():
    head = Refine(width=8, blocks=2)
    params = moved(head.init(jax.random.key(0), *inputs((1, 2, 2))))
    return jax.jit(lambda *args: head.apply(params, *args, (1, 2, 2)))


def test_a_network_goes_on_from_what_it_knew_without_the_head():
    small = dict(mixers=(Attention(head=8),), width=D, head=8, channels=C, text_width=8)
    plain, refined = VideoDiT(**small), VideoDiT(**small, refine=Refine(width=8))
    x, t = inputs((1, 2, 2))[1], jnp.full((B, T), 0.5)
    params = moved(plain.init(jax.random.key(0), x, t, {}))
    more = nn.unbox(refined.init(jax.random.key(2), x, t, {}))
    both = {"params": {**params["params"], "refine": more["params"]["refine"]}}
    np.testing.assert_array_equal(plain.apply(params, x, t, {})[0], refined.apply(both, x, t, {})[0])
    away = {"params": {**params["params"], "refine": moved(more["params"]["refine"])}}
    assert np.abs(refined.apply(away, x, t, {})[0] - refined.apply(both, x, t, {})[0]).max() > 1e-2


def test_frames_keep_to_themselves_and_hear_their_level(head):
    tokens, x, level, _ = inputs((1, 2, 2))
    before = head(tokens, x, level)
    for changed in (
        (tokens, x.at[:, 1].add(1.0), level),
        (tokens.at[:, 1].add(1.0), x, level),
        (tokens, x, level.at[:, 1].add(1.0)),
    ):
        off = np.abs(head(*changed) - before).max((0, 2, 3, 4))
        np.testing.assert_array_equal(off > 1e-4, [False, True, False])


def test_every_place_is_alike():
    """What moves by a patch is drawn the same a patch further on, where neither reaches the border's zeros."""
    head = Refine(width=8, blocks=1)  # sees 4 latents each way
    keys = jax.random.split(jax.random.key(3), 3)
    tokens, x = jax.random.normal(keys[0], (1, 1, 10, 10, D)), jax.random.normal(keys[1], (1, 1, 20, 20, C))
    level = jax.random.normal(keys[2], (1, 1, D))
    params = moved(head.init(jax.random.key(0), tokens, x, level, (1, 2, 2)))
    run = jax.jit(lambda tokens, x: head.apply(params, tokens, x, level, (1, 2, 2)))
    here = run(tokens, x)
    for axis in (2, 3):
        there = jnp.roll(run(jnp.roll(tokens, 1, axis), jnp.roll(x, 2, axis)), -2, axis)
        inner = (slice(None), slice(None), slice(6, 14), slice(6, 14))
        np.testing.assert_allclose(there[inner], here[inner], atol=1e-5)
        assert np.abs(there - here).max() > 1e-2  # the border is another matter


@pytest.mark.parametrize("patch", [(1, 1, 1), (3, 2, 4)])
def test_any_patch(patch):
    args = inputs(patch)
    head = Refine(width=8, blocks=1)
    params = moved(head.init(jax.random.key(0), *args))
    out = head.apply(params, *args)
    assert out.shape == args[1].shape and np.abs(out).max() > 1e-2
