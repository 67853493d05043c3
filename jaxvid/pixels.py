# SPDX-License-Identifier: Apache-2.0
"""The pictures, clips and masks that come with what is asked of a pipeline, as pixels of its size and rate."""

from __future__ import annotations

import os

import numpy as np

from jaxvid.request import number, short
from jaxvid.types import InputError


def read_picture(value, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] of ``size`` from a path, a PIL image or an array; resized and cropped to it. Raises `InputError`."""
    from jaxvid.data.images import fit, read_image

    if isinstance(value, (str, os.PathLike)):
        return read_image(value, size)
    if hasattr(value, "convert"):  # a PIL image
        value = np.asarray(value.convert("RGB"))
    return fit(_pixels(value, 3, "an image is a path, a PIL image or uint8 [H, W, 3]"), *size)


def read_clip(value, fps: float, size: tuple[int, int]) -> np.ndarray:
    """uint8 [T, H, W, 3] at ``fps`` and of ``size`` from a path, a `Clip` or an array (taken to be at ``fps``)."""
    from jaxvid.data.decode import read_video
    from jaxvid.data.images import fit

    if isinstance(value, (str, os.PathLike)):
        return read_video(value, fps=fps, size=size)[0]
    if hasattr(value, "frames") and hasattr(value, "fps"):
        if value.fps != fps:
            raise InputError(
                f"the clip has {value.fps:g} frames per second, not {fps:g}; save it and give the file"
            )
        value = value.frames
    frames = _pixels(value, 4, "a video is a path, a Clip or uint8 [T, H, W, 3]")
    return np.stack([fit(frame, *size) for frame in frames])


def read_images(value, frames: int, fps: float, size: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
    """[(frame, uint8 [H, W, 3]), ...] from [(seconds, image), ...]. Raises `InputError`."""
    if value is not None and not isinstance(value, (list, tuple)):
        raise InputError("images is a list of (seconds, image)")
    made = []
    for entry in value or ():
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise InputError(f"images holds {short(entry)}; wanted pairs (seconds, image)")
        frame = round(number(entry[0], "the time of an image", least=0) * fps)
        if frame >= frames:
            raise InputError(
                f"an image at {float(entry[0]):g} s is beyond the {frames / fps:g} s of the video"
            )
        made.append((frame, read_picture(entry[1], size)))
    return made


def read_mask(value, frames: int, size: tuple[int, int]) -> np.ndarray:
    """bool [T, H, W], True where a video is to be made anew: from booleans [H, W] or [T, H, W], or a picture's path, where
    bright is True. Raises `InputError`."""
    if isinstance(value, (str, os.PathLike)):
        value = read_picture(value, size).mean(-1) > 127
    value = np.asarray(value)
    shapes = (size, (frames, *size))
    if value.dtype != bool or value.shape not in shapes:
        raise InputError(
            f"the mask is {value.dtype} {list(value.shape)}; wanted a picture or bool {list(size)} or {list(shapes[1])}"
        )
    return np.broadcast_to(value, shapes[1])


def _pixels(value, axes: int, wanted: str) -> np.ndarray:
    value = np.asarray(value)
    if value.dtype != np.uint8 or value.ndim != axes or value.shape[-1] != 3 or not value.size:
        raise InputError(f"{wanted}; {value.dtype} {list(value.shape)} was given")
    return value
