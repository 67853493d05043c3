# SPDX-License-Identifier: Apache-2.0
"""Which noise levels a model is trained on: samplers `(key, batch, frames) -> (t[B, F], weight[B, F])`.

Each is a frozen dataclass that is called, so that a config can write `call(levels.Independent, ...)`; `fopp` is also
there as a plain function. Levels are float32 in [0, 1] (0 clean, 1 noise); a weight multiplies its frame's loss.
Where a sampler takes a `density`, that maps uniform quantiles to levels, so that any sampler can lean to the noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxvid.diffusion.prediction import check_kind
from jaxvid.diffusion.schedule import RectifiedFlow, Schedule, shifted
from jaxvid.types import Array, InputError

Levels = Callable[[Array, int, int], tuple[Array, Array]]
EDGE = 1e-6  # uniform draws stay this far inside (0, 1), where quantile functions are finite


@dataclasses.dataclass(frozen=True)
class Density:
    """A density of levels on [0, 1], as its quantile function: monotone, from uniform `u` to `t`.

    kind 'uniform', or 'logit_normal' = sigmoid(mean + std * normal); then `shift` moves levels towards the noise.

    Ref: Esser et al., Scaling Rectified Flow Transformers, arXiv 2403.03206.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self):
        if self.kind not in ("uniform", "logit_normal"):
            raise InputError(f"density kind={self.kind!r} is not known; choose uniform or logit_normal")
        if not (self.std > 0 and self.shift > 0):
            raise InputError(f"density std={self.std}, shift={self.shift}: both must be positive")

    def __call__(self, u: Array) -> Array:
        u = jnp.clip(u, 0, 1)
        if self.kind == "logit_normal":
            u = jax.nn.sigmoid(self.mean + self.std * jax.scipy.special.ndtri(jnp.clip(u, EDGE, 1 - EDGE)))
        return jnp.clip(shifted(u, self.shift), 0, 1)


UNIFORM = Density()


def _uniform(key: Array, *shape: int) -> Array:
    return jax.random.uniform(key, shape, jnp.float32)


def _evenly(t: Array) -> tuple[Array, Array]:
    return t, jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class OnePerClip:
    """All frames of a clip share one level: an ordinary video diffusion model."""

    density: Density = UNIFORM

    def __call__(
        self, key: Array, batch: int, frames: int
    ) -> tuple[Float[jax.Array, "B F"], Float[jax.Array, "B F"]]:
        return _evenly(jnp.broadcast_to(self.density(_uniform(key, batch, 1)), (batch, frames)))


@dataclasses.dataclass(frozen=True)
class Independent:
    """Every frame draws its own level.

    Ref: Chen et al., Diffusion Forcing, arXiv 2407.01392.
    """

    density: Density = UNIFORM

    def __call__(
        self, key: Array, batch: int, frames: int
    ) -> tuple[Float[jax.Array, "B F"], Float[jax.Array, "B F"]]:
        return _evenly(self.density(_uniform(key, batch, frames)))


@dataclasses.dataclass(frozen=True)
class Vectorised:
    """With probability `p` a clip's frames draw their own levels, otherwise they share one.

    The coin is flipped for each clip (the authors flip it for a batch, which is the same in expectation).

    Ref: Liu et al., Redefining Temporal Modeling with Vectorized Timesteps (FVDM), arXiv 2410.03160.
    """

    p: float = 0.2
    density: Density = UNIFORM

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise InputError(f"Vectorised(p={self.p}): p is a probability, in [0, 1]")

    def __call__(
        self, key: Array, batch: int, frames: int
    ) -> tuple[Float[jax.Array, "B F"], Float[jax.Array, "B F"]]:
        coin, draw = jax.random.split(key)
        u = _uniform(draw, batch, frames)
        own = _uniform(coin, batch, 1) < self.p
        return _evenly(self.density(jnp.where(own, u, u[:, :1])))


@dataclasses.dataclass(frozen=True)
class FoPP:
    """Levels that never fall along the clip: frame-oriented probability propagation on a grid of `steps` levels.

    One frame, drawn uniformly, gets a level uniformly; the frames before and after it are then a uniformly drawn
    non-decreasing completion. The numbers of completions are binomials (10^50 at 25 frames, float32 ends at 10^38),
    so only their logarithms are formed: among non-decreasing (t_0 .. t_f) with t_f <= m there are C(m + f + 1, f + 1),
    hence given t_{f+1} = m

        P(t_f <= a) = C(a + f + 1, f + 1) / C(m + f + 1, f + 1)

    which is inverted with one uniform number a frame; frames after the drawn one are the mirror image. All frames of
    a clip share a jitter inside the grid's cell, which keeps the order and makes levels continuous.

    Ref: Sun et al., AR-Diffusion, arXiv 2503.07418.
    """

    steps: int = 1000
    density: Density = UNIFORM

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"FoPP(steps={self.steps}): steps must be at least 1; 1000 is usual")

    def __call__(
        self, key: Array, batch: int, frames: int
    ) -> tuple[Float[jax.Array, "B F"], Float[jax.Array, "B F"]]:
        grid, jitter = jax.random.split(key)
        index = fopp_indices(grid, batch, frames, self.steps)
        return _evenly(self.density((index + _uniform(jitter, batch, 1)) / self.steps))


def fopp(
    key: Array, batch: int, frames: int, steps: int = 1000
) -> tuple[Float[jax.Array, "B F"], Float[jax.Array, "B F"]]:
    """Non-decreasing levels (t[B, F], weight[B, F]), uniform density: see `FoPP`."""
    return FoPP(steps)(key, batch, frames)


def fopp_indices(key: Array, batch: int, frames: int, steps: int) -> Array:
    """The grid indices int32 [B, F] in 0..steps-1 of `FoPP`, non-decreasing along F."""
    frame_key, level_key, walk_key = jax.random.split(key, 3)
    pivot = jax.random.randint(frame_key, (batch,), 0, frames)
    level = jax.random.randint(level_key, (batch,), 0, steps)
    u = jnp.log(jnp.clip(_uniform(walk_key, 2, frames, batch), jnp.finfo(jnp.float32).tiny, 1))
    table = fopp_log_counts(frames, steps)

    def walk(log_u: Array, below: Array, start: Array) -> Array:
        """From `start` downwards: column i is the level i frames away, `below[i]` frames being left under it."""

        def step(top, inputs):
            drop, left = inputs
            rows = table[left]  # [B, steps]
            here = jnp.take_along_axis(rows, top[:, None], 1)[:, 0] + drop
            drawn = jnp.minimum(jnp.sum(rows < here[:, None], -1, dtype=jnp.int32), top)
            top = jnp.where(left > 0, drawn, top)
            return top, top

        return jax.lax.scan(step, start, (log_u[1:], below))[1]

    away = jnp.arange(1, frames, dtype=jnp.int32)[:, None]
    left = jnp.maximum(pivot[None] - away + 1, 0)  # frame pivot - i has that many frames at or before it
    right = jnp.maximum((frames - 1 - pivot)[None] - away + 1, 0)
    down = jnp.concatenate(
        [level[None], walk(u[0], left, level)]
    )  # [F, B], indexed by the distance from the pivot
    up = steps - 1 - jnp.concatenate([steps - 1 - level[None], walk(u[1], right, steps - 1 - level)])
    distance = jnp.arange(frames, dtype=jnp.int32)[None] - pivot[:, None]  # [B, F]
    pick = lambda walked: jnp.take_along_axis(walked.T, jnp.abs(distance), 1)
    return jnp.where(distance < 0, pick(down), pick(up)).astype(jnp.int32)


def fopp_log_counts(frames: int, steps: int) -> Float[jax.Array, "n steps"]:
    """Logs of how many non-decreasing ways there are: row n <= frames, column a, holds log C(a + n, n).

    C(a + f, f) sequences of f + 1 frames end in level a; as many of n - f more frames begin in level steps - 1 - a, at its
    mirror image. A sum of logs: no gamma function, and nothing overflows.
    """
    n = jnp.arange(1, frames + 1, dtype=jnp.float32)[:, None]
    a = jnp.arange(steps, dtype=jnp.float32)[None]
    return jnp.concatenate([jnp.zeros((1, steps), jnp.float32), jnp.cumsum(jnp.log1p(a / n), 0)])


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Any other sampler over blocks of frames: `block` consecutive frames share a level (the last may be cut).

    SkyReels-V2 trains on Blocks(FoPP(), 5).

    Ref: Chen et al., SkyReels-V2, arXiv 2504.13074.
    """

    sampler: Levels = FoPP()
    block: int = 5

    def __post_init__(self):
        if self.block < 1:
            raise InputError(f"Blocks(block={self.block}): block counts latent frames, at least 1")

    def __call__(
        self, key: Array, batch: int, frames: int
    ) -> tuple[Float[jax.Array, "B F"], Float[jax.Array, "B F"]]:
        t, weight = self.sampler(key, batch, -(-frames // self.block))
        return jnp.repeat(t, self.block, 1)[:, :frames], jnp.repeat(weight, self.block, 1)[:, :frames]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Any other sampler, with a loss on the `last` frames only: the frames before them are there to be looked at.

    Ref: Gu et al., FAR, arXiv 2503.19325.
    """

    sampler: Levels = Independent()
    last: int = 16

    def __call__(
        self, key: Array, batch: int, frames: int
    ) -> tuple[Float[jax.Array, "B F"], Float[jax.Array, "B F"]]:
        t, weight = self.sampler(key, batch, frames)
        return t, jnp.where(jnp.arange(frames)[None] >= frames - self.last, weight, 0)


@dataclasses.dataclass(frozen=True)
class FusedSNR:
    """Any other sampler, frames weighted by how clean they and their past are: see `fused_weights`.

    kind      what the loss is on: 'flow', 'eps', 'v' or 'x0'
    clip      greatest ratio of signal to noise that counts; decay: how slowly the past is forgotten

    Ref: Chen et al., Diffusion Forcing, arXiv 2407.01392 (appendix; the weights of its released code).
    """

    sampler: Levels = Independent()
    schedule: Schedule = RectifiedFlow()
    kind: str = "flow"
    clip: float = 5.0
    decay: float = 0.96

    def __post_init__(self):
        check_kind(self.kind, "kind")
        if not (self.clip > 0 and 0 <= self.decay < 1):
            raise InputError(
                f"FusedSNR clip={self.clip}, decay={self.decay}: wanted clip > 0, decay in [0, 1)"
            )

    def __call__(
        self, key: Array, batch: int, frames: int
    ) -> tuple[Float[jax.Array, "B F"], Float[jax.Array, "B F"]]:
        t, weight = self.sampler(key, batch, frames)
        ratio = (self.schedule.alpha(t) / jnp.maximum(self.schedule.sigma(t), 1e-3)) ** 2
        return t, weight * fused_weights(ratio, self.kind, self.clip, self.decay)


def fused_weights(
    ratio: Float[jax.Array, "B F"], kind: str, clip: float = 5.0, decay: float = 0.96
) -> Float[jax.Array, "B F"]:
    """Loss weights from signal-to-noise ratios of frames, each fused with those before it.

    With r = min(ratio, clip) / clip, q = ratio / clip and h a running mean of r over the past (0 before the first frame),

        R = 1 - (1 - decay h) (1 - r),   Q = 1 - (1 - decay h) (1 - q)

    the weight of an error in x0 is R clip; of an error told as another kind, that over the square of how the kind scales
    it at ratio Q clip: R / Q for eps, R clip / (Q clip + 1) for v, R clip / (sqrt(Q clip) + 1)^2 for flow.
    """
    r, q = jnp.minimum(ratio, clip) / clip, ratio / clip

    def step(mean: Array, now: Array):
        return jnp.where(mean < 0, now, decay * mean + (1 - decay) * now), jnp.maximum(mean, 0)

    past = jnp.moveaxis(jax.lax.scan(step, -jnp.ones_like(r[:, 0]), jnp.moveaxis(r, 1, 0))[1], 0, 1)
    own, fused = (1 - (1 - decay * past) * (1 - one) for one in (r, q))
    if kind == "eps":
        return own / jnp.maximum(fused, 1e-6)
    if kind == "x0":
        return own * clip
    signal = fused * clip
    return own * clip / (signal + 1 if kind == "v" else (jnp.sqrt(signal) + 1) ** 2)


@dataclasses.dataclass(frozen=True)
class Mix:
    """Each clip draws one of `samplers` with odds `weights` (positive, any sum; None: even).

    Works for level samplers and for given-frame samplers alike.
    """

    samplers: tuple[Callable[[Array, int, int], Any], ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "samplers", tuple(self.samplers))
        weights = (1.0,) * len(self.samplers) if self.weights is None else tuple(self.weights)
        object.__setattr__(self, "weights", weights)
        if not self.samplers or len(weights) != len(self.samplers) or min(weights) <= 0:
            raise InputError(
                f"Mix: {len(self.samplers)} samplers and weights={weights}; give each one a positive weight"
            )

    def __call__(self, key: Array, batch: int, frames: int) -> Any:
        choose, *keys = jax.random.split(key, len(self.samplers) + 1)
        chosen = jax.random.categorical(
            choose, jnp.log(jnp.asarray(self.weights, jnp.float32)), shape=(batch, 1)
        )
        drawn = [sampler(k, batch, frames) for sampler, k in zip(self.samplers, keys, strict=True)]
        return jax.tree.map(lambda *all_: jnp.choose(chosen, all_, mode="clip"), *drawn)
