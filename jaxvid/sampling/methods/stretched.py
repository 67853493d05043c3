# SPDX-License-Identifier: Apache-2.0
"""Methods that denoise the whole length together, with a model that was trained on less."""

from __future__ import annotations

import jax
import numpy as np

from jaxvid.sampling import plan as plans
from jaxvid.sampling.edits import DiagonalBias, SpectralBlend, WindowFusion
from jaxvid.sampling.methods.method import Method, Setting
from jaxvid.sampling.noise import freenoise_indices
from jaxvid.sampling.stream import Segment
from jaxvid.sampling.windows import WindowPlan, window_plan
from jaxvid.types import InputError


def genl(
    setting: Setting, *, window: int = -1, stride: int = -1, weights: str = "uniform", shuffle: bool = False
) -> Method:
    """Overlapping windows denoised together, each frame the mean of its windows. `stride` -1 is half a window; `weights`
    uniform or pyramid; `shuffle` gives the windows FreeNoise's noise."""
    plan = _windows(setting, window, stride, weights)
    numbers = _shuffled(setting, plan.length, _stride(plan)) if shuffle else None
    return _whole(setting, windows=_several(plan), numbers=numbers)


def blend(setting: Setting, *, window: int = -1, overlap: int = -1) -> Method:
    """Overlapping windows denoised together, each frame taken whole from one of them: where one takes over is drawn anew in
    every row (randomised blending). `overlap` -1 is a third of a window."""
    size = _size(setting, window)
    over = size // 3 if overlap < 0 else overlap
    if over >= size:
        raise InputError(f"blend overlap={over} with windows of {size} latent frames; use 0 to {size - 1}")
    plan = window_plan(setting.frames, size, size - over, "uniform")
    return _whole(setting, windows=_several(plan), cuts=len(plan.start) > 1)


def freenoise(setting: Setting, *, window: int = -1, stride: int = 4, inject: bool = True) -> Method:
    """Noise that repeats in shuffled groups, and temporal attention fused over windows.

    `inject` (of motion): the early half of the layers hears a story's last caption on all frames, but for the steps between
    a tenth and three tenths of the way.
    """
    size = _size(setting, window)
    stride = min(stride, size)
    return _whole(
        setting,
        numbers=_shuffled(setting, size, stride),
        edit=WindowFusion(size, stride),
        injects=(0.1, 0.3) if inject else None,
    )


def freelong(setting: Setting, *, window: int = -1, space: float = 0.25, time: float = 0.25) -> Method:
    """Temporal attention whose low frequencies are those of all frames, and whose high ones are those of a window."""
    if not (space > 0 and time > 0):
        raise InputError(f"freelong space={space:g}, time={time:g}: shares of the highest frequency, above 0")
    return _whole(setting, edit=SpectralBlend(_size(setting, window), space, time))


def vstar(setting: Setting, *, width: float = 4.0, bias: float = 1.0, share: float = 0.26) -> Method:
    """Temporal attention drawn to its diagonal, over `width` latent frames by `bias`, in the first `share` of the steps."""
    if not (width > 0 and 0 <= share <= 1):
        raise InputError(f"vstar width={width:g}, share={share:g}: wanted width > 0 and 0 <= share <= 1")
    edited = round(share * setting.steps)
    return _whole(setting, edit=DiagonalBias(width, bias), edited=edited)


def _whole(setting: Setting, **values) -> Method:
    plan = plans.together(setting.steps, setting.frames)
    return Method((Segment(plan, 0, setting.frames),), setting.frames, **values)


def _size(setting: Setting, window: int) -> int:
    return min(setting.window if window < 0 else window, setting.frames)


def _stride(plan: WindowPlan) -> int:
    return int(plan.start[1]) if len(plan.start) > 1 else plan.length


def _several(plan: WindowPlan) -> WindowPlan | None:
    return plan if len(plan.start) > 1 else None


def _windows(setting: Setting, window: int, stride: int, weights: str) -> WindowPlan:
    size = _size(setting, window)
    return window_plan(setting.frames, size, max(size // 2, 1) if stride < 0 else min(stride, size), weights)


def _shuffled(setting: Setting, window: int, stride: int) -> np.ndarray:
    # The order is the method's and not a video's: a video must not depend on the batch it is made in.
    return np.asarray(freenoise_indices(jax.random.key(0), setting.frames, window, stride))
