# SPDX-License-Identifier: Apache-2.0
"""How right a video of the shapes world is: the reader's verdict against what the captions said, by attribute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxvid.data.shapes.captions import parse
from jaxvid.data.shapes.reader import read
from jaxvid.data.shapes.world import Attributes

OF_OBJECTS = ("shape", "colour", "size", "motion")
ATTRIBUTES = ("count", "background", *OF_OBJECTS)

Counts = dict[str, tuple[int, int]]


def score(frames: np.ndarray, fps: float, captions: Sequence[tuple[int, str | Attributes]]) -> Counts:
    """Compare a video with its captions: ``{attribute: (right, total)}``, a unit being one object in one second.

    frames: uint8 ``[T, H, W, 3]``; captions: ``((frame, text), ...)``, texts or parsed attributes, first frame 0.
    Seconds that hold the border of a span are not scored, nor is what a caption leaves unsaid, nor motion where a
    span is too short to show it. Objects are matched by the assignment with the most right attributes; an object
    that is not there, or one too many, makes ``count`` wrong, and each attribute of a missing object is wrong.
    Raises InputError for captions that cannot be parsed.
    """
    return add(counts for _, counts in score_seconds(frames, fps, captions))


def score_seconds(
    frames: np.ndarray,
    fps: float,
    captions: Sequence[tuple[int, str | Attributes]],
    verdicts: Sequence[Mapping] | None = None,
) -> list[tuple[int, Counts]]:
    """`score`, second by second: ``[(second, {attribute: (right, total)}), ...]`` of the seconds that are scored.

    verdicts: what `read` says of the video with these spans, if that is known already.
    """
    told = [(frame / fps, text if isinstance(text, Attributes) else parse(text)) for frame, text in captions]
    total = len(frames) / fps
    ends = [second for second, _ in told[1:]] + [total]
    scored = []
    for verdict in read(frames, fps, [second for second, _ in told]) if verdicts is None else verdicts:
        second, counts = verdict["second"], {name: [0, 0] for name in ATTRIBUTES}
        if any(second + 1e-6 < border < second + 1 - 1e-6 for border, _ in told):
            continue
        i = max(i for i, (begin, _) in enumerate(told) if begin <= second + 1e-6)
        begin, truth = told[i]
        long = ends[i] - begin >= 3.0 - 1.5 / fps
        _count(counts, "count", len(verdict["objects"]) == len(truth.objects))
        if truth.background is not None:
            _count(counts, "background", verdict["background"] == truth.background)
        for look, found in _match(truth, verdict["objects"]):
            for name in OF_OBJECTS:
                wanted = getattr(look, name)
                if wanted is not None and (name != "motion" or long):
                    _count(counts, name, found.get(name) == wanted)
        scored.append((second, {name: (right, all_) for name, (right, all_) in counts.items()}))
    return scored


def add(parts: Iterable[Mapping[str, tuple[int, int]]]) -> Counts:
    """The sum of the counts of several videos."""
    parts = list(parts)
    return {name: (sum(p[name][0] for p in parts), sum(p[name][1] for p in parts)) for name in ATTRIBUTES}


def summarise(counts: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, float]]:
    """Per attribute, and for ``all`` of them: right, total, accuracy and its 95 % Wilson interval (low, high).

    The interval takes units as independent; the seconds of one clip are not quite.
    """
    rows = dict(counts)
    rows["all"] = (sum(r for r, _ in counts.values()), sum(t for _, t in counts.values()))
    out = {}
    for name, (right, total) in rows.items():
        low, high = wilson(right, total)
        accuracy = right / total if total else math.nan
        out[name] = {"right": right, "total": total, "accuracy": accuracy, "low": low, "high": high}
    return out


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share ``right / total``; (0, 1) when there is nothing to count.

    Ref: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if total == 0:
        return 0.0, 1.0
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _count(counts: dict[str, list[int]], name: str, right: bool) -> None:
    counts[name][0] += int(right)
    counts[name][1] += 1


def _match(truth: Attributes, found: Sequence[Mapping]) -> list[tuple]:
    """Pairs of what was said and what was read; nothing read ({}) for an object that is not there."""
    # Two objects may trade places only if that is better in shape and colour before size and motion.
    weights = {"shape": 4.0, "colour": 4.0, "size": 1.0, "motion": 1.0}
    found = list(found) + [{}] * max(0, len(truth.objects) - len(found))

    def right(order) -> float:
        pairs = zip(truth.objects, order, strict=False)
        return sum(
            w
            for look, got in pairs
            for name, w in weights.items()
            if getattr(look, name) is not None and got.get(name) == getattr(look, name)
        )

    best = max(itertools.permutations(found, len(truth.objects)), key=right)
    return list(zip(truth.objects, best, strict=True))
