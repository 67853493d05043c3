# SPDX-License-Identifier: Apache-2.0
"""From what the reader says of single videos to the figures of a model card; plain data in, plain data out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxvid.data.shapes.captions import parse
from jaxvid.data.shapes.detect import background, blobs
from jaxvid.data.shapes.follow import follow
from jaxvid.eval.shapes_accuracy import Counts, wilson

LOOKS = ("shape", "colour", "size")
STEP = 1.5  # units that a centre may be off its way at a border of a story, beside twice its largest step
KEPT = 4.0  # units: an object that is no further from where the given picture has it has kept its place


def all_right(counts: Counts) -> bool:
    """Whether each attribute that was asked for is right in more than half of its seconds."""
    return all(2 * right > total for right, total in counts.values() if total)


def added(seconds: Sequence[tuple[int, Counts]], first: int, last: int) -> Counts:
    """The counts of the seconds ``first`` to ``last``, the last one not included."""
    total: dict[str, tuple[int, int]] = {}
    for second, counts in seconds:
        if first <= second < last:
            for name, (right, all_) in counts.items():
                r, t = total.get(name, (0, 0))
                total[name] = r + right, t + all_
    return total


def shares(seconds: Sequence[tuple[int, Counts]], names: Sequence[str]) -> list[bool]:
    """For every second whether all of the attributes ``names`` are right in it."""
    return [all(counts[name][0] == counts[name][1] for name in names) for _, counts in seconds]


def longest(wrong: Sequence[bool]) -> int:
    """How many seconds in a row something is wrong at the most."""
    most = run = 0
    for one in wrong:
        run = run + 1 if one else 0
        most = max(most, run)
    return most


def centres(frames: np.ndarray, fps: float) -> np.ndarray:
    """The centre of the object that is seen longest, float ``[T, 2]`` in units; NaN where it is not seen."""
    seen = [blobs(frame, background(frame)[0]) for frame in frames]
    tracks = follow(seen, fps, frames.shape[1:3])
    out = np.full((len(frames), 2), np.nan)
    if tracks:
        track = max(tracks, key=lambda track: len(track.frames))
        for frame, blob in zip(track.frames, track.blobs, strict=True):
            out[frame] = blob.x, blob.y
    return out


def jump(at: np.ndarray, border: int, around: int) -> tuple[float, float]:
    """(the largest step within ``around`` frames of a border, the largest usual one of the second before and after).

    at: ``[T, 2]``, NaN where nothing is seen. The usual one is the 95th percentile, so that a jump is not its own measure.
    An object that is not seen at the border has jumped infinitely far.
    """
    steps = np.linalg.norm(np.diff(at, axis=0), axis=-1)
    near = steps[max(border - around, 0) : border + around]
    rest = np.concatenate(
        [steps[max(border - 16, 0) : border - around], steps[border + around : border + 16]]
    )
    rest = rest[np.isfinite(rest)]
    usual = float(np.percentile(rest, 95)) if len(rest) else 0.0
    return (float(near.max()) if len(near) and np.isfinite(near).all() else math.inf), usual


def holds_together(largest: float | None, usual: float) -> bool:
    """Whether a step at a border of a story is one of the motion's own; one without end is None in a file."""
    return largest is not None and largest <= 2 * usual + STEP


def share(right: int, total: int) -> str:
    """``81.0 % (72.2 to 87.5)``, the interval being Wilson's."""
    if not total:
        return "none"
    low, high = wilson(right, total)
    return f"{100 * right / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def lines(kinds: Mapping[str, Sequence[Mapping]]) -> list[tuple[str, str, str]]:
    """(what was asked, how many videos, what was found) for all that was made: see `run.py` for the records."""
    out = []
    for kind, records in kinds.items():
        if not records:
            continue
        if kind == "stories":
            found = _stories(records)
        elif kind == "minutes":
            found = _minutes(records)
        elif kind == "images":
            found = [
                (f"image to video, 4 s: {name} kept", [r[name] for r in records])
                for name in ("colour", "shape", "place", "all")
            ]
        else:
            found = [(f"{kind}, 4 s: all attributes right", [r["right"] for r in records])]
        out += [(said, str(len(records)), share(sum(hits), len(hits))) for said, hits in found]
        if kind in ("stories", "minutes"):
            out += [
                (f"{kind}: {said}", str(len(records)), share(*units)) for said, units in _quarters(records)
            ]
    return out


def by_attribute(records: Sequence[Mapping]) -> dict[str, tuple[int, int]]:
    """attribute -> (right, total) of clips with one object, ``'shape: star'`` and ``'motion: spins'`` being those of which
    that was asked. A unit is an object in a second, as in `jaxvid.eval.shapes_accuracy`."""
    found: dict[str, tuple[int, int]] = {}

    def note(name, pair):
        right, total = found.get(name, (0, 0))
        found[name] = right + pair[0], total + pair[1]

    for record in records:
        (look,) = parse(record["prompt"]).objects
        for name, pair in record["counts"].items():
            note(name, pair)
        for name, asked in (("shape", look.shape), ("motion", look.motion)):
            note(f"{name}: {asked}", record["counts"][name])
    return found


def _stories(records: Sequence[Mapping]) -> list[tuple[str, list[bool]]]:
    segments = [right for r in records for right in r["segments"]]
    borders = [holds_together(*border) for r in records for border in r["borders"]]
    return [("stories of 60 s: segments right", segments), ("stories: borders without a jump", borders)]


def _minutes(records: Sequence[Mapping]) -> list[tuple[str, list[bool]]]:
    return [
        ("minutes: seconds of right colour, shape and size", [s for r in records for s in r["looks"]]),
        ("minutes: count never wrong for over a second", [r["miscounted"] <= 1 for r in records]),
    ]


def _quarters(records: Sequence[Mapping]) -> list[tuple[str, tuple[int, int]]]:
    """What is right of all that was asked in the first and in the last quarter: (right, total)."""
    out = []
    for name, i in (("first", 0), ("last", 3)):
        units = [pair for r in records for pair in r["quarters"][i].values()]
        out.append(
            (f"what is right in the {name} quarter", (sum(r for r, _ in units), sum(t for _, t in units)))
        )
    return out
