# SPDX-License-Identifier: Apache-2.0
"""From samples to one `(Video, Cond)`: stacking, scaling, padding of short clips, captions per frame.

A latent frame stands for several pixel frames: with a time factor f, latent frame 0 is pixel frame 0 and
latent frame i > 0 covers pixel frames f(i-1)+1 .. f*i. Its time is the middle of what it covers, and its
caption the one that covers most of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.text import encode_text
from jaxvid.types import Cond, InputError, Video


def latent_frames(frames: int, time_factor: int) -> int:
    """How many latent frames stand for `frames` pixel frames; `time_factor=1` for pixels themselves."""
    return -(-(frames - 1) // time_factor) + 1


def frame_times(frames: int, time_factor: int) -> np.ndarray:
    """The middle of each of `frames` latent frames, float64 ``[frames]``, counted in pixel frames from 0."""
    middle = np.arange(frames) * time_factor - (time_factor - 1) / 2
    middle[:1] = 0
    return middle


def spans_of(captions: Sequence[tuple[int, str]], times: np.ndarray) -> np.ndarray:
    """Which caption speaks at each time (in pixel frames): int32, the last one that began at or before it."""
    starts = np.asarray([frame for frame, _ in captions])
    return np.maximum(np.searchsorted(starts, times, side="right") - 1, 0).astype(np.int32)


def padded_spans(count: int, spans: Sequence[int]) -> int:
    """The smallest of `spans` that holds `count` captions; beyond the largest, a multiple of it."""
    for size in sorted(spans):
        if size >= count:
            return size
    largest = max(spans)
    return -(-count // largest) * largest


def collate(
    samples: Sequence[Sample],
    shape: ClipShape,
    *,
    time_factor: int = 1,
    text_length: int = 96,
    spans: Sequence[int] = (1, 2, 4, 8, 16),
    frames_multiple: int = 1,
    encode: Callable[[str], tuple[np.ndarray, np.ndarray]] | None = None,
) -> tuple[Video, Cond]:
    """Stack samples of one shape into `(Video, Cond)` with numpy leaves.

    uint8 pixels come out as float32 in [-1, 1]; float latents as they are. The number of frames is that of
    `shape` (through `time_factor`), rounded up to `frames_multiple`; what a sample lacks repeats its last
    frame and has `ok` False. `cond` holds `tokens` int32 ``[B, S, L]`` and `span` int32 ``[B, T]``; or, where
    `encode` makes of a caption its rows ``[L, D]`` and which of them are rows, `text` and `text_mask` for `tokens`.
    """
    real = latent_frames(shape.frames, time_factor)
    frames = -(-real // frames_multiple) * frames_multiple
    first = np.asarray(samples[0].x)
    x = np.empty((len(samples), frames, *first.shape[1:]), np.float32)
    ok = np.zeros((len(samples), frames), bool)
    times = frame_times(frames, time_factor)
    span = np.zeros((len(samples), frames), np.int32)
    count = padded_spans(max(len(sample.captions) for sample in samples), spans)
    tokens = np.zeros((len(samples), count, text_length), np.int32)
    for row, sample in enumerate(samples):
        clip = np.asarray(sample.x)
        if clip.shape[1:] != first.shape[1:] or not 1 <= len(clip) <= real:
            raise InputError(
                f"a source gave a clip of shape {clip.shape}, wanted {(real, *first.shape[1:])} for {shape}"
            )
        n = len(clip)
        x[row, :n] = clip.astype(np.float32) / 127.5 - 1 if clip.dtype == np.uint8 else clip
        x[row, n:] = x[row, n - 1]
        ok[row, :n] = True
        span[row] = spans_of(sample.captions, times)
        for place, (_, text) in enumerate(sample.captions):
            if encode is None:
                tokens[row, place] = encode_text(text, text_length)
    sec = np.broadcast_to((times / shape.fps).astype(np.float32), ok.shape).copy()
    said = {"tokens": tokens} if encode is None else _encoded(samples, count, encode)
    return Video(x=x, sec=sec, ok=ok), {**said, "span": span}


def _encoded(samples: Sequence[Sample], count: int, encode: Callable) -> dict[str, np.ndarray]:
    """Rows of all captions, [B, count, L, D]; places without a caption are zeros."""
    made = [[encode(text) for _, text in sample.captions] for sample in samples]
    rows, mask = next((pair for row in made for pair in row), None) or encode("")
    text = np.zeros((len(samples), count, *rows.shape), np.float32)
    known = np.zeros((len(samples), count, *mask.shape), bool)
    for row, pairs in enumerate(made):
        for place, pair in enumerate(pairs):
            text[row, place], known[row, place] = pair
    return {"text": text, "text_mask": known}
