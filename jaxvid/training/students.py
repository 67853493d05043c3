# SPDX-License-Identifier: Apache-2.0
"""What the tasks of few-step students have in common: networks as functions, a teacher's guided answer, rungs, means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvid.diffusion.guidance import classifier_free, doubled
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import over_frames
from jaxvid.training.task import Batch
from jaxvid.types import Array, Cond, Denoiser, InputError, Network, Video


def check_lags(lags: tuple[int, ...]) -> None:
    """Raises InputError for lags that no staircase has."""
    if not lags or min(lags) < 0:
        raise InputError(f"lags={lags}: whole numbers of rungs, 0 or more, and one at least; give (0,)")


def draw_rungs(key: Array, batch: int, frames: int, steps: int, lags: tuple[int, ...]) -> Array:
    """Rungs int32 [B, F] at a row of a staircase: 0 not begun, 1 to `steps` on its way, `steps` + 1 done."""
    which, row = jax.random.split(key)
    lag = jax.random.choice(which, jnp.asarray(lags), (batch, 1))
    n = jax.random.randint(row, (batch, 1), 1, steps + 1 + lag * (frames - 1))
    return jnp.clip(n - lag * jnp.arange(frames)[None], 0, steps + 1)


def fresh_variables(model: nn.Module, key: Array, batch: Batch) -> dict[str, Any]:
    video, cond = batch
    level = jnp.zeros(video.x.shape[:2], jnp.float32)
    drop = jnp.zeros(video.x.shape[0], bool)
    return dict(model.init(key, video.x, level, {**cond, "drop": drop}))


def network_of(model: nn.Module, params: Any) -> Network:
    def network(x: Array, t: Array, cond: Cond, memory: Any = None) -> tuple[Array, Any]:
        return model.apply({"params": params}, x, t, cond, memory)  # type: ignore[return-value]

    return network


def guided(process: Process, network: Network, cond: Cond, scale: float) -> Denoiser:
    """A teacher's guided answer; at scale 1 it is asked once."""
    if scale == 1:
        return process.denoiser(network, cond)
    return classifier_free(doubled(process, network, cond), scale)


def draw_conditions(
    given: Callable[..., Any] | None, key: Array, video: Video, cond: Mapping[str, Array]
) -> tuple[dict[str, Array], Array, Array]:
    """(conditions with `given`, which frames are given, which are scored: bool [B, T] both)."""
    held = jnp.zeros(video.x.shape[:2], bool) if given is None else given(key, *video.x.shape[:2]) & video.ok
    return {**cond, "given": held}, held, video.ok & ~held


def masked_mean(values: Array, scored: Array) -> Array:
    inside = jnp.broadcast_to(over_frames(scored, values), values.shape)
    return jnp.sum(jnp.where(inside, values, 0)) / jnp.maximum(jnp.sum(inside), 1)
