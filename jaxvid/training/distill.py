# SPDX-License-Identifier: Apache-2.0
"""Few-step students of a trained model, as tasks (see `jaxvid.training.task`).

    ConsistencyTask   the student says at any level what it says a step of its teacher's solver further down
    MatchingTask      what the student makes in a few steps is moved to where its teacher's videos are (DMD), on roll-outs of
                      its own (Self-Forcing); a critic learns beside it what the student makes

The teacher's weights are the collection `teacher`, which is not trained; its guidance is distilled too, so a student is
sampled without. Sampling is the method `student`, four steps of the solver `renoise`. Where trained weights come from is the
stage's `init` (the student's) and `teacher`: `origins` says into which part of the variables each of them goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvid.diffusion.context import teacher_forced
from jaxvid.diffusion.levels import Density, Levels, OnePerClip
from jaxvid.diffusion.matching import matching_loss, pseudo_huber
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import add_noise, over_frames
from jaxvid.sampling.own_rollout import Voices, own_rollout
from jaxvid.sampling.plan import time_table
from jaxvid.sampling.solvers import move
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
from jaxvid.types import Array, Cond, Denoiser, InputError, Network


@dataclasses.dataclass(frozen=True)
class ConsistencyTask:
    """A student of the same network as its teacher learns to go to the end of the teacher's trajectory in one step.

    steps, shift   the teacher's ladder of levels, of which the student learns every rung
    guidance       the teacher's, which the student learns with everything else
    corner         of the pseudo-Huber loss, in units of the latents
    lags           how many rungs a frame may be behind the one before it; each clip draws one of them (0: one level)
    teacher        whether both are shown the clean past beside the noisy video (`DiffusionTask.teacher`)

    With lags a student learns the staircases of a window that slides (`sliding`), whose frames are decided in sight of
    cleaner ones; frames that have not begun or are done there are not scored.

    The goal is the student's own answer a rung below, without gradient; on the lowest rung it is where the teacher's last
    step ends, which is the boundary f(x, 0) = x.

    Ref: Song et al., Consistency Models, arXiv 2303.01469; with guidance: Luo et al., LCM, arXiv 2310.04378; video:
    Li et al., T2V-Turbo, arXiv 2405.18750.
    """

    model: nn.Module
    process: Process
    steps: int = 30
    shift: float = 6.0
    guidance: float = 2.5
    corner: float = 0.01
    lags: tuple[int, ...] = (0,)
    given: Callable[..., Any] | None = None
    teacher: bool = False

    origins = {"init": (("params",),), "teacher": (("teacher",),)}

    def __post_init__(self):
        time_table(self.steps, self.shift)
        check_lags(self.lags)
        if not self.corner > 0:
            raise InputError(
                f"corner={self.corner}: the loss is round near 0 over a positive width; give 0.01"
            )

    def init(self, key: Array, batch: Batch) -> Variables:
        variables = fresh_variables(self.model, key, batch)
        return {**variables, "teacher": nn.unbox(variables["params"])}

    def loss(self, variables: Variables, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        video, cond = batch
        rung, eps, draw = jax.random.split(key, 3)
        x0, shape = jnp.asarray(video.x, jnp.float32), video.x.shape[:2]
        cond, held, scored = draw_conditions(self.given, draw, video, cond)

        def speaks(params: Any) -> Network:
            network = network_of(self.model, params)
            if not self.teacher:
                return network

            def behind(x: Array, t: Array, cond: Cond, memory: Any = None) -> tuple[Array, Any]:
                clean = jnp.tile(
                    x0, (x.shape[0] // shape[0], *(1,) * (x0.ndim - 1))
                )  # guidance doubles the batch
                return teacher_forced(network, clean, self.model.teaching())(x, t, cond)  # type: ignore[attr-defined]

            return behind

        times = jnp.asarray(time_table(self.steps, self.shift))
        n = draw_rungs(rung, *shape, self.steps, self.lags)
        moves = (n >= 1) & (n <= self.steps)
        scored &= moves
        t, below = (jnp.where(held, 0.0, times[k]) for k in (n, n + moves))
        x = add_noise(self.process.schedule, x0, self.process.noise(eps, x0), t)
        guide = guided(self.process, speaks(variables["teacher"]), cond, self.guidance)
        lower = move(self.process.schedule, x, guide(x, t)[0], t, below)
        told = {**cond, "drop": jnp.zeros(shape[0], bool)}
        still = self.process.denoiser(speaks(jax.lax.stop_gradient(variables["params"])), told)
        goal = jnp.where(over_frames(below == 0, x), lower, still(lower, below)[0])
        guess = self.process.denoiser(speaks(variables["params"]), told)(x, t)[0]
        off = jnp.where(over_frames(scored, x), guess - jax.lax.stop_gradient(goal), 0)
        metrics = {"mse": masked_mean(jnp.square(off), scored)}
        loss = masked_mean(pseudo_huber(off, self.corner), scored)
        return loss, jax.lax.stop_gradient({"loss": loss, **metrics})


@dataclasses.dataclass(frozen=True)
class MatchingTask:
    """A student's few-step videos are made like its teacher's, by the difference of two scores.

    Attributes:
      model: the student
      score: the network of its teacher and of the critic (None: the student's own), which see whole clips
      steps, shift: the student's ladder
      block: latent frames that a causal student makes together, each block behind those it made before; None: all
      guidance: the teacher's
      levels: at which the two scores are compared, and the critic learns; kept in [0.02, 0.98]
      every: one step in so many, by chance, is the student's, the others are the critic's

    In the critic's steps the student's gradient is exactly zero and the other way round: train with
    `jaxvid.training.optimizer.parts`, which lets a part rest then. Only captions and given frames come from the data.

    Ref: Yin et al., DMD2, arXiv 2405.14867; CausVid, arXiv 2412.07772; Huang et al., Self Forcing, arXiv 2506.08009.
    """

    model: nn.Module
    process: Process
    score: nn.Module | None = None
    steps: int = 4
    shift: float = 5.0
    block: int | None = None
    guidance: float = 3.5
    levels: Levels = OnePerClip(Density(shift=5.0))
    given: Callable[..., Any] | None = None
    every: int = 6

    served = "student"  # which of `params` makes videos
    origins = {"init": (("params", "student"),), "teacher": (("teacher",), ("params", "critic"))}

    def __post_init__(self):
        time_table(self.steps, self.shift)
        if self.every < 2:
            raise InputError(
                f"every={self.every}: the critic learns between the student's steps; give 2 or more"
            )
        if self.block is not None and not getattr(self.model, "causal", False):
            raise InputError(
                f"block={self.block} asks for a student that remembers, and this one sees the future; leave it None"
            )

    @property
    def judge(self) -> nn.Module:
        """The network of teacher and critic."""
        return self.model if self.score is None else self.score

    def init(self, key: Array, batch: Batch) -> Variables:
        one, other = jax.random.split(key)
        student, judge = fresh_variables(self.model, one, batch), fresh_variables(self.judge, other, batch)
        params = {"student": student.pop("params"), "critic": judge["params"]}
        return {**student, "params": params, "teacher": nn.unbox(judge["params"])}

    def loss(self, variables: Variables, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        video, cond = batch
        draw, turn, last, noise, levels, eps = jax.random.split(key, 6)
        cond, held, scored = draw_conditions(self.given, draw, video, cond)
        told = {**cond, "drop": jnp.zeros(held.shape[0], bool)}
        params, still = variables["params"], jax.lax.stop_gradient(variables["params"])
        last = jax.random.randint(last, (), 1, self.steps + 1)
        t, weight = self.levels(levels, *held.shape)
        t = jnp.where(held, 0.0, jnp.clip(t, 0.02, 0.98))

        def make(student: Any) -> Array:
            return self.rollout(student, video.x, held, told, last, noise)

        def learn_student(_: None) -> Array:
            x = make(params["student"])
            seen = jax.lax.stop_gradient(x)
            noisy = add_noise(self.process.schedule, seen, self.process.noise(eps, x), t)
            real = guided(self.process, network_of(self.judge, variables["teacher"]), cond, self.guidance)
            fake = self.process.denoiser(network_of(self.judge, still["critic"]), told)
            return matching_loss(x, real(noisy, t)[0], fake(noisy, t)[0], scored)

        def learn_critic(_: None) -> Array:
            made = video.replace(x=make(still["student"]))
            network = network_of(self.judge, params["critic"])
            return self.process.loss(network, made, told, t, weight, eps)[0]

        students = jax.random.uniform(turn) * self.every < 1
        loss = jax.lax.cond(students, learn_student, learn_critic, None)
        zero = jnp.zeros_like(loss)
        metrics = {
            "loss": loss,
            "student": jnp.where(students, loss, zero),
            "critic": jnp.where(students, zero, loss),
        }
        return loss, jax.lax.stop_gradient(metrics)

    def rollout(
        self, student: Any, value: Array, given: Array, cond: Cond, last: int | Array, key: Array
    ) -> Array:
        """What a student with these parameters makes, [B, T, ...], leaving the ladder at step `last` (`own_rollout`)."""
        batch, _, height, width = value.shape[:4]
        memory = None
        if self.block is not None and self.block < value.shape[1]:
            memory = self.model.init_memory(batch, height, width)  # type: ignore[attr-defined]
        block = min(value.shape[1], self.block or value.shape[1])
        frozen = jax.lax.stop_gradient(student)

        def voices(first: Array) -> Voices:
            cut = lambda a: jax.lax.dynamic_slice_in_dim(a, first, block, 1)
            here = {name: cut(a) if name in ("span", "given") else a for name, a in cond.items()}
            here["given"] = cut(given)
            clean = {**here, "given": jnp.ones_like(here["given"])}

            def says(params: Any, cond: Cond) -> Denoiser:
                return self.process.denoiser(network_of(self.model, params), cond)

            return Voices(says(student, here), says(frozen, here), says(frozen, clean))

        keys = jax.random.split(key, batch)
        times = time_table(self.steps, self.shift)
        process = {"schedule": self.process.schedule, "common": self.process.common}
        options = {"block": block, "memory": memory, **process}
        return own_rollout(voices, times, last, keys, value, given, **options)
