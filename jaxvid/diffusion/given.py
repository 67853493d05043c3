# SPDX-License-Identifier: Apache-2.0
"""Which frames are clean context in training: samplers `(key, batch, frames) -> bool[B, F]`, True where given.

One training run on a mixture of them (`levels.Mix`) serves text-to-video, image-to-video, extension and in-betweening.

Ref: Voleti et al., MCVD, arXiv 2205.09853; Lu et al., VDT, arXiv 2305.13311.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from jaxvid.types import Array, InputError

Given = Callable[[Array, int, int], Array]


@dataclasses.dataclass(frozen=True)
class Nothing:
    """No frame is given: text to video."""

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        return jnp.zeros((batch, frames), bool)


@dataclasses.dataclass(frozen=True)
class First:
    """The first `n` frames: image to video. At least one frame is left to denoise, if there are two."""

    n: int = 1

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        return jnp.broadcast_to(jnp.arange(frames) < min(self.n, max(frames - 1, 0)), (batch, frames))


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A beginning: `shortest` frames to `share` of the clip, or one of `lengths` (those met in chunked roll-outs).

    Always leaves a frame to denoise.

    Ref: prefix lengths of a roll-out: Gao et al., Ca2-VDM, arXiv 2411.16375.
    """

    shortest: int = 1
    share: float = 0.5
    lengths: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.lengths is not None:
            object.__setattr__(self, "lengths", tuple(self.lengths))
        if not (self.shortest >= 0 and 0 <= self.share <= 1) or self.lengths == ():
            raise InputError(f"{self}: wanted shortest >= 0, share in [0, 1], and lengths None or not empty")

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        if self.lengths is not None:
            length = jnp.asarray(self.lengths)[jax.random.randint(key, (batch, 1), 0, len(self.lengths))]
        else:
            longest = max(int(self.share * frames), self.shortest)
            length = jax.random.randint(key, (batch, 1), self.shortest, longest + 1)
        return jnp.arange(frames)[None] < jnp.minimum(length, max(frames - 1, 0))


@dataclasses.dataclass(frozen=True)
class Ends:
    """The first and the last frames: in-betweening."""

    first: int = 1
    last: int = 1

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        frame = jnp.arange(frames)
        mask = (frame < self.first) | (frame >= frames - self.last)
        if self.first + self.last >= frames:  # too short to have a middle
            mask = jnp.zeros_like(mask)
        return jnp.broadcast_to(mask, (batch, frames))


@dataclasses.dataclass(frozen=True)
class Last:
    """The last `n` frames: backward prediction. At least one frame is left to denoise, if there are two."""

    n: int = 1

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        n = min(self.n, max(frames - 1, 0))
        return jnp.broadcast_to(jnp.arange(frames) >= frames - n, (batch, frames))


@dataclasses.dataclass(frozen=True)
class Every:
    """Every `n`-th frame, from the first on: interpolation."""

    n: int = 4

    def __post_init__(self):
        if self.n < 2:
            raise InputError(f"Every(n={self.n}): n is at least 2, or nothing is left to denoise")

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        mask = (jnp.arange(frames) % self.n == 0) & (frames > 1)
        return jnp.broadcast_to(mask, (batch, frames))


@dataclasses.dataclass(frozen=True)
class One:
    """One frame, drawn uniformly; none where there is but one."""

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        place = jax.random.randint(key, (batch, 1), 0, frames)
        return (jnp.arange(frames)[None] == place) & (frames > 1)


@dataclasses.dataclass(frozen=True)
class Chance:
    """Each frame with probability `p`, always leaving one: random completion, and FAR's stochastic clean context (0.1).

    Ref: Gu et al., FAR, arXiv 2503.19325; Chen et al., SEINE, arXiv 2310.20700.
    """

    p: float = 0.1

    def __post_init__(self):
        if not 0 <= self.p < 1:
            raise InputError(f"Chance(p={self.p}): wanted a probability in [0, 1)")

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        u = jax.random.uniform(key, (batch, frames))
        return (u < self.p) & (u < jnp.max(u, 1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class PastFuture:
    """The first `past` frames with probability `keep`, and, independently, the last `future` ones.

    One model for prediction, backward prediction, interpolation and generation. Clips too short for both and a frame between
    get none.

    Ref: Voleti et al., MCVD, arXiv 2205.09853.
    """

    past: int = 2
    future: int = 2
    keep: float = 0.5

    def __post_init__(self):
        if self.past < 0 or self.future < 0 or not 0 <= self.keep <= 1:
            raise InputError(f"{self}: wanted past and future of at least 0 frames, keep in [0, 1]")

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        coin = jax.random.uniform(key, (batch, 2, 1)) < self.keep
        frame = jnp.arange(frames)[None]
        mask = (coin[:, 0] & (frame < self.past)) | (coin[:, 1] & (frame >= frames - self.future))
        return mask & (self.past + self.future < frames)


@dataclasses.dataclass(frozen=True)
class Subset:
    """Each frame with a probability that is itself uniform in [0, `most`] for each clip: any-frame conditioning."""

    most: float = 0.5

    def __post_init__(self):
        if not 0 <= self.most < 1:
            raise InputError(f"Subset(most={self.most}): wanted a probability in [0, 1)")

    def __call__(self, key: Array, batch: int, frames: int) -> Bool[jax.Array, "B F"]:
        rate, draw = jax.random.split(key)
        p = jax.random.uniform(rate, (batch, 1), maxval=self.most)
        u = jax.random.uniform(draw, (batch, frames))
        # one frame is always left to denoise: the one with the largest draw
        return (u < p) & (u < jnp.max(u, 1, keepdims=True))
