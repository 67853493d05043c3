# SPDX-License-Identifier: Apache-2.0
"""Noise of which neighbouring frames hold a part in common."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxvid.types import Array, InputError


@dataclasses.dataclass(frozen=True)
class CommonNoise:
    """Each frame's noise is `share` (of its variance) of a noise that drifts, and else its own.

    Neighbouring frames of a video hold nearly the same thing, so a network that starts from nearly the same noise in
    them places that thing alike. The drift goes from one independent draw to the next every `every` latent frames along
    a quarter of a circle, which keeps its variance 1; so what is common depends on a frame's number only, as all noise
    here does, and a video of any length can be made in pieces. A model must be trained on the noise it is sampled with.

    Ref: Ge et al., Preserve Your Own Correlation (PYoCo), arXiv 2305.10474, whose mixed noise is `every` -> infinity.
    """

    share: float = 0.5
    every: int = 16

    def __post_init__(self):
        if not 0 <= self.share < 1:
            raise InputError(
                f"share={self.share} of the noise in common: wanted a number in [0, 1); 0.5 is usual"
            )
        if self.every < 1:
            raise InputError(f"every={self.every}: the common noise is drawn anew every 1 or more frames")

    def mix(self, own: Array, key: Array, numbers: Array) -> Float[jax.Array, "F ..."]:
        """`own` noise [F, ...] of the frames `numbers` int32 [F] (may be traced), with the common part of `key` mixed in."""
        draw = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), own.shape[1:], own.dtype))
        at = numbers.reshape(-1, *(1,) * (own.ndim - 1))
        angle = (at % self.every) * (jnp.pi / 2 / self.every)
        first = numbers // self.every
        common = jnp.cos(angle) * draw(first) + jnp.sin(angle) * draw(first + 1)
        return (1 - self.share) ** 0.5 * own + self.share**0.5 * common.astype(own.dtype)

    def clips(self, own: Array, key: Array) -> Float[jax.Array, "B T ..."]:
        """`own` noise [B, T, ...] of clips cut anywhere out of longer videos."""
        batch, frames = own.shape[:2]
        start = jax.random.randint(jax.random.fold_in(key, 0), (batch, 1), 0, self.every)
        keys = jax.random.split(jax.random.fold_in(key, 1), batch)
        return jax.vmap(self.mix)(own, keys, start + jnp.arange(frames)[None])
