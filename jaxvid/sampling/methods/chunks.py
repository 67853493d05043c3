# SPDX-License-Identifier: Apache-2.0
"""Methods that finish a window, and then the next: all at once, chunk by chunk, keyframes first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxvid.diffusion.guidance import history_scheme
from jaxvid.sampling import plan as plans
from jaxvid.sampling.methods.method import Method, Setting
from jaxvid.sampling.plan import LevelPlan
from jaxvid.sampling.stream import Segment, chunks
from jaxvid.types import InputError


def oneshot(setting: Setting) -> Method:
    """All latent frames at once, at one level: ordinary video diffusion."""
    return _whole(setting, plans.together(setting.steps, setting.frames))


def rollout(setting: Setting, *, overlap: int = -1) -> Method:
    """Window after window; the past is a causal model's memory, or the last `overlap` latent frames (-1: the checkpoint's),
    shown clean."""
    if setting.causal:
        if overlap > 0:
            raise InputError(
                f"overlap={overlap}: a causal model remembers its past and is shown none of it again"
            )
        return remembered(setting)
    return _chunked(setting, _overlap(setting, overlap), lambda past: _held(setting, past))


def remembered(setting: Setting) -> Method:
    """Chunk after chunk; the past is the model's memory, written by one pass over each finished chunk."""
    window = min(setting.window, setting.frames)
    made = _chunked(setting, 0, lambda past: plans.together(setting.steps, window))
    return Method(made.segments, made.window, remembers=len(made.segments) > 1)


def far(setting: Setting) -> Method:
    """Chunk after chunk; the past is the model's memory, near frames whole and far ones coarse."""
    return remembered(setting)


def student(setting: Setting, *, overlap: int = -1) -> Method:
    """A distilled model in a few steps, noised afresh between them; over one window's length as in `rollout`."""
    return rollout(setting, overlap=overlap)


def skyreels(
    setting: Setting, *, overlap: int = -1, add_noise: float = 0.02, ar_step: int = 0, block: int = 1
) -> Method:
    """Window after window, the past shown slightly noised. `ar_step` > 0 is its asynchronous form: inside a window blocks of
    `block` latent frames start `ar_step` rows one after the other.

    `add_noise` is the level at which given frames are shown; they themselves stay as they are.
    """
    if block < 1 or ar_step < 0 or not 0 <= add_noise <= 1:
        raise InputError(
            f"skyreels block={block}, ar_step={ar_step}, add_noise={add_noise}: a block is at least 1, ar_step at least 0,"
            " and add_noise a level from 0 to 1"
        )
    past = _overlap(setting, overlap)
    window = min(setting.window, setting.frames)
    if window % block or past % block:
        raise InputError(
            f"block={block} does not divide the window of {window} latent frames and its overlap of {past};"
            " use a block that does"
        )
    plan = lambda past: plans.make_level_plan(window, setting.steps, ar_step, block, past)
    made = _chunked(setting, past, plan)
    return Method(
        made.segments, made.window, scheme=history_scheme(1.0, shown=add_noise) if add_noise else ()
    )


def history(
    setting: Setting, *, scale: float = 2.0, fraction: float = 0.0, shown: float = 0.02, overlap: int = -1
) -> Method:
    """Window after window, guided by its past: predictions that see it, against ones from which noise hides it.

    scale 1 is no guidance; fraction in (0, 1) compares with history that is hidden less (fractional guidance).
    `shown` stabilises: the past is shown at this level.
    """
    made = _chunked(setting, _overlap(setting, overlap), lambda past: _held(setting, past))
    return Method(made.segments, made.window, scheme=history_scheme(scale, fraction or None, shown))


def keyframes(setting: Setting, *, every: int = 8) -> Method:
    """Every `every`-th latent frame first, over the whole length, then what is between them."""
    return _whole(setting, plans.keyframes(setting.steps, setting.frames, every))


def _whole(setting: Setting, plan: LevelPlan) -> Method:
    return Method((Segment(plan, 0, setting.frames),), setting.frames)


def _overlap(setting: Setting, overlap: int) -> int:
    # a causal model's checkpoint has none: its past is in its memory
    overlap = (setting.overlap or setting.window // 2) if overlap < 0 else overlap
    if not 0 < overlap < setting.window:
        raise InputError(
            f"overlap={overlap} with windows of {setting.window} latent frames; use 1 to {setting.window - 1}"
        )
    return overlap


def _held(setting: Setting, past: int) -> LevelPlan:
    window = min(setting.window, setting.frames)
    plan = plans.together(setting.steps, window)
    return plans.given(plan, np.arange(window) < past) if past else plan


def _chunked(setting: Setting, overlap: int, plan: Callable[[int], LevelPlan]) -> Method:
    window = min(setting.window, setting.frames)
    if window == setting.frames:  # one window is enough, and has no past
        return _whole(setting, plan(0))
    return Method(chunks(setting.frames, window, overlap, plan), window)
