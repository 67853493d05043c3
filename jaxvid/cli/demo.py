# SPDX-License-Identifier: Apache-2.0
"""Makes a minute of video from a built-in story with the shipped model, and lets the reader of its world judge it."""

from __future__ import annotations

import json
import pathlib

from jaxvid.cli import main
from jaxvid.cli.generate import sheet
from jaxvid.cli.progress import Progress
from jaxvid.cli.record import outputs, record
from jaxvid.types import InputError

SECONDS = 60
STORY = (
    (0, "a large yellow circle stays still on a white background"),
    (10, "a large yellow circle slides up and down on a white background"),
    (20, "a large magenta square circles clockwise on a white background"),
    (30, "a large magenta square stays still on a white background"),
    (40, "a large cyan ring slides left and right on a white background"),
    (50, "a large magenta ring circles clockwise on a white background"),
)


def arguments(parser):
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="demo",
        help="where demo.mp4, demo.png and demo.json go (default: demo)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another video (default: 0)")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="a bundle or a run of the shapes world (default: the shipped)"
    )
    parser.add_argument("--steps", type=int, help="of sampling")


def run(options) -> None:
    """Prints what was asked for, what the reader saw and its score; the video's path on the last line."""
    folder = pathlib.Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be made: {error.strerror}; choose another place") from None
    paths = outputs(str(folder / "demo.mp4"), 1)

    from jaxvid.pipeline import Pipeline

    main.use_compilation_cache()
    pipe, progress = Pipeline.load(options.checkpoint), Progress()
    progress.note(f"a minute of video, {SECONDS} s of 64x64 at 16 fps, from {len(STORY)} sentences")
    ready = pipe.prepare(story=STORY, seconds=SECONDS, seed=options.seed, steps=options.steps)
    record(pipe, ready, paths, progress)
    sheet(paths[0], ready.request.recipe(0), folder / "demo.png")
    verdict = judge(paths[0])
    from jaxvid.clip import aside

    with aside(folder / "demo.json") as part:
        part.write_text(json.dumps(verdict, indent=1), encoding="utf-8")
    _tell(verdict)
    print(f"contact sheet {folder / 'demo.png'}, verdict {folder / 'demo.json'}")
    print(*paths)


def judge(path) -> dict:
    """What the reader sees in the file, second by second, and how much of the story that is."""
    from jaxvid.eval.verdict import verdict

    found = verdict(path, STORY)
    return {"story": STORY, "accuracy": found["accuracy"], "seconds": found["seconds"]}


def _tell(verdict) -> None:
    from jaxvid.eval.verdict import seen as told

    for number, (at, text) in enumerate(STORY):
        end = STORY[number + 1][0] if number + 1 < len(STORY) else SECONDS
        seen: dict[str, int] = {}
        for second in verdict["seconds"]:
            if at <= second["second"] < end:
                said = told(second)
                seen[said] = seen.get(said, 0) + 1
        print(f"{at:>3} s  asked: {text}")
        for said, count in sorted(seen.items(), key=lambda item: -item[1])[:2]:
            print(f"       seen for {count:>2} s: {said}")
    shares = (
        f"{name} {100 * row['accuracy']:.0f} %" for name, row in verdict["accuracy"].items() if row["total"]
    )
    print(f"reader: {', '.join(shares)}")
