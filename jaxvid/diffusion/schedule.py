# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: how much video and how much noise there is at level t.

    x_t = alpha(t) x0 + sigma(t) eps        t in [0, 1]: 0 is clean, 1 is noise

A schedule is a frozen dataclass with `alpha(t)` and `sigma(t)`, elementwise in `t` and exact at both ends:
alpha(0) = sigma(1) = 1, sigma(0) = alpha(1) = 0.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxvid.types import Array, InputError


@runtime_checkable
class Schedule(Protocol):
    """Elementwise functions of the noise level, any shape."""

    def alpha(self, t: Array) -> Array: ...

    def sigma(self, t: Array) -> Array: ...


def shifted(t, shift: float):
    """Moves levels towards the noise (`shift` > 1): `shift t / (1 + (shift - 1) t)`; 0 and 1 stay exactly.

    Ref: Esser et al., Scaling Rectified Flow Transformers, arXiv 2403.03206 (section 5.3.2).
    """
    return shift * t / (1 + (shift - 1) * t)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """The straight line between video and noise: alpha = 1 - u, sigma = u, where u is `t` moved by `shift`.

    Leave `shift` at 1 where the level sampler or the time table is shifted already, or it counts twice.

    Ref: Liu et al., Flow Straight and Fast, arXiv 2209.03003; Lipman et al., arXiv 2210.02747.
    """

    shift: float = 1.0

    def __post_init__(self):
        if not self.shift > 0:
            raise InputError(
                f"RectifiedFlow(shift={self.shift}): shift must be positive; 1 leaves levels as they are"
            )

    def sigma(self, t):
        return t if self.shift == 1 else shifted(t, self.shift)

    def alpha(self, t):
        return 1 - self.sigma(t)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """The quarter circle, alpha^2 + sigma^2 = 1.

    Ref: Nichol & Dhariwal, Improved DDPM, arXiv 2102.09672 (without their offset).
    """

    def sigma(self, t):
        return jnp.sin(jnp.pi / 2 * t)

    def alpha(self, t):
        return jnp.sin(jnp.pi / 2 * (1 - t))  # a cosine, but exactly 0 at t = 1


def over_frames(per_frame: Array, x: Array) -> Array:
    """A number for each frame [B, T], made to broadcast against `x[B, T, ...]`."""
    return jnp.reshape(per_frame, per_frame.shape + (1,) * (x.ndim - per_frame.ndim))


def add_noise(schedule: Schedule, x0: Array, eps: Array, t: Float[jax.Array, "B T"]) -> Array:
    """`x_t` for a video [B, T, ...] whose frames have their own levels; at t = 0 the video itself, bit for bit."""
    a, s = over_frames(schedule.alpha(t), x0), over_frames(schedule.sigma(t), x0)
    return jnp.where(over_frames(t == 0, x0), x0, a * x0 + s * eps)


def rates(schedule: Schedule, t: Array) -> tuple[Array, Array]:
    """The derivatives (alpha'(t), sigma'(t)), elementwise."""
    one = jnp.ones_like(t)
    return jax.jvp(schedule.alpha, (t,), (one,))[1], jax.jvp(schedule.sigma, (t,), (one,))[1]
