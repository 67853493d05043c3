# SPDX-License-Identifier: Apache-2.0
"""A few-step student that learns each of its steps from several of its teacher's, as a task (see `jaxvid.training.task`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvid.diffusion.matching import pseudo_huber
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import add_noise, over_frames
from jaxvid.sampling.plan import time_table
from jaxvid.sampling.solvers import move, step_weights
from jaxvid.training.students import (
    check_lags,
    draw_conditions,
    draw_rungs,
    fresh_variables,
    guided,
    masked_mean,
    network_of,
)
from jaxvid.training.task import Batch, Variables
from jaxvid.types import Array, InputError


@dataclasses.dataclass(frozen=True)
class ProgressiveTask:
    """A student of the same network as its teacher learns to make in one step what the teacher makes in `inner` guided ones.

    steps, shift   the student's ladder of levels: between two rungs of it the teacher goes in `inner` Euler steps
    guidance       the teacher's, which the student learns with everything else
    corner         of the pseudo-Huber loss, in units of the latents
    lags           as in `ConsistencyTask`, in rungs of the student's ladder: with 1 it learns the staircases of `sliding`

    The goal does not lean on what the student says, so it cannot drift away from its teacher: consistency learns from
    a teacher asked once, and from itself. Sample with the solver `euler` on the same ladder, without guidance.

    Ref: Salimans and Ho, arXiv 2202.00512; with guidance: Meng et al., arXiv 2210.03142. One round, of `inner` to one.
    """

    model: nn.Module
    process: Process
    steps: int = 4
    shift: float = 5.0
    inner: int = 4
    guidance: float = 2.5
    corner: float = 0.03
    lags: tuple[int, ...] = (0,)
    given: Callable[..., Any] | None = None

    origins = {"init": (("params",),), "teacher": (("teacher",),)}

    def __post_init__(self):
        time_table(self.steps, self.shift)
        check_lags(self.lags)
        for name, least in (("inner", self.inner >= 1), ("corner", self.corner > 0)):
            if not least:
                raise InputError(f"{name}={getattr(self, name)}: it must be positive; give its default")

    def init(self, key: Array, batch: Batch) -> Variables:
        variables = fresh_variables(self.model, key, batch)
        return {**variables, "teacher": nn.unbox(variables["params"])}

    def loss(self, variables: Variables, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        video, cond = batch
        rung, eps, draw = jax.random.split(key, 3)
        x0, shape = jnp.asarray(video.x, jnp.float32), video.x.shape[:2]
        cond, held, scored = draw_conditions(self.given, draw, video, cond)
        n = draw_rungs(rung, *shape, self.steps, self.lags)
        moves = (n >= 1) & (n <= self.steps)
        scored &= moves

        fine = jnp.asarray(time_table(self.steps * self.inner, self.shift))
        first = jnp.clip((n - 1) * self.inner + 1, 0, self.steps * self.inner + 1)
        level = lambda i: jnp.where(held, 0.0, fine[first + moves * i])
        schedule, start = self.process.schedule, level(0)
        x = add_noise(schedule, x0, self.process.noise(eps, x0), start)
        guide = guided(self.process, network_of(self.model, variables["teacher"]), cond, self.guidance)

        def one(y: Array, i: Array) -> tuple[Array, None]:
            return move(schedule, y, guide(y, level(i))[0], level(i), level(i + 1)), None

        arrived = jax.lax.stop_gradient(jax.lax.scan(one, x, jnp.arange(self.inner))[0])
        told = {**cond, "drop": jnp.zeros(shape[0], bool)}
        guess = self.process.denoiser(network_of(self.model, variables["params"]), told)(x, start)[0]
        # a step is linear in the guess: what it lacks is the difference of two ends over the step's weight
        weight = over_frames(step_weights(schedule, start, level(self.inner))[1], x)
        lacks = move(schedule, x, guess, start, level(self.inner)) - arrived
        off = jnp.where(over_frames(scored, x), lacks / jnp.where(weight > 0, weight, 1), 0)
        metrics = {"mse": masked_mean(jnp.square(off), scored)}
        loss = masked_mean(pseudo_huber(off, self.corner), scored)
        return loss, jax.lax.stop_gradient({"loss": loss, **metrics})
