# SPDX-License-Identifier: Apache-2.0
"""What a forward pass of a video transformer costs, by formula: the products of matrices, layer by layer.

Letters: N tokens, d width, L text tokens, E text width, I inner width of a scan, Q tokens of its chunk, n its state,
H its heads, G its groups, w tokens of a window. A multiply-add is two operations.

    attention    8 N d^2 + 4 N^2 d
    window       8 N d^2 + 4 N w d
    scan         2 N d (2 I + 2 G n + H) + 2 N I d  +  2 N' (2 K (I + 2 G n) + 2 Q n G + 2 Q I + 4 n I)
    cross        4 N d^2 + 4 L E d + 4 N L d
    feed         4 ratio N d^2
    refine       2 P N d r + 18 P N r (2 C + 2 r b) + 4 t d r b, of r channels and b blocks, P latents a token, t frames

where N' counts review tokens too, and the scan runs both ways. Beside layers there are the patch, its inverse and
what noise levels say, once a frame. Convolutions over K neighbours count as element-wise work in `eval.flops` and are
left out of `products` here as well.

Ref: LinGen, arXiv:2412.09856.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Latents [T, rows, columns, C] in patches, and the length of the text."""

    frames: float
    rows: int
    columns: int
    text: int

    def tokens(self, patch: tuple[int, int, int]) -> float:
        return self.frames * self.rows * self.columns / math.prod(patch)


def formula(model: Any, geometry: Geometry, chunk: int = 64) -> float:
    """Operations in products of one forward pass of a `VideoDiT` at batch 1; ``chunk`` where a scan does not say.

    Exact where windows and chunks divide what they cut.
    """
    tokens, width = geometry.tokens(model.patch), model.width
    layer = sum(_mixer(m, geometry, model, chunk) for m in model.mixers) / len(model.mixers)
    layer += 4 * tokens * width**2 + 4 * geometry.text * model.text_width * width
    layer += 4 * tokens * geometry.text * width
    layer += 4 * model.ratio * tokens * width**2
    frames = geometry.frames / model.patch[0]
    size = math.prod(model.patch) * model.channels
    ends = 4 * tokens * size * width
    levels = frames * width * (6 + 2) * width * 2
    head = 0.0
    if model.refine is not None:
        r, blocks, places = model.refine.width, model.refine.blocks, tokens * math.prod(model.patch)
        head = 2 * places * width * r + 18 * places * r * (2 * model.channels + 2 * r * blocks)
        head += 4 * frames * width * r * blocks
    return len(model.mixers) * model.repeats * layer + ends + levels + head


def _mixer(mixer: Any, geometry: Geometry, model: Any, chunk: int) -> float:
    tokens, width = geometry.tokens(model.patch), model.width
    if hasattr(mixer, "far"):  # MATE: both branches
        return _mixer(mixer.far, geometry, model, chunk) + _mixer(mixer.near, geometry, model, chunk)
    if hasattr(mixer, "state"):
        inner, heads, _ = mixer.sizes(width)
        review = 1 + (1 / math.prod(mixer.review) if mixer.review else 0)
        q, n, g = mixer.chunk or chunk, mixer.state, mixer.groups
        projections = 2 * width * (2 * inner + 2 * g * n + heads) + 2 * inner * width
        scan = 2 * q * n * g + 2 * q * inner + 4 * n * inner
        return tokens * projections + 2 * tokens * review * scan
    seen = tokens
    if isinstance(mixer.window, tuple):
        grid = [
            s / p
            for s, p in zip((geometry.frames, geometry.rows, geometry.columns), model.patch, strict=True)
        ]
        seen = math.prod(min(w, s) for w, s in zip(mixer.window, grid, strict=True))
    return 8 * tokens * width**2 + 4 * tokens * seen * width


def break_even(one: Any, other: Any, geometry: Geometry, chunk: int = 64) -> float | None:
    """Tokens beyond which ``one`` costs less than ``other`` by formula; 0: always, None: never.

    Frames vary, their size does not. Both costs are polynomials of degree 2 in the frames, up to clipped windows.
    """
    frames = np.array([64.0, 128.0, 256.0])

    def gap(t: float) -> float:
        here = dataclasses.replace(geometry, frames=t)
        return formula(other, here, chunk) - formula(one, here, chunk)

    roots = np.roots(np.polyfit(frames, [gap(t) for t in frames], 2))
    positive = sorted(r.real for r in roots if abs(r.imag) < 1e-9 and r.real > 0)
    if gap(1e6) <= 0:
        return None
    return geometry.tokens(one.patch) / geometry.frames * positive[-1] if positive else 0.0
