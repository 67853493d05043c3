# SPDX-License-Identifier: Apache-2.0
"""Reading still images, and the resize and centre crop that images and video frames share."""

from __future__ import annotations

import math
import os
import pathlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxvid.types import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 50_000_000


def read_image(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """A PNG, JPEG or WebP as uint8 ``[H, W, 3]``, upright; `size` = (height, width) resizes and crops to it.

    What is transparent lies on black. InputError names a file that is missing, damaged, no image, or too
    large.
    """
    path = pathlib.Path(path)
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file; give the path of a PNG, JPEG or WebP")
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise InputError(
                    f"{path} has {image.width} x {image.height} pixels, more than the {MAX_PIXELS} allowed; "
                    "make it smaller"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I") or upright.mode == "F":  # 16 bits a pixel
                upright = Image.fromarray(
                    (np.asarray(upright, np.float32) / 257).clip(0, 255).astype(np.uint8)
                )
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
            pixels = np.asarray(upright.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"cannot read {path} as a PNG, JPEG or WebP image; it is damaged or of another kind"
        ) from error
    return pixels if size is None else fit(pixels, *size)


def fit(pixels: np.ndarray, height: int, width: int, aspect: float = 1.0) -> np.ndarray:
    """Resize uint8 ``[H, W, 3]`` and crop its centre so that it fills ``[height, width, 3]`` exactly.

    Antialiased (Lanczos), in one step from the largest centred box of the wanted shape. `aspect` is the shape
    of a pixel, its width over its height.
    """
    rows, columns = pixels.shape[:2]
    if (rows, columns) == (height, width) and aspect == 1:
        return pixels
    scale = min(rows / height, columns * aspect / width)
    box_height, box_width = scale * height, scale * width / aspect
    top, left = (rows - box_height) / 2, (columns - box_width) / 2
    box = (max(left, 0), max(top, 0), min(left + box_width, columns), min(top + box_height, rows))
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image)
