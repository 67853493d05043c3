# SPDX-License-Identifier: Apache-2.0
"""A student's own roll-out, as training sees it: few steps, block after block, each behind what the student itself made.

This is `rollout.next_chunk` with the solver `renoise`, cut short: all blocks leave the ladder of noise levels at the same
step `last`, drawn anew for every batch, and gradients flow through that step alone. The steps before it, and the clean pass
that writes the memory, are computed and not differentiated, so that memory and time of a training step stay those of one
call for each block.

Ref: Huang et al., Self Forcing, arXiv 2506.08009 (algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvid.diffusion.common_noise import CommonNoise
from jaxvid.diffusion.schedule import RectifiedFlow, Schedule, over_frames
from jaxvid.sampling.noise import STEP, fold, frame_noise
from jaxvid.types import Array, Denoiser, InputError, Memory


class Voices(NamedTuple):
    """The student as it speaks on one block of frames."""

    learns: Denoiser  # through which gradients flow
    frozen: Denoiser  # the same without gradients
    writes: Denoiser  # without gradients, told that all frames are clean


def own_rollout(
    voices: Callable[[Array], Voices],
    times: Array,
    last: int | Array,
    keys: Array,
    value: Array,
    given: Array,
    *,
    block: int | None = None,
    memory: Memory = None,
    schedule: Schedule = RectifiedFlow(),
    common: CommonNoise | None = None,
) -> Array:
    """A video [B, T, ...] made from noise, float32.

    voices   of the block whose first frame is an int32 [] that may be traced
    times    [S + 2] the student's ladder, `plan.time_table`; `last` in 1..S (may be traced): where gradients flow
    keys     random keys [B]: noise is that of `frame_noise` with `common`, as in sampling
    value    [B, T, ...], given frames where `given` [B, T]; they are shown clean and come out as they are
    block    frames made together (None: all); with a `memory` each block is behind those before it
    """
    frames = value.shape[1]
    block = frames if block is None else block
    if frames % block or (block < frames and memory is None):
        raise InputError(
            f"{frames} latent frames in blocks of {block}: blocks must divide them, and need a memory of the past"
        )
    times, shape = jnp.asarray(times, jnp.float32), value.shape[2:]

    def one(memory: Memory, first: Array) -> tuple[Memory, Array]:
        voice = voices(first)
        cut = lambda a: jax.lax.dynamic_slice_in_dim(a, first, block, 1)
        held, clean = cut(given), cut(value).astype(jnp.float32)
        over = over_frames(held, clean)

        def ask(denoise: Denoiser, x: Array, level: Array) -> Array:
            t = jnp.where(held, 0, times[level])
            return jnp.where(over, clean, denoise(jnp.where(over, clean, x), t, memory)[0])

        def down(level: Array, x: Array) -> Array:
            eps = frame_noise(fold(fold(keys, STEP), level - 1), first, block, shape, common=common)
            a, s = schedule.alpha(times[level + 1]), schedule.sigma(times[level + 1])
            return a * ask(voice.frozen, x, level) + s * eps

        x = jax.lax.fori_loop(1, last, down, frame_noise(keys, first, block, shape, common=common))
        x0 = ask(voice.learns, jax.lax.stop_gradient(x), jnp.asarray(last))
        if memory is not None:
            memory = voice.writes(jax.lax.stop_gradient(x0), jnp.zeros(held.shape, jnp.float32), memory)[1]
            memory = jax.lax.stop_gradient(memory)
        return memory, x0

    made = jax.lax.scan(one, memory, jnp.arange(0, frames, block, dtype=jnp.int32))[1]
    return jnp.moveaxis(made, 0, 1).reshape(value.shape)
