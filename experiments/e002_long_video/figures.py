# SPDX-License-Identifier: Apache-2.0
"""Figures of one video, and of a method over several: numbers from frames and verdicts, nothing is generated here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def jump(frames: np.ndarray, borders: Iterable[int]) -> float:
    """How much more changes into the frames `borders` than into others: a ratio of mean absolute differences.

    1 where borders cannot be seen; NaN where there are none, or nothing else.
    """
    change = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))
    border = np.zeros(len(change), bool)
    border[[at - 1 for at in borders if 1 <= at <= len(change)]] = True
    if border.all() or not border.any():
        return math.nan
    return float(change[border].mean() / max(change[~border].mean(), 1e-6))


def borders(method, time_factor: int) -> list[int]:
    """Frames with which something new begins: a segment of a roll-out, or a window of several that are blended.

    None in queues, where every latent frame is new, and where all frames are made together.
    """
    first = lambda latent: time_factor * (int(latent) - 1) + 1
    places = [segment.ready for segment in method.segments[:-1]]
    if len(places) > 1 and places[1] - places[0] < 4:
        return []
    if not places and method.windows is not None:
        places = list(method.windows.start[1:])
    return [first(place) for place in places]


def same_as_first(verdicts: Sequence[Mapping]) -> list[bool]:
    """For each second, whether its objects have the shapes and colours of the first second's."""
    looks = [sorted((o["shape"] or "", o["colour"]) for o in v["objects"]) for v in verdicts]
    return [look == looks[0] for look in looks]


def drift(same: Sequence[bool]) -> float:
    """The share of later seconds that do not look like the first."""
    later = same[1:]
    return sum(not one for one in later) / len(later) if later else 0.0


def by_second(runs: Sequence[Mapping], name: str = "all") -> list[float]:
    """Accuracy in each second over several videos: right of all units, NaN in seconds without one."""
    length = max(len(run["accuracy"]) for run in runs)
    totals = np.zeros((length, 2))
    for run in runs:
        for second, counts in enumerate(run["accuracy"]):
            units = counts.values() if name == "all" else [counts[name]] if counts else []
            totals[second] += np.sum([list(unit) for unit in units], 0) if units else 0
    return [right / all_ if all_ else math.nan for right, all_ in totals]


def same_by_second(runs: Sequence[Mapping]) -> list[float]:
    """The share of videos whose second looks like their first one."""
    length = max(len(run["same"]) for run in runs)
    return [float(np.mean([run["same"][i] for run in runs if i < len(run["same"])])) for i in range(length)]


def summary(runs: Sequence[Mapping]) -> dict:
    """A method's line of the table from its videos."""
    seconds = by_second(runs)
    third = max(len(seconds) // 3, 1)
    parts = [seconds[:third], seconds[third : 2 * third], seconds[2 * third :]]
    mean = lambda values: float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
    warm = [run for run in runs if not run["compiling"]] or runs
    return {
        "method": runs[0]["method"],
        "model": runs[0]["model"],
        "videos": len(runs),
        "thirds": [mean(np.asarray(part, float)) for part in parts],
        "drift": mean(np.asarray([drift(run["same"]) for run in runs])),
        "jump": mean(np.asarray([run["jump"] for run in runs], float)),
        "calls": runs[0]["calls"],
        "frames per call": runs[0]["frames per call"],
        "wall": float(np.median([run["wall"] / run["seconds"] for run in warm])),
        "peak": max(run["peak GiB"] for run in runs),
    }


HEAD = (
    "method",
    "model",
    "first third",
    "middle",
    "last",
    "drift",
    "jump",
    "calls",
    "frames",
    "s per s",
    "peak GiB",
)


def table(rows: Sequence[Mapping]) -> str:
    """The lines as Markdown, the best of the last third first."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    number = lambda value, form: "" if value is None or math.isnan(value) else format(value, form)
    for row in sorted(rows, key=lambda row: -row["thirds"][2] if row["thirds"][2] == row["thirds"][2] else 1):
        cells = [row["method"], row["model"], *(number(100 * part, ".1f") for part in row["thirds"])]
        cells += [number(row["drift"], ".2f"), number(row["jump"], ".2f"), str(row["calls"])]
        cells += [str(row["frames per call"]), number(row["wall"], ".2f"), number(row["peak"], ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
