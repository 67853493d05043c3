# SPDX-License-Identifier: Apache-2.0
"""Noise that belongs to a seed and a frame, and to nothing else.

Each frame's noise is drawn from `fold_in(fold_in(key, purpose), frame)`, frame being its place in the whole video. So
it is the same bit for bit whether a video is made alone or in a batch, in one piece or in chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxvid.types import Array, InputError

INITIAL, STEP = 0, 1  # purposes: where a video starts from; what stochastic solvers add


def seed_keys(seeds: Sequence[int] | Array) -> Array:
    """One typed random key for each seed: keys[B]."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def fold(keys: Array, number: int | Array) -> Array:
    """`fold_in` for keys[B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def frame_noise(
    keys: Array, first_frame: int | Array, frames: int, shape: tuple[int, ...], purpose: int = INITIAL
) -> Float[jax.Array, "B F ..."]:
    """Standard normal noise float32 [B, frames, *shape] for the frames from `first_frame` (may be traced) on."""
    numbers = jnp.asarray(first_frame, jnp.int32) + jnp.arange(frames, dtype=jnp.int32)

    def draw(key: Array) -> Array:
        key = jax.random.fold_in(key, purpose)
        return jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), shape, jnp.float32))(numbers)

    return jax.vmap(draw)(keys)


def freenoise_indices(key: Array, frames: int, window: int, stride: int) -> Int[jax.Array, " F"]:
    """Which of `window` noise frames each frame of a long video takes: FreeNoise's local shuffle, int32 [frames].

    The first `window` frames are themselves; each later group of `stride` frames takes, in an order of its own, what
    the group `window` frames before it took. A window that starts at a multiple of `stride` holds each noise once.

    Ref: Qiu et al., FreeNoise, arXiv 2310.15169.
    """
    if not 1 <= stride <= window or frames < 1:
        raise InputError(
            f"freenoise frames={frames}, window={window}, stride={stride}: wanted 1 <= stride <= window"
        )
    groups = max(-(-(frames - window) // stride), 0)
    index = jnp.arange(window + groups * stride, dtype=jnp.int32)

    def shuffle(group: Array, index: Array) -> Array:
        source = jax.lax.dynamic_slice(index, (group * stride,), (stride,))
        source = jax.random.permutation(jax.random.fold_in(key, group), source)
        return jax.lax.dynamic_update_slice(index, source, (window + group * stride,))

    return jax.lax.fori_loop(0, groups, shuffle, index)[:frames]
