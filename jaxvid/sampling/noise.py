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

from jaxvid.diffusion.common_noise import CommonNoise
from jaxvid.types import Array, InputError

# purposes: where a video starts from; what stochastic solvers add; what given frames are shown with
INITIAL, STEP, SHOWN = 0, 1, 2
COMMON = 0x7FFF_FFFF  # in place of a frame's number: the noise that frames have in common


def seed_keys(seeds: Sequence[int] | Array) -> Array:
    """One typed random key for each seed: keys[B]."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def fold(keys: Array, number: int | Array) -> Array:
    """`fold_in` for keys[B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def frame_noise(
    keys: Array,
    first_frame: int | Array,
    frames: int,
    shape: tuple[int, ...],
    purpose: int = INITIAL,
    common: CommonNoise | None = None,
) -> Float[jax.Array, "B F ..."]:
    """Standard normal noise float32 `[B, frames, *shape]` for the frames from `first_frame` (may be traced) on."""
    numbers = jnp.asarray(first_frame, jnp.int32) + jnp.arange(frames, dtype=jnp.int32)
    return numbered_noise(keys, numbers, shape, purpose, common)


def numbered_noise(
    keys: Array,
    numbers: Array,
    shape: tuple[int, ...],
    purpose: int = INITIAL,
    common: CommonNoise | None = None,
) -> Float[jax.Array, "B F ..."]:
    """Standard normal noise float32 `[B, F, *shape]`, that of the frames `numbers` int32 [F] (may be traced, may repeat).

    common: what frames' noise has in common (`Process.common`); None: nothing.
    """

    def draw(key: Array) -> Array:
        key = jax.random.fold_in(key, purpose)
        own = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), shape, jnp.float32))(numbers)
        return own if common is None else common.mix(own, jax.random.fold_in(key, COMMON), numbers)

    return jax.vmap(draw)(keys)


def mixed_noise(past: Array, fresh: Array, a: float) -> Array:
    """Unit noise that is correlated with `past` by a / sqrt(1 + a^2): Reuse-and-Diffuse's and Ca2-VDM's mixture.

    a = 4 keeps 0.970 of the past and adds 0.243 of the fresh noise.

    Ref: Gu et al., Reuse and Diffuse, arXiv 2309.03549; Gao et al., Ca2-VDM, arXiv 2411.16375.
    """
    return (a * past + fresh) / (1 + a * a) ** 0.5


def low_pass(
    shape: tuple[int, int, int], space: float = 0.25, time: float = 1.0
) -> Float[jax.Array, "T H W"]:
    """A Gaussian filter over the (unshifted) frequencies of [T, H, W]: 1 at frequency 0, exp(-1/2) at `space` (`time`) of
    the highest frequency. An axis of length 1 has frequency 0 only.

    Ref: Lu et al., FreeLong, arXiv 2407.19918.
    """
    axes = [2 * jnp.fft.fftfreq(n) / d for n, d in zip(shape, (time, space, space), strict=True)]
    t, y, x = jnp.meshgrid(*axes, indexing="ij")
    return jnp.exp(-0.5 * (t * t + y * y + x * x)).astype(jnp.float32)


def spectral_blend(low: Array, high: Array, keep: Array) -> Array:
    """`keep` [T, H, W] of `low`'s spectrum and the rest of `high`'s, both [B, T, H, W, C]; float32 inside."""
    transform = lambda x: jnp.fft.fftn(x.astype(jnp.float32), axes=(1, 2, 3))
    keep = keep[None, ..., None]
    spectrum = keep * transform(low) + (1 - keep) * transform(high)
    return jnp.fft.ifftn(spectrum, axes=(1, 2, 3)).real.astype(low.dtype)


def coherent_tail(last: Array, fresh: Array, space: float = 0.25, renormalise: bool = True) -> Array:
    """Noise for the frame that enters a queue: the low frequencies of the frame before it, the rest fresh.

    `last` [B, 1, H, W, C] is the noisiest frame of the queue. The authors first noise it once more up to the highest
    level, which for a flow would forget all of it (alpha(1) = 0); it is all but noise already, so it is taken as it is,
    at unit variance. Mixing two unit noises so deflates the variance (0.95 of the deviation at 16x40x64 frames);
    `renormalise` undoes that.

    Ref: Chen et al., Ouroboros-Diffusion, arXiv 2501.09019.
    """
    keep = low_pass((1, *last.shape[2:4]), space)
    axes = tuple(range(1, last.ndim))
    last = last * jax.lax.rsqrt(jnp.maximum(jnp.mean(last * last, axes, keepdims=True), 1e-12))
    mixed = spectral_blend(last, fresh, keep)
    return mixed / mixed_deviation(keep) if renormalise else mixed


def mixed_deviation(keep: Array) -> Array:
    """The standard deviation of a `spectral_blend` of two independent unit noises."""
    return jnp.sqrt(jnp.mean(keep**2 + (1 - keep) ** 2))


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
