# SPDX-License-Identifier: Apache-2.0
"""Reading still images, and the resize and centre crop that images and video frames share."""

from __future__ import annotations

import math
import os
import struct

import numpy as np
from PIL import Image, ImageOps

from jaxvid.types import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 50_000_000


def read_image(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """A PNG, JPEG or WebP as uint8 ``[H, W, 3]``, upright; `size` = (height, width) resizes and crops to it.

    What is transparent lies on black. InputError names a file that is missing, damaged, no image, or too
    large.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path} is not a file; give the path of a PNG, JPEG or WebP")
    try:
        with open(path, "rb") as file:
            pixels = decode_image(file, str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return pixels if size is None else fit(pixels, *size)


def decode_image(file, name: str) -> np.ndarray:
    """An image as uint8 ``[H, W, 3]`` from an open file; errors call it `name`."""
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if math.prod(image.size) <= MAX_PIXELS:
                return _plain(ImageOps.exif_transpose(image))
            size = f"{image.width} x {image.height}"
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise InputError(
            f"{name} is not a readable PNG, JPEG or WebP image; it is damaged or of another kind"
        ) from error
    except Image.DecompressionBombError:
        size = "far too many"
    raise InputError(f"{name} has {size} pixels, more than the {MAX_PIXELS} allowed; make it smaller")


def _plain(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel
        gray = (np.asarray(image, np.float32) / 257).clip(0, 255).astype(np.uint8)
        return gray[..., None].repeat(3, 2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.asarray(image.convert("RGB"))


def middle_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle of uint8 ``[H, W, 3]`` as ``[side, side, 3]``, bicubic: how image encoders are shown pictures."""
    return fit(pixels, side, side, how=Image.Resampling.BICUBIC)


def fit(
    pixels: np.ndarray, height: int, width: int, aspect: float = 1.0, how: int = Image.Resampling.LANCZOS
) -> np.ndarray:
    """Resize uint8 ``[H, W, 3]`` and crop its centre so that it fills ``[height, width, 3]`` exactly.

    Antialiased (`how`), in one step from the largest centred box of the wanted shape. `aspect` is the shape
    of a pixel, its width over its height.
    """
    rows, columns = pixels.shape[:2]
    if (rows, columns) == (height, width) and aspect == 1:
        return pixels
    scale = min(rows / height, columns * aspect / width)
    box_height, box_width = scale * height, scale * width / aspect
    top, left = (rows - box_height) / 2, (columns - box_width) / 2
    box = (max(left, 0), max(top, 0), min(left + box_width, columns), min(top + box_height, rows))
    image = Image.fromarray(pixels).resize((width, height), how, box=box)
    return np.asarray(image)
