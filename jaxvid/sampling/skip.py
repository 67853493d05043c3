# SPDX-License-Identifier: Apache-2.0
"""Calls that are left out: a network's last answer is used again while its question has hardly changed.

Kept is what the network added to its input, its velocity at each frame: x0 = x - t v for rectified flow. As in TeaCache, an
indicator sums how much the input has changed from row to row (relative mean absolute difference over the frames that
move), and a call is made when the sum passes a threshold; the indicator here is the noisy video itself, which needs
nothing from inside the model, and no fitted polynomial.

Always computed are the first rows, the last one, and rows in which a frame starts: it has no velocity yet.

Every video of a batch has its own sum, and takes the network's answer in its own rows only: a video is the same alone and in
a batch. The network is called where one of them needs it.

Ref: Liu et al., TeaCache, arXiv 2411.19108.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxvid.diffusion.schedule import RectifiedFlow, Schedule, over_frames
from jaxvid.sampling.solvers import Solver
from jaxvid.types import Array, InputError


@flax.struct.dataclass
class Kept:
    """What goes from row to row."""

    inner: Any  # the solver's own state
    velocity: Array  # [B, F, ...] the last answer
    x: Array  # [B, F, ...] the last question, asked or not
    known: Array  # bool [B, F], frames that have a velocity
    changed: Array  # float [B], summed since the last answer
    answers: Array  # int32 [B], how many a video has taken
    calls: Array  # int32 [], how often the network was asked


def skipping(
    solver: Solver, threshold: float, schedule: Schedule = RectifiedFlow(), first: int = 1
) -> Solver:
    """`solver` with calls left out while the summed change is below `threshold` (0: none; 0.1 to 0.3 is usual).

    The first `first` rows are computed. For solvers that call once in a row (not Heun).
    """
    if not threshold >= 0:
        raise InputError(f"threshold={threshold}: how much change may be ignored is at least 0; 0.1 is usual")

    def init(x: Array) -> Kept:
        none = jnp.zeros(x.shape[0], jnp.int32)
        return Kept(
            solver.init(x),
            jnp.zeros_like(x),
            jnp.zeros_like(x),
            jnp.zeros(x.shape[:2], bool),
            none.astype(jnp.float32),
            none,
            jnp.zeros((), jnp.int32),
        )

    def step(guess, x: Array, t: Array, t_next: Array, kept: Kept, noise):
        after: list[Kept] = []

        def cached(x: Array, t: Array) -> Array:
            moves = t_next != t
            inner = tuple(range(1, x.ndim))
            over = lambda values: jnp.sum(jnp.where(over_frames(moves, x), jnp.abs(values), 0), inner)
            change = over(x - kept.x) / jnp.maximum(over(kept.x), 1e-12)
            changed = kept.changed + change.astype(jnp.float32)
            ends = jnp.all(~moves | (t_next == 0), 1)
            starts = jnp.any(moves & ~kept.known, 1)
            ask = starts | ends | (kept.answers < first) | (changed >= threshold)
            a, s = (over_frames(f(t), x) for f in (schedule.alpha, schedule.sigma))
            by, own = jnp.where(s > 0, s, 1), over_frames(ask[:, None], x)
            old = (x - s * kept.velocity) / (a + s)

            def compute():
                x0 = jnp.where(own, guess(x, t), old)
                return x0, jnp.where(own, (x - (a + s) * x0) / by, kept.velocity)

            x0, velocity = jax.lax.cond(jnp.any(ask), compute, lambda: (old, kept.velocity))
            after.append(
                Kept(
                    kept.inner,
                    velocity,
                    x,
                    kept.known | (moves & ask[:, None]),
                    jnp.where(ask, 0.0, changed),
                    kept.answers + ask,
                    kept.calls + jnp.any(ask),
                )
            )
            return x0

        x, inner = solver.step(cached, x, t, t_next, kept.inner, noise)
        return x, after[-1].replace(inner=inner)

    return Solver(init, step)
