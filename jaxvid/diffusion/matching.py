# SPDX-License-Identifier: Apache-2.0
"""Losses that teach few-step students: agreement along a trajectory, and agreement of distributions.

    consistency     f(x_t, t) = f(x_s, s) for x_s on the teacher's trajectory through x_t, f(x_0, 0) = x_0
    distribution    what a student makes is moved along (real - fake), the difference of two guesses of the clean video from
                    its own, noised video: that of a model of the data, and that of a model of what the student makes

All arrays are videos [B, T, ...]; losses are told which frames count.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from jaxvid.types import Array


def matching_gradient(x: Array, real: Array, fake: Array, scored: Bool[jax.Array, "B T"]) -> Array:
    """`(fake - real) / mean |x - real|`, the mean over a video's scored frames; 0 on the others.

    Zero where both guesses are the same: the student's videos are then distributed as the data.

    Ref: Yin et al., DMD, arXiv 2311.18828 (equations 7 and 8); CausVid, arXiv 2412.07772.
    """
    inside = jnp.broadcast_to(scored.reshape(*scored.shape, *(1,) * (x.ndim - 2)), x.shape)
    axes = tuple(range(1, x.ndim))
    count = jnp.maximum(jnp.sum(inside, axes, keepdims=True), 1)
    size = jnp.sum(jnp.where(inside, jnp.abs(x - real), 0), axes, keepdims=True) / count
    gradient = (fake - real) / jnp.maximum(size, 1e-8)
    return jnp.where(inside & jnp.isfinite(gradient), gradient, 0)


def matching_loss(x: Array, real: Array, fake: Array, scored: Bool[jax.Array, "B T"]) -> Array:
    """A scalar whose gradient in `x` is `matching_gradient` over the number of scored entries.

    Nothing flows into the guesses.
    """
    gradient = jax.lax.stop_gradient(matching_gradient(x, real, fake, scored))
    goal = jax.lax.stop_gradient(x) - gradient
    inside = scored.reshape(*scored.shape, *(1,) * (x.ndim - 2))
    # chosen before it is squared: frames that do not count may hold anything, and so may their gradient
    total = jnp.sum(jnp.square(jnp.where(inside, x - goal, 0)))
    return 0.5 * total / jnp.maximum(jnp.sum(jnp.broadcast_to(inside, x.shape)), 1)


def pseudo_huber(difference: Array, corner: float) -> Array:
    """`sqrt(d^2 + c^2) - c`, elementwise: `d^2 / 2c` near zero, `|d|` far away.

    Ref: Song & Dhariwal, Improved Consistency Training, arXiv 2310.14189.
    """
    return jnp.sqrt(jnp.square(difference) + corner**2) - corner
