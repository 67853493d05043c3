# SPDX-License-Identifier: Apache-2.0
"""A file of the shapes world against its story, second by second: what was asked, what the reader saw, what was right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxvid.data.decode import read_video
from jaxvid.data.shapes import read
from jaxvid.eval.shapes_accuracy import add, score_seconds, summarise


def verdict(path, story: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """What is right in a video: ``{'accuracy': as `summarise` says it, 'seconds': as `read` says them, 'right': {second:
    {attribute: (right, total)}}}``.

    path: of a video. story: ``((seconds, caption), ...)``, the first at 0. A second that holds a border of the story is
    not in ``right``. Raises `InputError` for captions that are not of the shapes world and files that are no video.
    """
    frames, fps = read_video(path)
    seconds = read(frames, fps, [at for at, _ in story])
    scored = score_seconds(frames, fps, [(round(at * fps), text) for at, text in story], seconds)
    return {
        "accuracy": summarise(add(counts for _, counts in scored)),
        "seconds": seconds,
        "right": dict(scored),
    }


def seen(second: Mapping[str, Any]) -> str:
    """What the reader saw in a second, in words."""
    things = " and ".join(
        " ".join(str(thing.get(name) or "?") for name in ("size", "colour", "shape", "motion"))
        for thing in second["objects"]
    )
    return f"{things or 'nothing'}, {second['background']}"
