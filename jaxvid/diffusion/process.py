# SPDX-License-Identifier: Apache-2.0
"""A diffusion process: a schedule, what the network predicts, and where its error is measured.

All arithmetic here is float32, whatever the network computes in.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxvid.diffusion import prediction
from jaxvid.diffusion.common_noise import CommonNoise
from jaxvid.diffusion.schedule import RectifiedFlow, Schedule, add_noise, over_frames
from jaxvid.types import Array, Cond, Denoiser, InputError, Memory, Network, Video

BUCKETS = 4  # the loss is also told for this many equal ranges of t


@dataclasses.dataclass(frozen=True)
class Process:
    """Turns a network into a `Denoiser`, and into a loss.

    Attributes:
      predicts: what the network's output is: 'flow', 'eps', 'v' or 'x0'
      loss_on: the quantity whose squared error is minimised, same names. Where it differs from `predicts` the error in
        x0 is rescaled: Process(predicts='x0', loss_on='flow') is an x0 network under the flow loss,
        `|x0 - x0hat|^2 / max(t, sigma_floor)^2`
      sigma_floor: keeps that rescaling bounded at small t
      common: what neighbouring frames' noise has in common, in training and in sampling; None: every frame has its own

    Ref: x0 networks under the flow loss, with that clamp: Li & He, Back to Basics, arXiv 2511.13720.
    """

    schedule: Schedule = RectifiedFlow()
    predicts: str = "flow"
    loss_on: str = "flow"
    sigma_floor: float = 0.05
    common: CommonNoise | None = None

    def __post_init__(self):
        prediction.check_kind(self.predicts, "predicts")
        prediction.check_kind(self.loss_on, "loss_on")
        if not 0 < self.sigma_floor <= 1:
            raise InputError(f"sigma_floor={self.sigma_floor} is not in (0, 1]; 0.05 is usual")

    def denoiser(self, network: Network, cond: Cond) -> Denoiser:
        """`network` told `cond`, as (x[B,T,H,W,C], t[B,T], memory) -> (x0 guess, memory), x0 in float32."""

        def denoise(x: Array, t: Array, memory: Memory = None) -> tuple[Array, Memory]:
            out, memory = network(x, t, cond, memory)
            x = _wide(x)
            return prediction.to_x0(self.schedule, self.predicts, x, t, out.astype(x.dtype)), memory

        return denoise

    def noise(self, key: Array, like: Array) -> Array:
        """Noise for training clips shaped and typed as `like` [B, T, ...]."""
        own = jax.random.normal(key, like.shape, like.dtype)
        return own if self.common is None else self.common.clips(own, jax.random.fold_in(key, 1))

    def loss(
        self,
        network: Network,
        video: Video,
        cond: Cond,
        t: Float[jax.Array, "B T"],
        weight: Float[jax.Array, "B T"],
        key: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """The mean squared error over scored frames, and scalars to log.

        Given frames (`cond['given']`) are presented clean at t = 0, padding (`~video.ok`) as pure noise at t = 1, so
        that its content cannot leak; neither is scored, nor is a frame of weight 0.

        Metrics: `loss`; `mse` (of x0, unweighted); `scored` (share of frames); for each of the equal ranges of t
        `loss_q1`.. `loss_q4` (unweighted mean, 0 where no frame fell) and `frames_q1`.. (how many frames fell there).
        """
        x0, t, weight = _wide(video.x), _wide(t), _wide(weight)
        given = _given(cond, video)
        scored = video.ok & ~given & (weight > 0)
        t = jnp.where(given, 0.0, jnp.where(video.ok, t, 1.0))
        x0 = jnp.where(over_frames(video.ok, x0), x0, 0)
        eps = self.noise(key, x0)
        x = add_noise(self.schedule, x0, eps, t)

        out, _ = network(x, t, cond, None)
        out = out.astype(x.dtype)
        if self.predicts == self.loss_on:
            error = out - prediction.target(self.schedule, self.predicts, x0, eps, t)
        else:
            scale = prediction.error_scale(self.schedule, self.loss_on, t, self.sigma_floor)
            error = (prediction.to_x0(self.schedule, self.predicts, x, t, out) - x0) * over_frames(scale, x0)
        inner = tuple(range(2, x0.ndim))
        # Frames that are not scored may hold anything, infinities included: select, never multiply by zero.
        per_frame = jnp.mean(jnp.square(jnp.where(over_frames(scored, x0), error, 0)), inner)
        loss = _mean(per_frame * weight, scored)

        guess = jax.lax.stop_gradient(prediction.to_x0(self.schedule, self.predicts, x, t, out))
        off = jnp.mean(jnp.square(jnp.where(over_frames(scored, x0), guess - x0, 0)), inner)
        metrics = {"loss": loss, "mse": _mean(off, scored), "scored": jnp.mean(scored.astype(jnp.float32))}
        bucket = jnp.clip((t * BUCKETS).astype(jnp.int32), 0, BUCKETS - 1)
        for i in range(BUCKETS):
            inside = scored & (bucket == i)
            metrics[f"loss_q{i + 1}"] = _mean(per_frame, inside)
            metrics[f"frames_q{i + 1}"] = jnp.sum(inside.astype(jnp.float32))
        return loss, jax.lax.stop_gradient(metrics)


def _given(cond: Cond, video: Video) -> Bool[jax.Array, "B T"]:
    given = cond.get("given")
    return jnp.zeros_like(video.ok) if given is None else given & video.ok


def _mean(values: Array, mask: Array) -> Array:
    mask = mask.astype(values.dtype)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)


def _wide(x: Array) -> Array:
    """At least float32."""
    return jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32))
