# SPDX-License-Identifier: Apache-2.0
"""Parts of frames that are given: a mask in space and time, for inpainting and outpainting.

A frame has one noise level, so a given part cannot be shown clean beside an unfinished one: it is shown at its frame's
level, and is itself at the end.

Ref: Lugmayr et al., RePaint, arXiv 2201.09865 (without its going back and forth).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxvid.diffusion.schedule import RectifiedFlow, Schedule, add_noise, over_frames
from jaxvid.sampling.solvers import Solver
from jaxvid.types import Array


def inpainting(
    solver: Solver, keep: Array, value: Array, noise: Array, schedule: Schedule = RectifiedFlow()
) -> Solver:
    """`solver` for a video of which `value` [B, F, H, W, C] is given where `keep` bool [B, F, H, W].

    After every step given parts are what the video would be at their frame's level with `noise` [B, F, H, W, C]; at
    t = 0 they are `value` bit for bit. Start from that same noise.
    """

    def step(guess, x: Array, t: Array, t_next: Array, state, noise_of):
        x, state = solver.step(guess, x, t, t_next, state, noise_of)
        known = add_noise(schedule, value.astype(x.dtype), noise.astype(x.dtype), t_next)
        moved = over_frames(t_next != t, x) & keep[..., None]
        return jnp.where(moved, known, x), state

    return Solver(solver.init, step)
