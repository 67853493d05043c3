# SPDX-License-Identifier: Apache-2.0
"""AdamW as diffusion transformers with scans like it, and learning-rate schedules.

A schedule is a function ``step -> rate``; the functions here make one from numbers, so that configs can write them
down: ``call(adamw, rate=call(cosine, peak=3e-4, warmup=500, steps=20_000))``.

Ref: AdamW, arXiv 1711.05101. Warm-up, stable, decay: MiniCPM, arXiv 2404.06395.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvid.types import InputError, Params

Rate = Callable[[Any], Any]

# Only matrices of weights decay. Pulling A_log, D, dt_bias, norms, biases, embeddings or tables of modulation to zero
# changes what the network is, not how smooth it is.
_DECAYS = re.compile(r"(?:.*/)?kernel")


class Optimizer(NamedTuple):
    """An optax transformation (``init``, ``update``) and its learning rate at a step."""

    init: Callable[..., Any]
    update: Callable[..., Any]
    rate: Rate


def constant(peak: float, warmup: int = 0) -> Rate:
    """A straight line from 0 to ``peak`` in ``warmup`` steps, then ``peak``."""
    _check(peak=peak, warmup=warmup)
    return lambda step: peak * _ramp(step, warmup)


def cosine(peak: float, steps: int, warmup: int = 0, end: float = 0.0) -> Rate:
    """Warm-up, then half a cosine down to ``end * peak`` at ``steps``."""
    _check(peak=peak, warmup=warmup, steps=steps)

    def rate(step: Any) -> Any:
        way = _way(step, warmup, steps)
        return peak * _ramp(step, warmup) * (end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * way)))

    return rate


def linear(peak: float, steps: int, warmup: int = 0, end: float = 0.0) -> Rate:
    """Warm-up, then a straight line down to ``end * peak`` at ``steps``."""
    _check(peak=peak, warmup=warmup, steps=steps)
    return lambda step: peak * _ramp(step, warmup) * (1 + (end - 1) * _way(step, warmup, steps))


def wsd(peak: float, steps: int, warmup: int = 0, decay: float = 0.2, end: float = 0.0) -> Rate:
    """Warm-up, stay, and over the last ``decay`` (a share of ``steps``) a straight line down to ``end * peak``."""
    _check(peak=peak, warmup=warmup, steps=steps)
    if not 0 < decay <= 1:
        raise InputError(f"decay={decay} is not a share of the steps; give more than 0 and at most 1")
    start = max(warmup, round(steps * (1 - decay)))
    return lambda step: peak * _ramp(step, warmup) * (1 + (end - 1) * _way(step, start, steps))


def decays(params: Params) -> Any:
    """Which leaves decay: a tree of bool. Leaves named ``kernel`` do."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(_DECAYS.fullmatch("/".join(str(getattr(p, "key", p)) for p in path))), params
    )


def adamw(
    rate: Rate | float,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
    decay: float = 0.01,
    clip: float | None = 1.0,
) -> Optimizer:
    """AdamW: gradients clipped by their global norm, weight decay (times the rate) on kernels only."""
    if not (0 <= b1 < 1 and 0 <= b2 < 1 and eps > 0 and decay >= 0 and (clip is None or clip > 0)):
        raise InputError(
            f"adamw b1={b1} b2={b2} eps={eps} decay={decay} clip={clip}; betas in [0, 1), the rest positive"
        )
    schedule: Rate = rate if callable(rate) else constant(float(rate))
    chain = optax.chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=decay, mask=decays),
    )
    return Optimizer(chain.init, chain.update, schedule)


def parts(**optimizers: Any) -> Optimizer:
    """An optimizer for each part of the parameters, by name: ``parts(student=adamw(..), critic=adamw(..))``.

    A part whose gradient is exactly zero everywhere rests: it stays bit for bit, and so does what its optimizer remembers
    (Adam would go on by its moments). So parts can take turns. The rate that is told is that of the first one.
    """
    if not optimizers:
        raise InputError("parts of nothing; name an optimizer for each part of the parameters")

    def of(name: str) -> Callable[[Params], Any]:
        return lambda params: {
            part: jax.tree.map(lambda _, mine=part == name: mine, tree) for part, tree in params.items()
        }

    chain = optax.chain(*(optax.masked(resting(one), of(name)) for name, one in optimizers.items()))
    first = next(iter(optimizers.values()))
    return Optimizer(chain.init, chain.update, getattr(first, "rate", constant(1.0)))


def resting(inner: Any) -> optax.GradientTransformation:
    """``inner``, but a step whose gradients are all exactly zero changes neither parameters nor its state."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        moves = jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates)]).any()
        made, after = inner.update(updates, state, params)
        made = jax.tree.map(lambda u: jnp.where(moves, u, 0), made)
        return made, jax.tree.map(lambda new, old: jnp.where(moves, new, old), after, state)

    return optax.GradientTransformation(inner.init, update)


def _ramp(step: Any, warmup: int) -> Any:
    # Step 0 moves already: a first step of rate 0 would be lost.
    return (
        jnp.minimum(1.0, (jnp.asarray(step, jnp.float32) + 1) / max(warmup, 1)) if warmup else jnp.float32(1)
    )


def _way(step: Any, start: int, end: int) -> Any:
    return jnp.clip((jnp.asarray(step, jnp.float32) - start) / max(end - start, 1), 0.0, 1.0)


def _check(peak: float, warmup: int, steps: int | None = None) -> None:
    if not 0 < peak < float("inf"):
        raise InputError(f"a learning rate of {peak} cannot train; give a positive peak such as 3e-4")
    if warmup < 0 or (steps is not None and steps <= warmup):
        raise InputError(f"warmup={warmup} steps do not fit a schedule of steps={steps}; warm up for less")
