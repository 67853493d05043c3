# SPDX-License-Identifier: Apache-2.0
"""Methods whose window holds frames at every level, so that a finished one leaves while a new one enters."""

from __future__ import annotations

from jaxvid.sampling.methods.method import Method, Setting
from jaxvid.sampling.stream import queue
from jaxvid.sampling.windows import partitions
from jaxvid.types import InputError


def fifo(setting: Setting, *, window: int = -1, ahead: bool = True, coherent: bool = False) -> Method:
    """A queue with one frame at each solver step; every row finishes one and takes in another.

    The queue is cut into the model's `window`s (-1: the checkpoint's, rounded to even); with `ahead` they overlap by a
    half and each frame is denoised in sight of half a window of cleaner ones. `coherent` makes the frame that enters share
    its low frequencies with the one before it (Ouroboros). The queue fills as a staircase: no frames are thrown away.
    """
    steps = setting.steps
    _check_window("fifo", window, max(setting.window, steps + 1))
    size = min(setting.window, steps) if window < 0 else window
    size += size % 2
    if size < 2:
        raise InputError(f"fifo window={window}: at least 2 latent frames")
    stride = size // 2 if ahead else size
    length = steps + (stride if ahead else 0)
    length = size + -(-max(length - size, 0) // stride) * stride
    segments = queue(setting.frames, steps, 1, window=length)
    split = partitions(length, size, ahead) if length > size else None
    return Method(segments, length, windows=split, tail=coherent)


def sliding(setting: Setting, *, ar_step: int = -1, block: int = 1, window: int = -1) -> Method:
    """AR-Diffusion's scheduler: blocks start `ar_step` rows one after the other, and a window slides along with them.

    `window` (-1: the checkpoint's, in whole blocks) must hold the ceil(steps / ar_step) blocks that are on their way; the
    rest of it looks back at finished ones. `ar_step` -1 is the least that leaves a third of the window to them.
    """
    if block < 1 or ar_step == 0:
        raise InputError(f"sliding ar_step={ar_step}, block={block}: both are at least 1")
    _check_window("sliding", window, max(setting.window, setting.frames))
    size = (setting.window if window < 0 else window) // block * block
    if ar_step < 0 and size:
        ar_step = -(-setting.steps // max(1, 2 * size // (3 * block)))
    return Method(queue(setting.frames, setting.steps, ar_step, block, size), size)


def _check_window(name: str, window: int, most: int) -> None:
    """A window that nothing could fill would be denoised all the same."""
    if window > most:
        raise InputError(
            f"{name} window={window} is more than it can use here; give at most {most} latent frames"
        )
