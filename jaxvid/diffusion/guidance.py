# SPDX-License-Identifier: Apache-2.0
"""Guidance: from two denoisers, told and not told the text, to one.

A *pair* is a function (x, t, memory) -> ((x0 told, x0 not told), memory). `doubled` makes one from a network in a
single call on a batch of 2B (with memory for 2B, kept so), `two` from separate denoisers. Guided, it is a `Denoiser`.

What is combined are velocities eps - x0: c told, u not told. Plain guidance is linear in them, so it is done on x0
and divides by nothing; the others treat each frame by itself (norms over a clip would let later frames act on earlier
ones). `scale` may be traced: another one compiles nothing. Scale 1, or a frame whose level is outside of the interval,
gives the told guess bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import RectifiedFlow, Schedule, over_frames
from jaxvid.types import Array, Cond, Denoiser, Memory, Network

Pair = Callable[..., tuple[tuple[Array, Array], Memory]]


def doubled(process: Process, network: Network, cond: Cond, null: Cond | None = None) -> Pair:
    """A pair from one network call on [told; not told], 2B.

    Not told is the learned null text (`drop`), or the conditions `null` (a negative prompt, of the same shapes).
    """

    def pair(x: Array, t: Array, memory: Memory = None) -> tuple[tuple[Array, Array], Memory]:
        both = process.denoiser(network, stack_conditions(cond, null, x.shape[0]))
        x0, memory = both(jnp.concatenate([x, x]), jnp.concatenate([t, t]), memory)
        told, untold = jnp.split(x0, 2)
        return (told, untold), memory

    return pair


def stack_conditions(cond: Cond, null: Cond | None, batch: int) -> dict[str, Array]:
    """[told; not told] for 2B: what `null` does not say is as in `cond`; without it `drop` is True."""
    told = {**cond, "drop": jnp.zeros(batch, bool)}
    untold = {**cond, **(null or {}), "drop": jnp.full(batch, null is None)}
    return {name: jnp.concatenate([told[name], untold[name]]) for name in told}


def two(told: Denoiser, untold: Denoiser) -> Pair:
    """A pair from two denoisers; its memory is a pair of memories (or None)."""

    def pair(x: Array, t: Array, memory: Memory = None) -> tuple[tuple[Array, Array], Memory]:
        one, other = (None, None) if memory is None else memory
        c, one = told(x, t, one)
        u, other = untold(x, t, other)
        return (c, u), None if memory is None else (one, other)

    return pair


def classifier_free(pair: Pair, scale: float | Array, interval: tuple[float, float] = (0.0, 1.0)) -> Denoiser:
    """v = c + (scale - 1)(c - u) on frames with `interval[0] < t <= interval[1]`, c elsewhere.

    Ref: Ho & Salimans, arXiv 2207.12598; interval: Kynkaanniemi et al., arXiv 2404.07724.
    """

    def denoise(x: Array, t: Array, memory: Memory = None) -> tuple[Array, Memory]:
        (c, u), memory = pair(x, t, memory)
        return c + _strength(scale, interval, t, c) * (c - u), memory

    return denoise


def apg(
    pair: Pair,
    scale: float | Array,
    interval: tuple[float, float] = (0.0, 1.0),
    *,
    parallel: float = 0.0,
    largest: float = 15.0,
    schedule: Schedule = RectifiedFlow(),
) -> Denoiser:
    """Adaptive projected guidance: the part of c - u along c, which over-saturates, is scaled by `parallel`.

    Its norm per frame is first cut to `largest`. v = c + (scale - 1)(across + parallel * along): parallel 1 and
    largest infinite is `classifier_free`. The momentum of the paper, which couples rows, is left out.

    Ref: Sadat et al., arXiv 2410.02416.
    """

    def denoise(x: Array, t: Array, memory: Memory = None) -> tuple[Array, Memory]:
        (c, u), memory = pair(x, t, memory)
        ahead, back = _velocity(schedule, t, c)
        v_c, v_u = ahead(x, c), ahead(x, u)
        return c + _strength(scale, interval, t, c) * back(project(v_c, v_c - v_u, parallel, largest)), memory

    return denoise


def cfg_zero_star(
    pair: Pair,
    scale: float | Array,
    interval: tuple[float, float] = (0.0, 1.0),
    *,
    schedule: Schedule = RectifiedFlow(),
) -> Denoiser:
    """v = a u + scale (c - a u), a = <c, u> / |u|^2 per frame: u is first brought to the length that fits c.

    Ref: Fan et al., CFG-Zero*, arXiv 2503.18886 (without its zero steps, which are a plan's matter).
    """

    def denoise(x: Array, t: Array, memory: Memory = None) -> tuple[Array, Memory]:
        (c, u), memory = pair(x, t, memory)
        ahead, back = _velocity(schedule, t, c)
        v_c, v_u = ahead(x, c), ahead(x, u)
        base = fitted(v_c, v_u) * v_u
        # c told plus (scale - 1)(c - base) is base + scale (c - base)
        return c + _strength(scale, interval, t, c) * back(v_c - base), memory

    return denoise


def project(c: Array, difference: Array, parallel: float, largest: float) -> Array:
    """`difference` [B, F, ...] with its frames' norms cut to `largest` and its part along c scaled by `parallel`."""
    size = jnp.sqrt(_dot(difference, difference))
    difference = difference * jnp.minimum(1, largest / jnp.maximum(size, 1e-12))
    along = _dot(difference, c) / jnp.maximum(_dot(c, c), 1e-12) * c
    return difference - along + parallel * along


def fitted(c: Array, u: Array) -> Array:
    """The multiple of u nearest to c, per frame: [B, F, 1, ..]."""
    return _dot(c, u) / jnp.maximum(_dot(u, u), 1e-12)


def _velocity(schedule: Schedule, t: Array, x: Array) -> tuple[Callable, Callable]:
    """(x, x0) -> eps - x0, and from a change of that to the change of x0; clean frames divide by 1, and do not move."""
    a, s = (over_frames(f(t), x).astype(x.dtype) for f in (schedule.alpha, schedule.sigma))
    by = jnp.where(s > 0, s, 1)
    return lambda x, x0: (x - (a + s) * x0) / by, lambda change: -s / (a + s) * change


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=tuple(range(2, a.ndim)), keepdims=True)


def _strength(scale: float | Array, interval: tuple[float, float], t: Array, x: Array) -> Array:
    """scale - 1 on frames inside the interval, else 0; `scale` is a number or [B]."""
    scale = jnp.asarray(scale, x.dtype)
    scale = scale[:, None] if scale.ndim == 1 else scale
    inside = (t > interval[0]) & (t <= interval[1])
    return over_frames(jnp.where(inside, jnp.broadcast_to(scale - 1, t.shape), 0), x)
