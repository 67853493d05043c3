# SPDX-License-Identifier: Apache-2.0
"""Captions that pass into each other: around a border in time the text is a mixture of the captions on both sides.

A mixture is a caption of its own, so that networks see nothing new: more spans, and frames that point at them.

Ref: Qiu et al., FreeNoise, arXiv 2310.15169 (prompts interpolated over frames); Li et al., VSTAR, arXiv 2403.13501.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxvid.types import InputError

RUNGS = 4  # mixtures at a border


def spans_for(captions: int, seconds: float) -> int:
    """How many captions there are with the mixtures between them; `seconds` 0: none."""
    return captions + (RUNGS * (captions - 1) if seconds else 0)


def fade(
    text: np.ndarray, mask: np.ndarray, starts: Sequence[float], times: np.ndarray, width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(text [R, L, D], mask bool [R, L], span int32 [F]) of captions `text` [S, L, D], `mask` [S, L] with mixtures.

    Args:
      starts: S times at which captions begin
      times: those of F frames
      width: how long a change takes, in the same unit, half of it before the next caption begins

    Rows are the captions, then RUNGS mixtures for each border. A place of the text that only one of two captions has
    is that one's, as much as the mixture has of it.
    """
    starts, times = np.asarray(starts, np.float64), np.asarray(times, np.float64)
    if not width >= 0:
        raise InputError(f"fade={width}: a change takes at least 0 seconds")
    gaps = np.diff(starts)
    if width and len(gaps) and width > gaps.min() + 1e-9:
        raise InputError(
            f"fade={width:g} is longer than the {gaps.min():g} between two captions; use a shorter one"
        )
    span = np.maximum(np.searchsorted(starts, times, side="right") - 1, 0).astype(np.int32)
    if not width or len(starts) == 1:
        return text, mask, span
    shown = np.where(mask[..., None], text, 0).astype(np.float32)
    rows, masks = [text], [mask]
    for border in range(1, len(starts)):
        way = (times - starts[border]) / width + 0.5  # 0 before the change, 1 after it
        inside = (way > 0) & (way < 1)
        rung = np.minimum((way * RUNGS).astype(int), RUNGS - 1)
        span[inside] = len(starts) + RUNGS * (border - 1) + rung[inside]
        share = ((np.arange(RUNGS) + 0.5) / RUNGS)[:, None, None]
        rows.append((1 - share) * shown[border - 1] + share * shown[border])
        masks.append(np.broadcast_to(mask[border - 1] | mask[border], (RUNGS, mask.shape[1])))
    return np.concatenate(rows).astype(text.dtype), np.concatenate(masks), span
