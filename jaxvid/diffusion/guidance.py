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
from jaxvid.diffusion.schedule import RectifiedFlow, Schedule, add_noise, over_frames
from jaxvid.types import Array, Cond, Denoiser, InputError, Memory, Network

Pair = Callable[..., tuple[tuple[Array, Array], Memory]]
Scheme = tuple[tuple[float, float], ...]
Interval = tuple[float | Array, float | Array]  # may be traced


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


def classifier_free(pair: Pair, scale: float | Array, interval: Interval = (0.0, 1.0)) -> Denoiser:
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
    interval: Interval = (0.0, 1.0),
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
    interval: Interval = (0.0, 1.0),
    *,
    schedule: Schedule = RectifiedFlow(),
) -> Denoiser:
    """`v = a u + scale (c - a u)`, `a = <c, u> / |u|^2` per frame: u is first brought to the length that fits c.

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


def history(network: Network, scheme: Scheme, noise: Array, schedule: Schedule = RectifiedFlow()) -> Network:
    """A network that asks `network` once for each variant of the given frames, and adds what it says by weight.

    A variant is a level at which the given frames (`cond['given']`) are shown: 0 clean, with their mark; between, noised
    and not marked; 1 nothing but noise, which hides them. All variants are one batch. `scheme` is ((level, weight), ..),
    weights summing to one: see `history_scheme`. `noise` [B, F, ...] is what given frames are noised with.
    Where nothing is given, the variants are the same and the answer is the network's.

    Ref: Song et al., History-Guided Video Diffusion (DFoT), arXiv 2502.06764.
    """
    levels, weights = zip(*scheme, strict=True)

    def call(x: Array, t: Array, cond: Cond, memory: Memory = None) -> tuple[Array, Memory]:
        given = cond.get("given")
        if given is None:
            return network(x, t, cond, memory)
        if memory is not None and len(levels) > 1:
            raise InputError(
                "history guidance shows the past anew in every call; a model that remembers it cannot"
            )
        eps = jnp.tile(noise, (x.shape[0] // noise.shape[0],) + (1,) * (x.ndim - 1)).astype(x.dtype)
        shown = [jnp.where(given, jnp.asarray(level, t.dtype), t) for level in levels]
        seen = [
            jnp.where(over_frames(given, x), add_noise(schedule, x, eps, jnp.full_like(t, level)), x)
            for level in levels
        ]
        marks = [given if level == 0 else jnp.zeros_like(given) for level in levels]
        many = {name: jnp.concatenate([value] * len(levels)) for name, value in cond.items()}
        many["given"] = jnp.concatenate(marks)
        out, memory = network(jnp.concatenate(seen), jnp.concatenate(shown), many, memory)
        parts = jnp.split(out, len(levels))
        return sum(weight * part for weight, part in zip(weights, parts, strict=True)), memory

    return call


def history_scheme(scale: float, fraction: float | None = None, shown: float = 0.0) -> Scheme:
    """((level, weight), ..) of history guidance: vanilla, or fractional with history at level `fraction` in (0, 1).

    vanilla      scale e(shown) + (1 - scale) e(1)
    fractional   e(shown) + (scale - 1) (e(fraction) - e(1))

    `shown` is above 0 where the history was itself generated (a stabilised roll-out; 0.02 is usual). Variants of equal
    level are merged and those of weight 0 left out, so that scale 1 is a single call.
    """
    if not 0 <= shown < 1 or (fraction is not None and not 0 < fraction < 1):
        raise InputError(
            f"history levels shown={shown}, fraction={fraction}: wanted 0 <= shown < 1, 0 < fraction < 1"
        )
    if fraction is None:
        return merged(((shown, float(scale)), (1.0, 1.0 - scale)))
    return merged(((shown, 1.0), (fraction, scale - 1.0), (1.0, 1.0 - scale)))


def merged(scheme: Scheme) -> Scheme:
    """The same guidance with one variant for each level, and none of weight 0."""
    weights: dict[float, float] = {}
    for level, weight in scheme:
        weights[level] = weights.get(level, 0.0) + weight
    return tuple((level, weight) for level, weight in weights.items() if weight)


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


def _strength(scale: float | Array, interval: Interval, t: Array, x: Array) -> Array:
    """scale - 1 on frames inside the interval, else 0; `scale` is a number or [B]."""
    scale = jnp.asarray(scale, x.dtype)
    scale = scale[:, None] if scale.ndim == 1 else scale
    inside = (t > interval[0]) & (t <= interval[1])
    return over_frames(jnp.where(inside, jnp.broadcast_to(scale - 1, t.shape), 0), x)
