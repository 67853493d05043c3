# SPDX-License-Identifier: Apache-2.0
"""A video as a sequence of segments: rows of a plan on a window, then the window moves on.

Everything that generates beyond one window is such a sequence, over the same loop (`sample.rows`):

    chunks   a window is finished, moves on by all but its last `overlap` frames, which are the next one's past
    queue    a window holds frames at every level; after `lag` rows its oldest block is finished and it moves on by a block

Between segments `advance` takes finished frames off the head of the window and puts new ones at its end; frames in the
middle of their way keep their level, their place and their solver's history. Shapes never change, so that whatever the
length it is compiled once, in constant memory.

Ref: chunks: Chen et al., SkyReels-V2, arXiv 2504.13074; queues: Kim et al., FIFO-Diffusion, arXiv 2405.11473, and Sun et
al., AR-Diffusion, arXiv 2503.07418.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.sampling.plan import LevelPlan
from jaxvid.sampling.sample import Carry
from jaxvid.sampling.solvers import Solver
from jaxvid.types import Array, InputError


class Segment(NamedTuple):
    """Rows to follow on the window that begins at frame `start`; then the first `ready` frames of the video are finished."""

    plan: LevelPlan
    start: int
    ready: int


def chunk_starts(frames: int, window: int, overlap: int) -> list[int]:
    """Where the windows of a chunked video begin; the last one may reach beyond its end.

    65 frames in windows of 25 with 5 of overlap: 0, 20, 40.
    """
    if not 0 <= overlap < window or frames < 1:
        raise InputError(
            f"{frames} frames in windows of {window} with an overlap of {overlap}: the overlap must be the smaller one"
        )
    count = 1 + max(-(-(frames - window) // (window - overlap)), 0)
    return [number * (window - overlap) for number in range(count)]


def chunks(frames: int, window: int, overlap: int, plan: Callable[[int], LevelPlan]) -> tuple[Segment, ...]:
    """One window after the other. `plan(past)` is that of a window whose first `past` frames (0 or overlap) are given."""
    first, later = plan(0), None
    segments = []
    for start in chunk_starts(frames, window, overlap):
        if start and later is None:
            later = plan(overlap)
        segments.append(Segment(later if start else first, start, min(start + window, frames)))
    return tuple(segments)


def queue(
    frames: int, steps: int, lag: int, block: int = 1, window: int | None = None
) -> tuple[Segment, ...]:
    """A staircase without end: blocks start `lag` rows one after the other, and a window moves along with them.

    The window must hold all ceil(steps / lag) blocks that are on their way; what it is longer than that (None: nothing)
    holds finished frames in front of them, in whole blocks. Goes on until the first `frames` frames are finished.
    It takes steps + lag (frames / block - 1) rows.

    FIFO-Diffusion's diagonal is lag 1; AR-Diffusion's sliding window is a larger one.
    """
    if lag < 1 or steps < 1 or block < 1:
        raise InputError(f"queue of lag={lag}, steps={steps}, block={block}: all are at least 1")
    alive = -(-steps // lag)
    window = alive * block if window is None else window
    if window % block or window < alive * block:
        raise InputError(
            f"a window of {window} latent frames cannot hold the {alive} blocks of {block} that {steps} steps with an"
            f" ar_step of {lag} keep on their way; use {alive * block} frames, a larger ar_step, or fewer steps"
        )
    blocks, size = -(-frames // block), window // block
    segments, row = [], 0
    for number in range(blocks):
        done = steps + lag * number  # the row after which this block is finished
        start = max(0, min(number + alive, blocks) - size)
        index = start + np.arange(size)
        k = np.clip(np.arange(row + 1, done + 1)[:, None] - lag * index[None], 0, steps + 1)
        k = np.repeat(k, block, 1)
        segments.append(
            Segment(LevelPlan(k, (k >= 1) & (k <= steps)), start * block, min((number + 1) * block, frames))
        )
        row = done
    return tuple(segments)


def full_queue(frames: int, steps: int, clip: int) -> tuple[tuple[Segment, ...], np.ndarray]:
    """FIFO-Diffusion's own beginning: (segments, int [steps]), a queue that is full from its first row on.

    It is filled with a finished clip of `clip` frames: its place i holds the clip's frame source[i], noised to that place's
    level, the last places the whole clip and those before them its first frame again. So the first steps - clip frames that
    come out are to be thrown away: the segments, a row each, are those of steps - clip + frames.

    `queue` with a lag of 1 needs no clip and throws nothing away; it takes steps + frames - 1 rows.
    """
    if not 1 <= clip <= steps or frames < 1:
        raise InputError(
            f"a queue of {steps} places cannot be filled with a clip of {clip}; use 1 to {steps}"
        )
    k = np.arange(steps, 0, -1)[None]
    plan = LevelPlan(k, np.ones_like(k, bool))
    rows = frames + steps - clip
    return tuple(Segment(plan, row, row + 1) for row in range(rows)), np.maximum(
        np.arange(steps) - (steps - clip), 0
    )


def advance(solver: Solver, carry: Carry, new: Array) -> Carry:
    """The window moved on by as many frames as are in `new` [B, n, ...], which come in at its end at level 1."""
    by, frames = new.shape[1], carry.x.shape[1]
    x = jnp.concatenate([carry.x[:, by:], new.astype(carry.x.dtype)], 1)

    def moved(old: Array, fresh: Array) -> Array:
        """Solvers keep their history for each frame, [B, F, ..]; what has no such axes is about no frame."""
        if old.ndim < 2 or old.shape[:2] != x.shape[:2]:
            return old
        return jnp.concatenate([old[:, by:], fresh[:, frames - by :]], 1)

    return Carry(x, jax.tree.map(moved, carry.state, solver.init(x)), carry.row, carry.bad)
