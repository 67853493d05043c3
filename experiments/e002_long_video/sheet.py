# SPDX-License-Identifier: Apache-2.0
"""Strips of frames, one a method, and the picture that has them all below each other."""

import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

COUNT, LABEL, GAP = 12, 110, 2  # frames in a strip; pixels for names, and between strips


def save_strip(path: pathlib.Path, frames: np.ndarray) -> None:
    """The middles of ``COUNT`` equal stretches of frames uint8 [T, H, W, 3], side by side."""
    at = (np.arange(COUNT) + 0.5) * len(frames) / COUNT
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(frames[at.astype(int)]), 1)).save(path)


def save_sheet(path: pathlib.Path, strips: Mapping[str, pathlib.Path]) -> None:
    """All strips with their names; nothing where there are none."""
    rows = []
    for name, strip in strips.items():
        picture = np.asarray(Image.open(strip).convert("RGB"))
        label = Image.new("RGB", (LABEL, len(picture)), "white")
        ImageDraw.Draw(label).text((4, len(picture) // 2 - 6), name, fill="black")
        rows.append(np.concatenate([np.asarray(label), picture], 1))
        rows.append(np.full((GAP, *rows[-1].shape[1:]), 255, np.uint8))
    if rows:
        Image.fromarray(np.concatenate(rows[:-1])).save(path)
