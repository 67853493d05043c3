# SPDX-License-Identifier: Apache-2.0
"""What is trained, as two functions of a batch ``(Video, Cond)``.

    init(key, batch) -> variables                       {'params': ..., other collections that are not trained}
    loss(variables, batch, key) -> (scalar, metrics)

A task knows its model and nothing of optimizers, devices or files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvid.diffusion.context import teacher_forced
from jaxvid.diffusion.process import Process
from jaxvid.training.losses import reconstruction_loss
from jaxvid.types import Array, Cond, InputError, Video

Batch = tuple[Video, Cond]
Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DiffusionTask:
    """A network learns to denoise latents whose frames have noise levels of their own.

    model: a network ``(x, t, cond, memory) -> (prediction, memory)``; levels: ``(key, B, T) -> (t, weight)``;
    given: ``(key, B, T) -> bool [B, T]`` (`jaxvid.diffusion.given`) or None; drop_text: how often the
    null text stands for the captions; teacher: whether noisy frames see the clean ones before their block, for causal
    attention that will generate with a memory (`jaxvid.diffusion.context`).
    """

    model: nn.Module
    process: Process
    levels: Callable[..., Any]
    given: Callable[..., Any] | None = None
    drop_text: float = 0.1
    teacher: bool = False

    def __post_init__(self):
        if not 0 <= self.drop_text <= 1:
            raise InputError(f"drop_text={self.drop_text} is not a chance; give a number from 0 to 1")

    def init(self, key: Array, batch: Batch) -> Variables:
        video, cond = batch
        level = jnp.zeros(video.x.shape[:2], jnp.float32)
        return self.model.init(key, video.x, level, self._cond(key, video, cond))

    def loss(self, variables: Variables, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        video, cond = batch
        draw, levels, noise = jax.random.split(key, 3)
        cond = self._cond(draw, video, cond)
        t, weight = self.levels(levels, *video.x.shape[:2])

        def network(x: Array, t: Array, cond: Cond, memory: Any = None) -> tuple[Array, Any]:
            return self.model.apply(variables, x, t, cond, memory)  # type: ignore[return-value]

        if self.teacher:
            network = teacher_forced(network, video.x, self.model.teaching())  # type: ignore[attr-defined]
        return self.process.loss(network, video, cond, t, weight, noise)

    def _cond(self, key: Array, video: Video, cond: Cond) -> dict[str, Array]:
        batch, frames = video.x.shape[:2]
        drop, given = jax.random.split(key)
        cond = {**cond, "drop": jax.random.uniform(drop, (batch,)) < self.drop_text}
        if self.given is not None:
            cond["given"] = self.given(given, batch, frames) & video.ok
        return cond


@dataclasses.dataclass(frozen=True)
class AutoencoderTask:
    """A ``VideoVAE`` learns to give back its clips; ``weights`` are keywords of `losses.reconstruction_loss`.

    start: ``(model, params, images [N, H, W, 3]) -> params`` may make more of the first batch than chance does
    (`jaxvid.models.vae_start.LinearStart`).
    """

    model: nn.Module
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    start: Callable[..., Any] | None = None

    def init(self, key: Array, batch: Batch) -> Variables:
        x = batch[0].x
        variables = self.model.init(key, x)
        if self.start is not None:
            params = self.start(self.model, variables["params"], x.reshape(-1, *x.shape[2:]))
            variables = {**variables, "params": params}
        return variables

    def loss(self, variables: Variables, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        video, _ = batch
        out, posterior = self.model.apply(variables, video.x, key)  # type: ignore[misc]
        return reconstruction_loss(video.x, out, posterior, ok=video.ok, **self.weights)


@dataclasses.dataclass(frozen=True)
class DecoderTask:
    """The decoder of a ``VideoVAE`` goes on learning while its encoder, hence every latent, stays as it is.

    So a backbone trained on these latents, and latents kept on disk, remain good. noise: how much of each channel's
    spread is added to the latents, as a sampler's errors are. ``weights`` as for `AutoencoderTask`.
    """

    model: nn.Module
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    noise: float = 0.05

    def init(self, key: Array, batch: Batch) -> Variables:
        return self.model.init(key, batch[0].x)

    def loss(self, variables: Variables, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        video, _ = batch
        latents = self.model.apply(variables, video.x, method="to_latents")
        latents = jax.lax.stop_gradient(latents + self.noise * jax.random.normal(key, latents.shape))
        mean, std = (variables["stats"][name][None, None, None, None] for name in ("mean", "std"))
        raw = latents * std + mean
        out = self.model.apply(variables, raw, False, method="decode")
        return reconstruction_loss(video.x, out, None, ok=video.ok, **self.weights)
