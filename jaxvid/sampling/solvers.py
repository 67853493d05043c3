# SPDX-License-Identifier: Apache-2.0
"""Solvers: from a guess of the clean video at level t to the video at level t_next, every frame at its own level.

A solver is a pair. `init(x) -> state`; `step(guess, x, t, t_next, state, noise) -> (x, state)`, where

    guess(x[B,F,...], t[B,F]) -> x0      the denoiser, conditions and memory already inside
    t, t_next [B, F]                      a frame with t_next == t is not moved, and stays bit for bit
    noise() -> [B, F, ...]                standard normal, asked for by stochastic solvers only

History is kept for each frame (a frame may start late or pause), so a multistep solver is at home in any plan.
All arithmetic is in x's dtype. In terms of lambda = log(alpha / sigma) and for constant x0 the exact move is
x' = (sigma'/sigma) x + w x0 with w = alpha' - sigma' alpha / sigma: that is `move`, and what all of them build on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp

from jaxvid.diffusion.schedule import RectifiedFlow, Schedule, over_frames, rates
from jaxvid.types import Array, InputError

LEAST = 1e-12  # alpha and sigma inside logarithms


class Solver(NamedTuple):
    init: Callable
    step: Callable


def euler(schedule: Schedule = RectifiedFlow()) -> Solver:
    """First order, one call a row: Euler for rectified flow, DDIM for every schedule.

    Ref: Song et al., DDIM, arXiv 2010.02502.
    """

    def step(guess, x, t, t_next, state, noise):
        return move(schedule, x, guess(x, t), t, t_next), state

    return Solver(lambda x: (), step)


def heun(schedule: Schedule = RectifiedFlow()) -> Solver:
    """Second order, two calls a row: the trapezoid of dx/dt; the step to t = 0 is Euler's.

    Ref: Karras et al., EDM, arXiv 2206.00364 (algorithm 1).
    """

    def step(guess, x, t, t_next, state, noise):
        x0 = guess(x, t)
        ahead = move(schedule, x, x0, t, t_next)
        # Clean frames have no slope of their own (0 / 0), so they are not asked for one.
        inner = (t_next != t) & (schedule.sigma(t_next) > 0)
        slopes = _slope(schedule, x, x0, t) + _slope(schedule, ahead, guess(ahead, t_next), t_next)
        return jnp.where(over_frames(inner, x), x + over_frames(t_next - t, x) / 2 * slopes, ahead), state

    return Solver(lambda x: (), step)


@flax.struct.dataclass
class History:
    """What a multistep solver remembers of each frame's last moves."""

    x0: Array  # [B, F, ...] the guess at the last move
    t: Array  # [B, F] the level it was made at
    n: Array  # int32 [B, F] how many moves so far


def dpmpp_2m(schedule: Schedule = RectifiedFlow()) -> Solver:
    """DPM-Solver++(2M): second order, one call a row; first order where a frame has no history, and into t = 0.

    Ref: Lu et al., DPM-Solver++, arXiv 2211.01095.
    """

    def init(x):
        return History(jnp.zeros_like(x), jnp.zeros(x.shape[:2], x.dtype), jnp.zeros(x.shape[:2], jnp.int32))

    def step(guess, x, t, t_next, last, noise):
        x0 = guess(x, t)
        moved = t_next != t
        new = _predict(schedule, x, x0, t, t_next, last)
        return jnp.where(over_frames(moved, x), new, x), _remember(moved, last, x0, t)

    return Solver(init, step)


@flax.struct.dataclass
class Corrected:
    """UniPC's memory: where each frame was before its last move, and the last two guesses."""

    x: Array  # [B, F, ...] the corrected sample the last move left from
    last: History
    before: History  # the guess before the last one; its n is not used


def unipc(schedule: Schedule = RectifiedFlow()) -> Solver:
    """UniPC of order 2 (bh2): predicts as DPM-Solver++(2M), then corrects each move with the next row's guess.

    One call a row. The correction of a frame's last move would need another call and is left out.

    Ref: Zhao et al., UniPC, arXiv 2302.04867.
    """

    def init(x):
        plain = dpmpp_2m(schedule).init(x)
        return Corrected(jnp.zeros_like(x), plain, plain)

    def step(guess, x, t, t_next, state, noise):
        x0 = guess(x, t)
        moved = t_next != t
        fixed = jnp.where(over_frames(moved & (state.last.n > 0), x), _correct(schedule, x0, t, state), x)
        new = _predict(schedule, fixed, x0, t, t_next, state.last)
        keep = over_frames(moved, x)
        before = History(
            jnp.where(keep, state.last.x0, state.before.x0),
            jnp.where(moved, state.last.t, state.before.t),
            state.last.n,
        )
        state = Corrected(jnp.where(keep, fixed, state.x), _remember(moved, state.last, x0, t), before)
        return jnp.where(keep, new, x), state

    return Solver(init, step)


def ancestral(schedule: Schedule = RectifiedFlow(), eta: float = 1.0) -> Solver:
    """First order with fresh noise: `eta` = 0 is DDIM, 1 the posterior of the forward process (DDPM).

    Ref: Song et al., DDIM, arXiv 2010.02502 (equation 16).
    """
    if not 0 <= eta <= 1:
        raise InputError(f"ancestral(eta={eta}): eta is in [0, 1]")

    def step(guess, x, t, t_next, state, noise):
        x0 = guess(x, t)
        a, s, a_next, s_next = _levels(schedule, t, t_next)
        kept = jnp.where(a_next * s > 0, a * s_next / jnp.where(a_next * s > 0, a_next * s, 1), 0)
        fresh = eta * s_next * jnp.sqrt(jnp.clip(1 - kept**2, 0, 1))
        eps = (x - over_frames(a, x) * x0) / over_frames(jnp.where(s > 0, s, 1), x)
        rest = jnp.sqrt(jnp.maximum(s_next**2 - fresh**2, 0))
        new = (
            over_frames(a_next, x) * x0
            + over_frames(rest, x) * eps
            + over_frames(fresh, x) * noise().astype(x.dtype)
        )
        return jnp.where(over_frames(t_next == t, x), x, new), state

    return Solver(lambda x: (), step)


def renoise(schedule: Schedule = RectifiedFlow()) -> Solver:
    """Guesses the clean video and noises it afresh: how few-step students are sampled.

    Ref: Song et al., Consistency Models, arXiv 2303.01469 (algorithm 1).
    """

    def step(guess, x, t, t_next, state, noise):
        _, _, a_next, s_next = _levels(schedule, t, t_next)
        new = over_frames(a_next, x) * guess(x, t) + over_frames(s_next, x) * noise().astype(x.dtype)
        return jnp.where(over_frames(t_next == t, x), x, new), state

    return Solver(lambda x: (), step)


SOLVERS = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "unipc": unipc, "ancestral": ancestral}
SOLVERS |= {"renoise": renoise}


def by_name(name: str, schedule: Schedule = RectifiedFlow()) -> Solver:
    """The solver that a user named, or an InputError with the list; 'ddim' is 'euler'."""
    name = "euler" if name == "ddim" else name
    if name not in SOLVERS:
        raise InputError(f"solver={name!r} is not known; choose one of {', '.join(SOLVERS)}")
    return SOLVERS[name](schedule)


def move(schedule: Schedule, x: Array, x0: Array, t: Array, t_next: Array) -> Array:
    """Exactly from t to t_next if x0 were the answer; frames whose level does not change stay bit for bit."""
    ratio, weight = (over_frames(c, x) for c in step_weights(schedule, t, t_next))
    return jnp.where(over_frames(t_next == t, x), x, ratio * x + weight * x0)


def _levels(schedule: Schedule, t: Array, t_next: Array):
    return schedule.alpha(t), schedule.sigma(t), schedule.alpha(t_next), schedule.sigma(t_next)


def step_weights(schedule: Schedule, t: Array, t_next: Array) -> tuple[Array, Array]:
    """Of a step x' = a x + b x0: a = sigma'/sigma and b = alpha' - sigma' alpha / sigma.

    Finite also at sigma = 0, which only frozen frames have.
    """
    a, s, a_next, s_next = _levels(schedule, t, t_next)
    ratio = jnp.where(s > 0, s_next / jnp.where(s > 0, s, 1), 0)
    return ratio, a_next - ratio * a


def _log_ratio(schedule: Schedule, t: Array) -> Array:
    return jnp.log(jnp.maximum(schedule.alpha(t), LEAST)) - jnp.log(jnp.maximum(schedule.sigma(t), LEAST))


def _slope(schedule: Schedule, x: Array, x0: Array, t: Array) -> Array:
    """dx/dt along the flow."""
    a, s = schedule.alpha(t), schedule.sigma(t)
    a_rate, s_rate = rates(schedule, t)
    eps = (x - over_frames(a, x) * x0) / over_frames(jnp.where(s > 0, s, 1), x)
    return over_frames(a_rate, x) * x0 + over_frames(s_rate, x) * eps


def _predict(schedule: Schedule, x: Array, x0: Array, t: Array, t_next: Array, last: History) -> Array:
    """DPM-Solver++(2M): x0 extrapolated linearly in lambda, where both steps are finite in lambda."""
    ratio, weight = step_weights(schedule, t, t_next)
    old, now, new = (_log_ratio(schedule, u) for u in (last.t, t, t_next))
    second = (last.n > 0) & (schedule.alpha(last.t) > 0) & (schedule.sigma(t_next) > 0) & (now > old)
    slant = jnp.where(second, weight / 2 * (new - now) / jnp.where(second, now - old, 1), 0)
    weight, slant, ratio = (over_frames(c, x) for c in (weight, slant, ratio))
    return ratio * x + weight * x0 + slant * jnp.where(over_frames(second, x), x0 - last.x0, 0)


def _correct(schedule: Schedule, x0: Array, t: Array, state: Corrected) -> Array:
    """The last move again, with x0 interpolated through the guesses at its end, its start and the one before.

    With theta from 0 at the start of the move to 1 at its end and h its length in lambda, the move is
    (sigma_t / sigma_s) x + alpha_t int_0^1 h exp(-(1 - theta) h) x0(theta) dtheta.
    """
    x, last, before = state.x, state.last, state.before
    ratio, weight = step_weights(schedule, last.t, t)
    oldest, start, end = (_log_ratio(schedule, u) for u in (before.t, last.t, t))
    h = jnp.maximum(end - start, LEAST)
    rise = x0 - last.x0
    # a frame's first move has no earlier guess: the trapezoid
    plain = over_frames(weight / 2, x) * rise
    # later ones: a parabola through theta = back < 0, 0 and 1
    back = jnp.minimum((oldest - start) / h, -LEAST)
    slant = (before.x0 - last.x0) / over_frames(back, x)
    curve = (rise - slant) / over_frames(1 - back, x)
    alpha = schedule.alpha(t)
    first, second = (over_frames(alpha * _moment(h, n), x) for n in (1, 2))
    fitted = first * (rise - curve) + second * curve
    more = jnp.where(over_frames(last.n > 1, x), fitted, plain)
    return over_frames(ratio, x) * x + over_frames(weight, x) * last.x0 + more


def _moment(h: Array, n: int) -> Array:
    """int_0^1 h theta^n exp(-(1 - theta) h) dtheta, n = 1 or 2, without cancellation at small h."""
    small = jnp.minimum(h, 1.0)
    series = sum(
        (-1) ** j * math.factorial(n) / math.factorial(n + 1 + j) * small ** (j + 1) for j in range(15)
    )
    large = jnp.maximum(h, 1.0)
    first = 1 + jnp.expm1(-large) / large
    closed = first if n == 1 else 1 - 2 * first / large
    return jnp.where(h < 1, series, closed)


def _remember(moved: Array, last: History, x0: Array, t: Array) -> History:
    keep = over_frames(moved, x0)
    n = last.n + moved.astype(jnp.int32)
    return History(jnp.where(keep, x0, last.x0), jnp.where(moved, t, last.t), n)
