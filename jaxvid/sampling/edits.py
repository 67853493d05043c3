# SPDX-License-Identifier: Apache-2.0
"""Edits of temporal attention, for videos that are longer than those a model was trained on; no training is needed.

An edit is called in the place of attention along time: `edit(attend, q, k, v, grid) -> out`, where

    q, k, v, out   [N, T, heads, K], already rotated; N = B H W places, `grid` = (B, H, W)
    attend         the plain attention, `attend(q, k, v, mask=None) -> out`, mask bool [T, T]

Edits are frozen dataclasses, hashable, so that a mixer can hold one as a field. A video no longer than the window is
attended to as it would be without the edit, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.sampling.noise import low_pass, spectral_blend
from jaxvid.sampling.windows import window_plan
from jaxvid.types import Array


@dataclasses.dataclass(frozen=True)
class WindowFusion:
    """Attention in overlapping windows, their outputs averaged with pyramid weights.

    Ref: Qiu et al., FreeNoise, arXiv 2310.15169.
    """

    window: int = 16
    stride: int = 4

    def __call__(self, attend: Callable, q: Array, k: Array, v: Array, grid: tuple[int, int, int]) -> Array:
        frames = q.shape[1]
        if frames <= self.window:
            return attend(q, k, v)
        plan = window_plan(frames, self.window, self.stride)
        index = plan.start[:, None] + np.arange(self.window)[None]
        cut = lambda a: a[:, index].reshape(-1, self.window, *a.shape[2:])
        out = attend(cut(q), cut(k), cut(v)).reshape(q.shape[0], *index.shape, *q.shape[2:])
        weight = np.take_along_axis(plan.weight, index, 1)[None, :, :, None, None]
        return jnp.zeros_like(out[:, 0, :1], shape=q.shape).at[:, index].add((out * weight).astype(out.dtype))


@dataclasses.dataclass(frozen=True)
class SpectralBlend:
    """The low frequencies of attention over all frames, the high ones of attention in a window around each frame.

    `space` and `time` are the filter's widths, as shares of the highest frequency.

    Ref: Lu et al., FreeLong, arXiv 2407.19918.
    """

    window: int = 16
    space: float = 0.25
    time: float = 0.25

    def __call__(self, attend: Callable, q: Array, k: Array, v: Array, grid: tuple[int, int, int]) -> Array:
        frames = q.shape[1]
        if frames <= self.window:
            return attend(q, k, v)
        batch, rows, columns = grid

        def video(out: Array) -> Array:
            out = out.reshape(batch, rows, columns, frames, -1)
            return jnp.moveaxis(out, 3, 1)

        far = video(attend(q, k, v))
        near = video(attend(q, k, v, mask=jnp.asarray(centred(frames, self.window))))
        out = spectral_blend(far, near, low_pass((frames, rows, columns), self.space, self.time))
        return jnp.moveaxis(out, 1, 3).reshape(q.shape)


@dataclasses.dataclass(frozen=True)
class DiagonalBias:
    """Attention logits raised near the diagonal: by `strength` times the row's largest, falling off over `width` frames.

    Ref: Li et al., VSTAR, arXiv 2403.13501.
    """

    width: float = 4.0
    strength: float = 1.0

    def __call__(self, attend: Callable, q: Array, k: Array, v: Array, grid: tuple[int, int, int]) -> Array:
        wide = jnp.promote_types(q.dtype, jnp.float32)
        logits = jnp.einsum("nqhc,nkhc->nhqk", q.astype(wide), k.astype(wide)) * q.shape[-1] ** -0.5
        bias = jnp.asarray(toeplitz(q.shape[1], self.width), wide)
        logits = logits + self.strength * jnp.max(logits, -1, keepdims=True) * bias[None, None]
        return jnp.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(logits, -1), v.astype(wide)).astype(v.dtype)


def centred(frames: int, window: int) -> np.ndarray:
    """Which frames a frame sees: those at most window / 2 away; near the ends, the first or last `window`. bool [T, T]."""
    half = window // 2
    place = np.arange(frames)
    low = np.where(place < half, 0, np.where(place >= frames - half, frames - window, place - half))
    high = np.where(place < half, window - 1, np.where(place >= frames - half, frames - 1, place + half))
    return (place[None] >= low[:, None]) & (place[None] <= high[:, None])


def toeplitz(frames: int, width: float) -> np.ndarray:
    """exp(-(i - j)^2 / (2 width^2)), float64 [T, T]."""
    away = np.arange(frames)[:, None] - np.arange(frames)[None]
    return np.exp(-(away**2) / (2 * width**2))
