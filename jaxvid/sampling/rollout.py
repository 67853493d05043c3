# SPDX-License-Identifier: Apache-2.0
"""Video without end: chunk after chunk, in constant memory and with one compiled function.

What a roll-out needs to go on is a value, `Rollout`. There are two ways to hand the past on, and both may be used:

    memory   a causal model reads its memory while a chunk is denoised; one pass over the clean chunk at t = 0 writes it
    tail     a bidirectional model (memory None) is shown the last clean latents in front of the new ones, as given
             frames at t = 0

A window, what one call denoises, has `overlap` frames of tail and the new ones behind them. The first window of a
video has no past: its tail frames are not given but made as well (a traced mask, so that it is not compiled twice),
hence the first call brings `overlap` frames more than the others.

Ref: overlap: Chen et al., SkyReels-V2, arXiv 2504.13074; clean pass: Gao et al., Ca2-VDM, arXiv 2411.16375.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax.numpy as jnp

from jaxvid.diffusion.common_noise import CommonNoise
from jaxvid.diffusion.schedule import over_frames
from jaxvid.sampling.noise import frame_noise
from jaxvid.sampling.sample import init, rows
from jaxvid.sampling.solvers import Solver
from jaxvid.types import Array, Denoiser, InputError, Memory


@flax.struct.dataclass
class Rollout:
    """All that a long video needs to go on; the same shapes and dtypes from the first chunk to the last."""

    memory: Memory  # the model's, None for a bidirectional one
    tail: Array  # float32 [B, overlap, H, W, C], the last clean latents; overlap may be 0
    frame: Array  # int32 [], how many latent frames there are so far
    keys: Array  # random keys [B]


def begin(keys: Array, frame_shape: tuple[int, ...], *, memory: Memory = None, overlap: int = 0) -> Rollout:
    """A roll-out of nothing yet. `frame_shape` is that of a latent frame, (H, W, C)."""
    tail = jnp.zeros((keys.shape[0], overlap, *frame_shape), jnp.float32)
    return Rollout(memory, tail, jnp.zeros((), jnp.int32), keys)


def append(rollout: Rollout, denoise: Denoiser, latents: Array) -> Rollout:
    """Goes on from clean latents [B, n, H, W, C] that came from elsewhere (a clip to be extended).

    With a memory `denoise` is called once on them at t = 0. Without one only the tail matters, and the first call must
    bring at least `overlap` frames.
    """
    overlap, n = rollout.tail.shape[1], latents.shape[1]
    if n < overlap:
        raise InputError(
            f"{n} latent frames are fewer than the overlap of {overlap}; give more, or use a smaller overlap"
        )
    return _commit(rollout, denoise, jnp.asarray(latents, jnp.float32), rollout.frame + n)


def window_start(rollout: Rollout) -> Array:
    """Place in the video of the next window's first frame, int32 []: captions and positions are looked up by it."""
    return jnp.maximum(rollout.frame - rollout.tail.shape[1], 0)


def window_given(rollout: Rollout, frames: int, given: Array | None = None) -> Array:
    """Which frames of the next window are given, bool [B, frames]: the tail, unless the video starts here, and `given`.

    It is what a model with a learned flag is told as `cond['given']`.
    """
    batch, overlap = rollout.tail.shape[:2]
    if frames <= overlap:
        raise InputError(
            f"a window of {frames} latent frames with an overlap of {overlap} makes nothing; use a longer one"
        )
    tail = jnp.broadcast_to((jnp.arange(frames) < overlap)[None] & (rollout.frame > 0), (batch, frames))
    return tail if given is None else tail | given


def next_chunk(
    rollout: Rollout,
    denoise: Denoiser,
    solver: Solver,
    times: Array,
    k: Array,
    update: Array,
    *,
    given: Array | None = None,
    value: Array | None = None,
    clean: Denoiser | None = None,
    common: CommonNoise | None = None,
) -> tuple[Rollout, Array, Array]:
    """One window of the video: (rollout, latents float32 [B, F, H, W, C], bad int32 [B]).

    `k[R, F]`, `update[R, F]` is the plan of a window, F = overlap + new frames, with the tail's columns as if they
    were to be made (`plan.together(steps, F)`). The latents are the whole window; but for the first, its leading
    `overlap` frames are the tail again, bit for bit. `given[B, F]` and `value[B, F, ...]` add given frames. `bad` is
    the first row that was not finite, -1 if all were.

    `denoise` knows the captions of this window's frames, those from `window_start(rollout)` on, and, if its model has
    the flag, `window_given`. `clean` makes the pass that writes the memory (flags all True); None: `denoise` does.
    `common` is what the noise of frames has in common (`Process.common`).
    """
    start = open_window(rollout, k.shape[1], given, value, common)
    held = {"given": start.given, "value": start.value}
    carry = rows(
        denoise,
        solver,
        times,
        init(solver, start.noise, **held),
        k,
        update,
        memory=rollout.memory,
        keys=rollout.keys,
        first_frame=window_start(rollout),
        common=common,
        **held,
    )
    return close_window(rollout, denoise if clean is None else clean, carry.x), carry.x, carry.bad


class Window(NamedTuple):
    """Where a window starts from."""

    noise: Array  # float32 [B, F, H, W, C]
    given: Array  # bool [B, F]
    value: Array  # float32 [B, F, H, W, C], of which only given frames matter


def open_window(
    rollout: Rollout,
    frames: int,
    given: Array | None = None,
    value: Array | None = None,
    common: CommonNoise | None = None,
) -> Window:
    """The start of the next window.

    With `sample.init`, slices of `sample.rows` and `close_window` this is `next_chunk` in steps that can be watched.
    """
    overlap, *shape = rollout.tail.shape[1:]
    noise = frame_noise(rollout.keys, window_start(rollout), frames, tuple(shape), common=common)
    tail = jnp.pad(rollout.tail, [(0, 0), (0, frames - overlap)] + [(0, 0)] * len(shape))
    if (given is None) != (value is None):
        raise InputError("given and value go together: which frames are given, and what they are")
    if value is not None:
        tail = jnp.where(
            over_frames(window_given(rollout, frames), tail), tail, jnp.asarray(value, jnp.float32)
        )
    return Window(noise, window_given(rollout, frames, given), tail)


def close_window(rollout: Rollout, clean: Denoiser, latents: Array) -> Rollout:
    """Takes a finished window over into the past; `clean` writes the memory, if there is one."""
    return _commit(rollout, clean, latents, window_start(rollout) + latents.shape[1])


def _commit(rollout: Rollout, denoise: Denoiser, latents: Array, frame: Array) -> Rollout:
    overlap, memory = rollout.tail.shape[1], rollout.memory
    if memory is not None:
        if overlap:
            raise InputError(
                f"overlap={overlap} with a memory would show the model the same frames twice; use overlap=0"
            )
        _, memory = denoise(latents, jnp.zeros(latents.shape[:2], jnp.float32), memory)
    return Rollout(memory, latents[:, latents.shape[1] - overlap :], frame.astype(jnp.int32), rollout.keys)
