# SPDX-License-Identifier: Apache-2.0
"""The sampling loop, written once: a `lax.scan` over the rows of a level plan.

`init` and `rows` are its two halves: a program that shows progress or can be cancelled calls one compiled `rows` on
slices of the plan, with the same result bit for bit as `sample`, which runs all of it.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxvid.diffusion.common_noise import CommonNoise
from jaxvid.diffusion.schedule import over_frames
from jaxvid.sampling import plan as plans
from jaxvid.sampling.noise import STEP, fold, frame_noise
from jaxvid.sampling.plan import LevelPlan
from jaxvid.sampling.solvers import Solver
from jaxvid.types import Array, Denoiser, InputError, Memory


@flax.struct.dataclass
class Carry:
    """What goes from row to row. Shapes and dtypes never change."""

    x: Array  # float [B, F, ...] the video, each frame at its own level
    state: Any  # the solver's
    row: Array  # int32 [], rows done
    bad: Array  # int32 [B], the first row that left a sample with a NaN or an infinity; -1: none


def init(solver: Solver, x: Array, given: Array | None = None, value: Array | None = None) -> Carry:
    """Before the first row. `x[B, F, ...]` is noise; frames where `given[B, F]` become `value[B, F, ...]`."""
    x = _overlay(x, given, value)
    return Carry(x, solver.init(x), jnp.zeros((), jnp.int32), jnp.full(x.shape[0], -1, jnp.int32))


def rows(
    denoise: Denoiser,
    solver: Solver,
    times: Array,
    carry: Carry,
    k: Array,
    update: Array,
    *,
    memory: Memory = None,
    given: Array | None = None,
    value: Array | None = None,
    keys: Array | None = None,
    first_frame: int | Array = 0,
    common: CommonNoise | None = None,
) -> Carry:
    """Follows rows `k[n, F]`, `update[n, F]` of a plan; all arguments but the first two may be traced.

    Args:
      times: [S + 2] the time table
      memory: read by the denoiser in every call and never written
      given: bool [B, F]: these frames of `value` are shown to the model clean, at t = 0, whatever the plan says, and
        come out bit for bit
      keys: random keys [B], for stochastic solvers; `first_frame` is the place of x's first frame in the video
      common: what the noise of frames has in common, as in x's own (`Process.common`)
    """
    times = jnp.asarray(times, carry.x.dtype)
    last = times.shape[0] - 1

    def guess(x: Array, t: Array) -> Array:
        t = t if given is None else jnp.where(given, 0, t)
        return denoise(_overlay(x, given, value), t, memory)[0].astype(carry.x.dtype)

    def one(carry: Carry, row: tuple[Array, Array]) -> tuple[Carry, None]:
        index, moves = row
        t, t_next = (times[jnp.clip(i, 0, last)] for i in (index, index + moves))
        t, t_next = (jnp.broadcast_to(u, carry.x.shape[:2]) for u in (t[None], t_next[None]))
        if given is not None:
            t, t_next = jnp.where(given, 0, t), jnp.where(given, 0, t_next)

        def noise() -> Array:
            if keys is None:
                raise InputError("this solver adds noise; pass keys[B] to sample with it")
            shape = carry.x.shape
            drawn = fold(fold(keys, STEP), carry.row)
            return frame_noise(drawn, first_frame, shape[1], shape[2:], common=common)

        x, state = solver.step(guess, carry.x, t, t_next, carry.state, noise)
        x = _overlay(x, given, value)
        finite = jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
        bad = jnp.where((carry.bad < 0) & ~finite, carry.row, carry.bad)
        return Carry(x, state, carry.row + 1, bad), None

    return jax.lax.scan(one, carry, (jnp.asarray(k, jnp.int32), jnp.asarray(update, jnp.int32)))[0]


def sample(
    denoise: Denoiser,
    solver: Solver,
    plan: LevelPlan,
    times: Array,
    x: Array,
    *,
    memory: Memory = None,
    given: Array | None = None,
    value: Array | None = None,
    keys: Array | None = None,
    first_frame: int | Array = 0,
    common: CommonNoise | None = None,
) -> Array:
    """The whole of a plan: from noise `x[B, F, ...]` to a clean video. See `rows` for the arguments."""
    plans.check(plan, len(times) - 2, x.shape[1])
    carry = init(solver, x, given, value)
    options: dict[str, Any] = dict(
        memory=memory, given=given, value=value, keys=keys, first_frame=first_frame, common=common
    )
    return rows(denoise, solver, times, carry, plan.k, plan.update, **options).x


def _overlay(x: Array, given: Array | None, value: Array | None) -> Array:
    if (given is None) != (value is None):
        raise InputError("given and value go together: which frames are given, and what they are")
    return x if given is None else jnp.where(over_frames(given, x), jnp.asarray(value, x.dtype), x)
