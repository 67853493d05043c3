# SPDX-License-Identifier: Apache-2.0
"""The figures of the shapes model's card: clips, stories, minutes and videos from a picture, read by the exact reader.

    python -m experiments.e008_card.run [--checkpoint DIR] [--clips 500] [--stories 40] [--minutes 40] [--images 40]
        [--steps N] [--only KIND ...] [--out runs/e008]

Every batch of videos leaves a file behind: the same command goes on where it was interrupted, and says what there is so far.
Several of them, each with its own ``--only`` and a core, may share a folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable

import numpy as np

from experiments.e002_long_video.run import to_json, write
from experiments.e008_card import figures
from jaxvid.cli.main import use_compilation_cache
from jaxvid.data.clips import ClipShape
from jaxvid.data.shapes import MOTIONS, SHAPES, ShapesSource, caption, held_out, parse
from jaxvid.data.shapes.world import PALETTE, ROUND, Look
from jaxvid.eval.shapes_accuracy import ATTRIBUTES, score_seconds
from jaxvid.pipeline import Pipeline

FPS, SIDE = 16.0, 64
FOUR = ClipShape(64, SIDE, SIDE, FPS)
SEGMENTS, SEGMENT = 6, 10  # prompts of a story, and seconds of each
SEEDS = {"seen pair, one object": 111, "held-out pair, one object": 112, "seen pairs, two objects": 113,
         "held-out pair, two objects": 114, "images": 115, "stories": 116, "minutes": 117}  # fmt: skip
BYTES, MOST_TRIES = 112, 20  # of a prompt, as the shapes models read it
NO_COUNTS = dict.fromkeys(ATTRIBUTES, (0, 0))


def source(kind: str, size: int) -> ShapesSource:
    """Scenes that no training saw."""
    split = "heldout" if kind.startswith("held-out") else "train"
    objects = (0.0, 1.0) if "two" in kind else (1.0, 0.0)
    return ShapesSource(
        split=split, seed=SEEDS[kind], size=size, objects=objects, events=0.0, paraphrase=False
    )


def prompt(kind: str, number: int, size: int) -> str:
    """What is asked for: of a scene with more to say than the model reads, the next one that is not asked for otherwise."""
    many = source(kind, MOST_TRIES * size)
    texts = (many.clip(number + i * size, FOUR).captions[0][1] for i in range(MOST_TRIES))
    return next(text for text in texts if len(text.encode()) <= BYTES)


def scored(clip, story) -> list:
    """The reader's verdict second by second; ``story`` is [(second, text), ...]."""
    return score_seconds(clip.frames, clip.fps, [(round(at * clip.fps), text) for at, text in story])


def quarters(seconds, length: int) -> list[dict]:
    cut = [round(i * length / 4) for i in range(5)]
    return [{**NO_COUNTS, **figures.added(seconds, a, b)} for a, b in zip(cut, cut[1:], strict=False)]


def clips(pipe: Callable, kind: str, numbers: range, size: int) -> list[dict]:
    """Four seconds from a prompt."""
    texts = [prompt(kind, i, size) for i in numbers]
    made = pipe(texts, seconds=4, seed=[2000 + i for i in numbers])
    out = []
    for text, clip in zip(texts, made, strict=True):
        counts = figures.added(scored(clip, [(0, text)]), 0, 4)
        out.append({"prompt": text, "right": figures.all_right(counts), "counts": counts})
    return out


def images(pipe: Callable, kind: str, numbers: range, size: int) -> list[dict]:
    """Four seconds from a rendered first frame and its prompt."""
    some, out = source(kind, size), []
    for i in numbers:
        truth = some.clip(i, FOUR)
        text = truth.captions[0][1]
        clip = pipe(text, seconds=4, seed=3000 + i, image=truth.x[0])
        counts = figures.added(scored(clip, [(0, text)]), 0, 4)
        kept = {name: 2 * counts[name][0] > counts[name][1] for name in ("colour", "shape")}
        first, wanted = (figures.centres(frames[:8], FPS) for frames in (clip.frames, truth.x))
        off = float(np.linalg.norm(first[1] - wanted[0]))
        kept["place"] = bool(off <= figures.KEPT)
        out.append({"prompt": text, **kept, "all": all(kept.values()), "off": off, "counts": counts})
    return out


def story(seed: int) -> list[tuple[float, str]]:
    """Six prompts about one object: each has another motion, every second another colour, every third another shape."""
    rng = np.random.default_rng([SEEDS["stories"], seed])
    said = parse(source("stories", 1 + seed).clip(seed, FOUR).captions[0][1])
    (look,) = said.objects
    told = []
    for number in range(SEGMENTS):
        if number:
            shape = _other(rng, SHAPES, look.shape) if number % 3 == 0 else look.shape
            colour = _other(rng, PALETTE, look.colour) if number % 2 == 0 else look.colour
            while held_out(colour, shape):
                colour = _other(rng, PALETTE, colour)
            motions = [m for m in MOTIONS if not (m == "spins" and shape in ROUND)]
            look = Look(shape, colour, look.size, _other(rng, motions, look.motion))
        told.append((float(number * SEGMENT), caption(dataclasses.replace(said, objects=(look,)))))
    return told


def _other(rng, among, one):
    left = [name for name in among if name != one]
    return left[int(rng.integers(len(left)))]


def stories(pipe: Callable, kind: str, numbers: range, size: int) -> list[dict]:
    """A minute of six prompts."""
    out = []
    for i in numbers:
        told = story(i)
        clip = pipe(story=told, seconds=SEGMENTS * SEGMENT, seed=4000 + i)
        seconds, at = scored(clip, told), figures.centres(clip.frames, FPS)
        spans = [figures.added(seconds, a, a + SEGMENT) for a in range(0, SEGMENTS * SEGMENT, SEGMENT)]
        borders = [figures.jump(at, round(second * FPS), 4) for second, _ in told[1:]]
        out.append({"story": told, "segments": [figures.all_right(counts) for counts in spans], "spans": spans,
                    "borders": borders, "quarters": quarters(seconds, 60)})  # fmt: skip
    return out


def minutes(pipe: Callable, kind: str, numbers: range, size: int) -> list[dict]:
    """A minute of one prompt."""
    some, out = source(kind, size), []
    texts = [some.clip(i, FOUR).captions[0][1] for i in numbers]
    made = pipe(texts, seconds=60, seed=[5000 + i for i in numbers])
    for i, text, clip in zip(numbers, texts, made, strict=True):
        seconds = scored(clip, [(0, text)])
        miscounted = figures.longest([not right for right in figures.shares(seconds, ("count",))])
        out.append({"prompt": text, "seed": 5000 + i, "looks": figures.shares(seconds, figures.LOOKS),
                    "miscounted": miscounted, "quarters": quarters(seconds, 60)})  # fmt: skip
    return out


# kind -> what makes it, how many at once, and how many of 500 clips, or which option says it
KINDS = {
    "seen pair, one object": (clips, 10, 0.4),
    "held-out pair, one object": (clips, 10, 0.2),
    "seen pairs, two objects": (clips, 10, 0.2),
    "held-out pair, two objects": (clips, 10, 0.2),
    "images": (images, 8, "images"),
    "stories": (stories, 1, "stories"),
    "minutes": (minutes, 2, "minutes"),
}


def wanted(options, kind: str) -> int:
    many = KINDS[kind][2]
    return getattr(options, many) if isinstance(many, str) else round(many * options.clips)


def files(options, kind: str) -> dict[pathlib.Path, range]:
    """Batches of a kind: a file each, and the numbers of its videos."""
    at_once, total = KINDS[kind][1], wanted(options, kind)
    folder = options.out / kind.replace(",", "").replace(" ", "_")
    return {folder / f"{i:04d}.json": range(i, min(i + at_once, total)) for i in range(0, total, at_once)}


def report(options) -> str:
    """What is there so far, as a table."""
    found = {}
    for kind in KINDS:
        there = [json.loads(f.read_text(encoding="utf-8")) for f in files(options, kind) if f.exists()]
        found[kind] = [record for batch in there for record in batch]
    rows = [f"| {' | '.join(line)} |" for line in figures.lines(found)]
    rows = ["| | videos | found (95 % interval) |", "|---|---|---|", *rows, ""]
    counted = figures.by_attribute(
        [record for kind in KINDS if "one object" in kind for record in found[kind]]
    )
    if counted:
        rows += ["| clips of one object | right (95 % interval) |", "|---|---|"]
        rows += [f"| {name} | {figures.share(*pair)} |" for name, pair in sorted(counted.items())]
    return "\n".join([*rows, ""])


def main(argv=None) -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--checkpoint", help="a bundle or a run (default: the shipped model)")
    made.add_argument("--clips", type=int, default=500, help="of four seconds")
    for name in ("stories", "minutes", "images"):
        made.add_argument(f"--{name}", type=int, default=40)
    made.add_argument("--steps", type=int, help="of sampling (default: the model's)")
    made.add_argument("--only", action="append", choices=KINDS, help="a kind; may be repeated (default: all)")
    made.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/e008"))
    options = made.parse_args(argv)
    use_compilation_cache()
    pipe = Pipeline.load(options.checkpoint)
    mark, name = options.out / "model.json", json.dumps([pipe.fingerprint, options.steps])
    if mark.exists() and mark.read_text(encoding="utf-8") != name:
        raise SystemExit(
            f"{options.out} holds videos of another model or of other --steps; give another --out"
        )
    write(mark, name)
    ask = functools.partial(pipe, steps=options.steps)
    for kind, (make, _, _) in KINDS.items():
        if options.only and kind not in options.only:
            continue
        batches = files(options, kind)
        for number, (file, numbers) in enumerate(batches.items(), 1):
            if not file.exists():
                write(file, to_json(make(ask, kind, numbers, wanted(options, kind))))
                print(f"{kind}: {number} of {len(batches)} batches", file=sys.stderr, flush=True)
        write(options.out / "table.md", report(options))
    print(report(options))


if __name__ == "__main__":
    main()
