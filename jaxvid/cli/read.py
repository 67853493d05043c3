# SPDX-License-Identifier: Apache-2.0
"""Reads a video of the shapes world: what is seen in every second, as a JSON list on standard output."""

from __future__ import annotations

import json


def arguments(parser):
    parser.add_argument("file", metavar="FILE.mp4", help="a video of the shapes world")


def run(options) -> None:
    """Prints a JSON list, a verdict per second: background, and per object shape, colour, size and motion."""
    from jaxvid.data.decode import read_video
    from jaxvid.data.shapes import read

    frames, fps = read_video(options.file)
    print(json.dumps(read(frames, fps, borders(options.file)), indent=1))


def borders(path) -> list[float]:
    """The seconds at which the text of a video of ours changes, from its metadata: motion is not read across them."""
    from jaxvid.io.video_file import read_metadata
    from jaxvid.types import InputError

    try:
        story = read_metadata(path).get("story") or ()
        return [float(at) for at, _ in story]
    except (InputError, TypeError, ValueError):
        return []  # of a foreign file nothing is known, and it is read all the same
