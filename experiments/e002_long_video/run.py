# SPDX-License-Identifier: Apache-2.0
"""One video with every method that a checkpoint can follow, read second by second, and what it cost.

    python -m experiments.e002_long_video.run [--checkpoint DIR] [--seconds 60] [--methods A,B] [--prompts N] [--out FOLDER]

Each method runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np

from jaxvid.data.shapes.reader import read
from jaxvid.eval.shapes_accuracy import add, score, summarise
from jaxvid.pipeline import Pipeline
from jaxvid.sampling.methods.table import METHODS

PROMPTS = (
    "a large red star spins on a black background",
    "a small blue circle moves to the right on a white background",
    "a large green square bounces on a black background",
)


def jump(frames: np.ndarray, period: int, first: int) -> float:
    """How much more changes at the borders `first`, `first + period`, .. of windows than between other frames: a ratio of
    mean absolute differences; 1 where borders cannot be seen, NaN where there are none."""
    change = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))
    border = np.zeros(len(change), bool)
    border[first - 1 :: period] = True
    if border.all() or not border.any():
        return float("nan")
    return float(change[border].mean() / max(change[~border].mean(), 1e-6))


def drift(verdicts: list[dict]) -> float:
    """The share of later seconds whose objects differ in shape or colour from those of the first second."""
    looks = [sorted((o["shape"] or "", o["colour"]) for o in v["objects"]) for v in verdicts]
    later = looks[1:]
    return sum(look != looks[0] for look in later) / len(later) if later else 0.0


def thirds(clips, prompts, fps: float) -> list[float]:
    """Accuracy over all attributes in the first, middle and last third."""
    length = len(clips[0]) // 3
    parts = [slice(i * length, (i + 1) * length) for i in range(3)]
    counts = [[score(c[part], fps, [(0, p)]) for c, p in zip(clips, prompts, strict=True)] for part in parts]
    return [summarise(add(count))["all"]["accuracy"] for count in counts]


def one(checkpoint, method: str, seconds: float, count: int, steps: int | None, sheet) -> dict:
    """All figures of one method."""
    pipe, prompts = Pipeline.load(checkpoint), PROMPTS[:count]
    clips, begun, compiled = [], time.monotonic(), 0.0
    for seed, prompt in enumerate(prompts):
        clips.append(pipe(prompt, seconds=seconds, seed=seed, method=method, steps=steps))
    compiled = sum(took["compile"] for took in pipe.seconds.values())
    wall = time.monotonic() - begun - compiled
    if sheet:
        clips[0].contact_sheet(sheet)
    frames, fps = [clip.frames for clip in clips], clips[0].fps
    window, overlap = int(pipe.serves.get("window", 32)), int(pipe.serves.get("overlap", 8))
    n = pipe.engine.vae.time_factor
    return {
        "method": method,
        "thirds": thirds(frames, prompts, fps),
        "drift": float(np.mean([drift(read(f, fps)) for f in frames])),
        "jump": float(np.mean([jump(f, (window - overlap) * n, (window - 1) * n + 1) for f in frames])),
        "rows": pipe.engine.asked,
        "seconds per second": wall / (seconds * len(prompts)),
        "compiling": compiled,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def table(rows: list[dict]) -> str:
    """Figures as a Markdown table."""
    head = ("method", "first third", "middle", "last", "drift", "jump", "rows", "s per s", "peak GiB")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [
            row["method"],
            *(f"{100 * a:.1f}" for a in row["thirds"]),
            f"{row['drift']:.2f}",
            f"{row['jump']:.2f}",
        ]
        cells += [str(row["rows"]), f"{row['seconds per second']:.2f}", f"{row['peak GiB']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a bundle or a run (default: the shipped model)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--methods", help="names with commas (default: all that the checkpoint can follow)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/e002"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        sheet = options.out / f"{options.one}.png"
        made = one(options.checkpoint, options.one, options.seconds, options.prompts, options.steps, sheet)
        (options.out / f"{options.one}.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
        return
    traits = Pipeline.load(options.checkpoint).engine.traits
    names = (
        options.methods.split(",")
        if options.methods
        else [n for n, e in METHODS.items() if set(e.needs) <= traits]
    )
    rows = []
    for name in names:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.e002_long_video.run", *sys.argv[1:], "--one", name]
        )
        if done.returncode:
            print(f"{name} failed", file=sys.stderr)
            continue
        rows.append(json.loads((options.out / f"{name}.json").read_text(encoding="utf-8")))
    text = f"{options.prompts} prompts, one seed each, {options.seconds:g} s\n\n{table(rows)}\n"
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
