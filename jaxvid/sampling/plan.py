# SPDX-License-Identifier: Apache-2.0
"""Level plans: which noise level each frame has at each model call.

A plan has a row for each model call and a column for each latent frame. With S solver steps, `k[r, f]` is

    0        untouched noise            1..S     evaluated at t_k; where `update[r, f]`, then moved to t_{k+1}
    S + 1    finished, or given clean

and a time table of S + 2 levels, t_0 = t_1 = 1 > t_2 > .. > t_{S+1} = 0, says what t_k is. Plans are numpy, computed
before anything is traced; a plan is hashable, or its two arrays are passed to a compiled function.

Ref: Chen et al., Diffusion Forcing, arXiv 2407.01392; Sun et al., AR-Diffusion, arXiv 2503.07418; Chen et al.,
SkyReels-V2, arXiv 2504.13074.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxvid.types import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class LevelPlan:
    """k int32 [R, F] and update bool [R, F]; read-only, compared and hashed by content."""

    k: Any
    update: Any

    def __post_init__(self):
        k, update = np.array(self.k, np.int32), np.array(self.update, bool)
        if k.ndim != 2 or k.shape != update.shape:
            raise InputError(
                f"plan of k{list(k.shape)} and update{list(update.shape)}: both must be [rows, frames]"
            )
        k.flags.writeable = update.flags.writeable = False
        object.__setattr__(self, "k", k)
        object.__setattr__(self, "update", update)

    @property
    def rows(self) -> int:
        """How many model calls it takes."""
        return self.k.shape[0]

    @property
    def frames(self) -> int:
        return self.k.shape[1]

    @property
    def steps(self) -> int:
        """S of a plan that finishes, the last level that a frame is moved from."""
        return int(self.k[self.update].max(initial=0))

    def __eq__(self, other):
        if not isinstance(other, LevelPlan):
            return NotImplemented
        return np.array_equal(self.k, other.k) and np.array_equal(self.update, other.update)

    def __hash__(self):
        return hash((self.k.shape, self.k.tobytes(), self.update.tobytes()))


def from_starts(start: Sequence[int] | np.ndarray, steps: int, given: np.ndarray | None = None) -> LevelPlan:
    """The plan in which frame f starts `start[f] >= 0` rows late; frames where `given[f]` are clean throughout.

    k[n, f] = clip(n - start[f], 0, S + 1) in rows n = 1 .. max(start) + S. Keyframes first is
    start = 0 on keyframes, S elsewhere; a fractional pyramid is floor(u f).
    """
    start = np.asarray(start, np.int64)
    given = np.zeros(start.shape, bool) if given is None else np.asarray(given, bool)
    if steps < 1:
        raise InputError(f"steps={steps}: a plan needs at least 1")
    if start.ndim != 1 or start.shape != given.shape or not start.size:
        raise InputError(
            f"starts{list(start.shape)} and given{list(given.shape)}: both must be one number per frame"
        )
    if (start[~given] < 0).any():
        raise InputError(
            f"start={start[~given].min()}: a frame cannot start before the first row; use 0 or more"
        )
    if given.all():
        raise InputError(f"all {start.size} frames are given; leave at least one to be made")
    n = np.arange(1, start[~given].max() + steps + 1)[:, None]
    k = np.where(given, steps + 1, np.clip(n - start, 0, steps + 1))
    return LevelPlan(k, (k >= 1) & (k <= steps))


def make_level_plan(num_frames: int, steps: int, ar_step: int, block: int = 1, prefix: int = 0) -> LevelPlan:
    """Blocks of frames that start `ar_step` solver steps one after the other, behind `prefix` clean frames.

    ar_step 0 denoises all frames together, `steps` or more is autoregressive (block after block), between them is a
    staircase. `num_frames`, `block` and `prefix` count latent frames; `block` divides the other two. It takes
    steps + (blocks - 1) * min(ar_step, steps) rows, blocks being those after the prefix.
    """
    if num_frames < 1 or block < 1 or ar_step < 0 or prefix < 0:
        raise InputError(
            f"num_frames={num_frames}, block={block}, ar_step={ar_step}, prefix={prefix}: "
            "frames and blocks are at least 1, the rest at least 0"
        )
    if num_frames % block or prefix % block:
        raise InputError(
            f"block={block} does not divide num_frames={num_frames} and prefix={prefix}; "
            f"pad to {-(-num_frames // block) * block} and {-(-prefix // block) * block} latent frames or use block=1"
        )
    if prefix >= num_frames:
        raise InputError(
            f"prefix={prefix} leaves nothing of num_frames={num_frames} to be made; use a shorter prefix"
        )
    index = np.repeat(np.arange(num_frames // block), block) - prefix // block
    return from_starts(np.maximum(index, 0) * min(ar_step, steps), steps, index < 0)


def together(steps: int, frames: int) -> LevelPlan:
    """All frames at the same level in every row: ordinary video diffusion."""
    return make_level_plan(frames, steps, 0)


def staircase(steps: int, frames: int, lag: int, block: int = 1) -> LevelPlan:
    """Each block of frames starts `lag` rows after the one before it."""
    return make_level_plan(frames, steps, lag, block)


def given(plan: LevelPlan, mask: Sequence[bool] | np.ndarray) -> LevelPlan:
    """The same plan with frames [F] held clean where `mask`; rows in which nothing is left to do are dropped."""
    mask = np.asarray(mask, bool)
    if mask.shape != (plan.frames,):
        raise InputError(
            f"given mask{list(mask.shape)} for a plan of {plan.frames} frames; one value per frame is wanted"
        )
    if mask.all():
        raise InputError(f"all {plan.frames} frames are given; leave at least one to be made")
    k, update = np.where(mask, plan.steps + 1, plan.k), plan.update & ~mask
    busy = update.any(1)
    return LevelPlan(k[busy], update[busy])


def keyframes(steps: int, frames: int, every: int) -> LevelPlan:
    """Every `every`-th frame and the last one first, all together; then the frames between them, which see them clean.

    Ref: keyframes, then interpolation: Song et al., DFoT, arXiv 2502.06764.
    """
    if not 1 <= every:
        raise InputError(f"every={every}: keyframes are at least 1 latent frame apart")
    key = (np.arange(frames) % every == 0) | (np.arange(frames) == frames - 1)
    return from_starts(np.where(key, 0, steps), steps)


def from_level(plan: LevelPlan, first: int) -> LevelPlan:
    """The same plan for frames that begin at level `first`, not at 1: a video that is noised in part and made anew.

    Frames wait at `first` until their turn; rows in which nothing is left to do are dropped.

    Ref: Meng et al., SDEdit, arXiv 2108.01073.
    """
    steps = plan.steps
    if not 1 <= first <= steps:
        raise InputError(f"first level {first} is not in 1..{steps}")
    k, update = np.maximum(plan.k, first), plan.update & (plan.k >= first)
    busy = update.any(1)
    return LevelPlan(k[busy], update[busy])


def strength_level(strength: float, times: Sequence[float] | np.ndarray) -> int:
    """The first level of a time table [S + 2] that is not above `strength` in (0, 1]: where to begin. 1 is all noise."""
    times = np.asarray(times)
    if not 0 < strength <= 1:
        raise InputError(f"strength={strength}: wanted a noise level in (0, 1]; 1 makes all of it anew")
    return min(1 + int(np.sum(times[1:-1] > strength + 1e-6)), len(times) - 2)


def check(plan: LevelPlan, steps: int, frames: int | None = None, finishes: bool = True) -> LevelPlan:
    """`plan` itself if a solver can follow it, an InputError that names the first offence otherwise.

    Levels are 0 .. steps + 1; only levels 1 .. steps are updated; a frame's next level is its level, one more where it
    was updated; untouched frames (0) may enter level 1 at any row. With `finishes`, every frame ends at steps + 1.
    """
    k, update = plan.k, plan.update
    if frames is not None and plan.frames != frames:
        raise InputError(
            f"the plan is for {plan.frames} frames, the video has {frames}; make one for {frames}"
        )
    if not plan.rows:
        raise InputError("the plan has no rows; it needs one for each model call")
    _refuse((k < 0) | (k > steps + 1), k, f"is not in 0..{steps + 1}")
    _refuse(update & ((k < 1) | (k > steps)), k, f"is updated; only 1..{steps} can be")
    moved = k[:-1] + update[:-1]
    _refuse(
        (k[1:] != moved) & ~((k[:-1] == 0) & (k[1:] == 1)), k[1:], "does not follow from the row before", 1
    )
    if finishes:
        _refuse(
            (k[-1:] + update[-1:]) != steps + 1,
            k[-1:],
            f"is left unfinished (wanted {steps + 1})",
            plan.rows - 1,
        )
    return plan


def _refuse(bad: np.ndarray, k: np.ndarray, why: str, first_row: int = 0) -> None:
    if bad.any():
        row, frame = np.argwhere(bad)[0]
        raise InputError(f"plan row {row + first_row}, frame {frame}: level {k[row, frame]} {why}")


def time_table(steps: int, shift: float = 1.0) -> np.ndarray:
    """Levels float32 [S + 2]: t_0 = t_1 = 1, then evenly spaced and moved by `shift` (> 1: towards the noise), to 0.

    shift 5, 4 steps: 1, 1, 0.9375, 0.8333, 0.625, 0.

    Ref: Esser et al., arXiv 2403.03206 (section 5.3.2).
    """
    if steps < 1 or not shift > 0:
        raise InputError(
            f"time_table(steps={steps}, shift={shift}): steps must be at least 1, shift positive"
        )
    t = np.arange(steps, -1, -1) / steps
    t = shift * t / (1 + (shift - 1) * t)
    return np.concatenate([[1.0], t]).astype(np.float32)
