# SPDX-License-Identifier: Apache-2.0
"""Windows over a video that is longer than what a network is good at, and weights that blend what they say.

A window plan has a window of `length` frames at each `start`, and for every window a weight for each frame of the
video; on every frame the weights of all windows add up to one. `windowed` calls a network window by window and adds its
predictions so weighted. With a deterministic solver that is the same as averaging the windows' next steps.

    pyramid, uniform   smooth blends                      FreeNoise, Gen-L-Video
    random_cuts        one window for each frame, another choice in every row    StreamingT2V
    partitions         one window for each frame: a queue's noisier half         FIFO-Diffusion

Ref: Qiu et al., FreeNoise, arXiv 2310.15169; Wang et al., Gen-L-Video, arXiv 2305.18264; Henschel et al., StreamingT2V,
arXiv 2403.14773; Kim et al., FIFO-Diffusion, arXiv 2405.11473.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.diffusion.schedule import over_frames
from jaxvid.types import Array, Cond, InputError, Memory, Network

WEIGHTS = ("pyramid", "uniform")


@dataclasses.dataclass(frozen=True, eq=False)
class WindowPlan:
    """start int32 [Nw], weight float32 [Nw, F] with columns that sum to 1, zero outside of its window; length in frames.

    Compared and hashed by content.
    """

    start: Any
    weight: Any
    length: int

    def __post_init__(self):
        object.__setattr__(self, "start", np.asarray(self.start, np.int32))
        object.__setattr__(self, "weight", np.asarray(self.weight, np.float32))

    def __eq__(self, other):
        return isinstance(other, WindowPlan) and self._content() == other._content()

    def __hash__(self):
        return hash(self._content())

    def _content(self):
        return self.length, self.start.tobytes(), self.weight.shape, self.weight.tobytes()


def pyramid(length: int) -> np.ndarray:
    """1, 2, .. and down again to 1, highest in the middle: float64 [length]."""
    return np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float64)


def window_starts(frames: int, window: int, stride: int) -> np.ndarray:
    """0, stride, 2 stride, .. and, where the stride does not fit, a last window that ends with the video: int32 [Nw]."""
    if not 1 <= stride <= window <= frames:
        raise InputError(
            f"windows of {window} frames every {stride} over {frames}: wanted 1 <= stride <= window <= frames"
        )
    starts = list(range(0, frames - window + 1, stride))
    if starts[-1] != frames - window:
        starts.append(frames - window)
    return np.asarray(starts, np.int32)


def window_plan(frames: int, window: int, stride: int, weights: str = "pyramid") -> WindowPlan:
    """Overlapping windows that cover a video of `frames`; weights 'pyramid' (least at a window's ends) or 'uniform'."""
    if weights not in WEIGHTS:
        raise InputError(f"weights={weights!r} is not known; choose one of {', '.join(WEIGHTS)}")
    start = window_starts(frames, window, stride)
    shape = pyramid(window) if weights == "pyramid" else np.ones(window)
    weight = _placed(start, np.broadcast_to(shape, (len(start), window)), frames)
    return WindowPlan(start, weight / weight.sum(0), window)


def random_cuts(plan: WindowPlan, draw: np.random.Generator) -> WindowPlan:
    """The same windows, each frame taken whole from one of them: a window takes over at a random place of its overlap
    with the one before. In expectation a linear ramp."""
    start, length, frames = plan.start, plan.length, plan.weight.shape[1]
    owner = np.zeros(frames, int)
    for j in range(1, len(start)):
        overlap = int(start[j - 1] + length - start[j])
        owner[start[j] + (int(draw.integers(overlap)) if overlap > 0 else 0) :] = j
    return WindowPlan(start, owner[None] == np.arange(len(start))[:, None], length)


def partitions(frames: int, window: int, ahead: bool = True) -> WindowPlan:
    """A queue cut into windows, each frame written by one of them.

    With lookahead windows overlap by a half and write only their later, noisier half, so that every frame is denoised
    in sight of half a window of cleaner ones; the first window writes all of its frames.
    """
    stride = window // 2 if ahead else window
    if window < 1 or (ahead and window % 2) or frames < window or (frames - window) % stride:
        raise InputError(
            f"a queue of {frames} frames does not split into windows of {window} every {stride};"
            " use an even window that divides it"
        )
    start = np.arange(0, frames - window + 1, stride)
    first = np.where(start == 0, 0, window - stride)
    write = np.arange(window)[None] >= first[:, None]
    return WindowPlan(start, _placed(start, write.astype(np.float64), frames), window)


def _placed(start: np.ndarray, values: np.ndarray, frames: int) -> np.ndarray:
    weight = np.zeros((len(start), frames))
    for row, at, value in zip(weight, start, values, strict=True):
        row[at : at + len(value)] = value
    return weight


def windowed(network: Network, plan: WindowPlan, weight: Array | None = None) -> Network:
    """A network for videos [B, F, ...] from one for windows: called on each window with that window's levels and
    captions, predictions added by weight. One window in memory at a time.

    `weight[Nw, F]` takes the place of the plan's and may be traced. Windows do not remember: the memory must be None.
    """
    frames = plan.weight.shape[1]
    weight = jnp.asarray(plan.weight if weight is None else weight)

    def call(x: Array, t: Array, cond: Cond, memory: Memory = None) -> tuple[Array, Memory]:
        if memory is not None or x.shape[1] != frames:
            raise InputError(
                f"windows over {frames} frames were given {x.shape[1]} frames and"
                f" {'no' if memory is None else 'a'} memory; they take as many frames, and none"
            )

        def one(total: Array, place: tuple[Array, Array]):
            start, w = place
            cut = lambda a: jax.lax.dynamic_slice_in_dim(a, start, plan.length, 1)
            out = network(cut(x), cut(t), _over_frames(cut, cond), None)[0]
            w = jax.lax.dynamic_slice_in_dim(w, start, plan.length, 0)[None]
            out = jnp.where(over_frames(w, out) > 0, over_frames(w, out).astype(out.dtype) * out, 0)
            return jax.lax.dynamic_update_slice_in_dim(total, cut(total) + out, start, 1), None

        first = lambda a: a[:, : plan.length]
        like = jax.eval_shape(network, first(x), first(t), _over_frames(first, cond), None)[0]
        total = jnp.zeros((*x.shape[:2], *like.shape[2:]), like.dtype)
        return jax.lax.scan(one, total, (jnp.asarray(plan.start), weight))[0], None

    return call


def _over_frames(cut, cond: Cond) -> dict[str, Array]:
    """What is said about frames, cut; what is said about the whole, as it is."""
    return {
        name: cut(value) if name in ("span", "early_span", "given") else value for name, value in cond.items()
    }
