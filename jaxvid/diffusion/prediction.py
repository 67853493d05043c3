# SPDX-License-Identifier: Apache-2.0
"""What a network may predict, and the way from there to a clean video.

With x_t = alpha x0 + sigma eps:

    kind    target                  x0 from it
    x0      x0                      out
    eps     eps                     (x_t - sigma out) / alpha
    flow    eps - x0                (x_t - sigma out) / (alpha + sigma)
    v       alpha eps - sigma x0    (alpha x_t - sigma out) / (alpha^2 + sigma^2)

All but `eps` are well-posed at every level. Noise says nothing about the video at t = 1, so there `eps` divides by
a floor: finite, but large; it is meant for schedules and tables that stop short of 1.

Ref: eps Ho et al., arXiv 2006.11239; v Salimans & Ho, arXiv 2202.00512; flow Lipman et al., arXiv 2210.02747.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxvid.diffusion.schedule import Schedule, over_frames
from jaxvid.types import Array, InputError

KINDS = ("flow", "eps", "v", "x0")
ALPHA_FLOOR = 1e-3


def check_kind(kind: str, what: str = "prediction") -> str:
    """`kind` itself, or an InputError that lists the known ones."""
    if kind not in KINDS:
        raise InputError(f"{what}={kind!r} is not known; choose one of {', '.join(KINDS)}")
    return kind


def target(schedule: Schedule, kind: str, x0: Array, eps: Array, t: Float[jax.Array, "B T"]) -> Array:
    """What a perfect network of that kind would put out for this video [B, T, ...], noise and levels."""
    if check_kind(kind) == "x0":
        return x0
    if kind == "eps":
        return eps
    if kind == "flow":
        return eps - x0
    return over_frames(schedule.alpha(t), x0) * eps - over_frames(schedule.sigma(t), x0) * x0


def to_x0(schedule: Schedule, kind: str, x: Array, t: Float[jax.Array, "B T"], out: Array) -> Array:
    """The clean video [B, T, ...] that the network's `out` stands for, at noisy `x`. Finite at t = 0 and 1."""
    if check_kind(kind) == "x0":
        return out
    a, s = over_frames(schedule.alpha(t), x), over_frames(schedule.sigma(t), x)
    if kind == "eps":
        return (x - s * out) / jnp.maximum(a, ALPHA_FLOOR)
    if kind == "flow":
        return (x - s * out) / (a + s)
    return (a * x - s * out) / (a * a + s * s)


def error_scale(schedule: Schedule, kind: str, t: Array, floor: float) -> Array:
    """How an error in x0 grows when it is told as an error in `kind`, elementwise; sigma not below `floor`.

    For rectified flow and `flow` this is 1 / max(t, floor), the clamp that keeps an x0 network's flow loss bounded.
    """
    a, s = schedule.alpha(t), schedule.sigma(t)
    by = jnp.maximum(s, floor)
    if check_kind(kind) == "x0":
        return jnp.ones_like(s)
    if kind == "eps":
        return a / by
    if kind == "flow":
        return (a + s) / by
    return (a * a + s * s) / by
