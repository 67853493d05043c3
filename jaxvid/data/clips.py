# SPDX-License-Identifier: Apache-2.0
"""The two values a source of data deals in: the shape of a clip, and a clip with its captions."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """How long, how large and how fast a clip is. One frame is an image.

    frames: number of pixel frames; height, width: in pixels; fps: frames per second.
    """

    frames: int
    height: int
    width: int
    fps: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """One clip and what is said about it.

    x: uint8 ``[T, H, W, 3]``, or float32 latents ``[T, h, w, C]``.
    captions: ``((frame, text), ...)``, each text speaking from its (pixel) frame on; the first frame is 0 and
    frames increase.
    """

    x: Any
    captions: tuple[tuple[int, str], ...]
