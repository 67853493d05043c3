# SPDX-License-Identifier: Apache-2.0
"""One video with every method that a checkpoint can follow, read second by second, and what it cost.

    python -m experiments.e002_long_video.run [--checkpoint DIR] [--seconds 60] [--methods A,B] [--prompts 3] [--seeds 1]
        [--out FOLDER]

Every method runs in a process of its own, so that its peak memory is its own, and every video leaves a file behind: the same
command goes on where it was interrupted. Another checkpoint, length or number of steps needs another folder.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import time

from experiments.e002_long_video import figures
from experiments.e002_long_video.plot import panels
from jaxvid.data.shapes.reader import read
from jaxvid.eval.shapes_accuracy import score_seconds
from jaxvid.pipeline import Pipeline
from jaxvid.run import method_of
from jaxvid.sampling.methods.table import METHODS

PROMPTS = (
    "a large red star spins on a black background",
    "a small blue circle slides left and right on a white background",
    "a large green square bounces around on a black background",
    "a large yellow triangle pulses on a black background",
    "a small green ring slides up and down on a white background",
    "a large red cross circles clockwise on a white background",
)


def one(
    pipe: Pipeline, method: str, prompt: str, seed: int, seconds: float, steps: int | None, sheet
) -> dict:
    """All figures of one video."""
    before, compiled = time.monotonic(), _compiled(pipe)
    run = pipe.prepare(prompt, seconds=seconds, seed=seed, method=method, steps=steps)
    clip = pipe(prompt, seconds=seconds, seed=seed, method=method, steps=steps)
    wall, compiling = time.monotonic() - before, _compiled(pipe) - compiled
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before the reader takes its share
    if sheet is not None:
        clip.contact_sheet(sheet)
    count = pipe.engine.vae.latent_frames(run.request.frames)
    followed = method_of(pipe.engine, pipe.serves, run.request, count)
    verdicts = read(clip.frames, clip.fps, [0.0])
    accuracy: list[dict] = [{} for _ in range(round(seconds))]
    for second, counts in score_seconds(clip.frames, clip.fps, [(0, prompt)], verdicts):
        accuracy[min(second, len(accuracy) - 1)] = counts
    inner = followed.window if followed.windows is None else followed.windows.length
    return {
        "method": method,
        "prompt": prompt,
        "seed": seed,
        "seconds": seconds,
        "accuracy": accuracy,
        "same": figures.same_as_first(verdicts),
        "jump": figures.jump(clip.frames, figures.borders(followed, pipe.engine.vae.time_factor)),
        "calls": followed.calls,
        "frames per call": inner,
        "rows": pipe.engine.asked,
        "wall": wall - compiling,
        "compiling": compiling,
        "peak GiB": peak,
        "recipe": clip.recipe,
    }


def _compiled(pipe: Pipeline) -> float:
    return sum(took["compile"] for took in pipe.seconds.values())


def place(out: pathlib.Path, method: str, prompt: int, seed: int) -> pathlib.Path:
    """The file of one video."""
    return out / "videos" / f"{method}-{prompt}-{seed}.json"


def missing(options, method: str) -> list[tuple[int, int]]:
    """(prompt, seed) that have not been made yet."""
    every = [(p, s) for s in range(options.seeds) for p in range(options.prompts)]
    return [(p, s) for p, s in every if not place(options.out, method, p, s).exists()]


def write(path: pathlib.Path, text: str) -> None:
    """Aside, then renamed: what is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def to_json(value) -> str:
    """JSON of plain data; what is not a number is null."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=1, allow_nan=False)


def child(options) -> None:
    """Makes what is missing of one method."""
    pipe = Pipeline.load(options.checkpoint)
    for prompt, seed in missing(options, options.one):
        sheet = options.out / f"{options.one}.png" if (prompt, seed) == (0, 0) else None
        made = one(pipe, options.one, PROMPTS[prompt], seed, options.seconds, options.steps, sheet)
        write(place(options.out, options.one, prompt, seed), to_json(made))
        print(
            f"{options.one}: prompt {prompt}, seed {seed}: {made['wall']:.1f} s", file=sys.stderr, flush=True
        )


def report(options, names) -> str:
    """Table, plot and figures of all that there is; returns the table."""
    runs = {}
    for name in names:
        files = [place(options.out, name, p, s) for s in range(options.seeds) for p in range(options.prompts)]
        if all(file.exists() for file in files):
            runs[name] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not runs:
        return "nothing was made\n"
    rows = [figures.summary(videos) for videos in runs.values()]
    lines = {
        "right of what the prompt says": {name: figures.by_second(videos) for name, videos in runs.items()},
        "looks like its first second": {
            name: figures.same_by_second(videos) for name, videos in runs.items()
        },
    }
    write(options.out / "plot.svg", panels(lines))
    write(options.out / "results.json", to_json({"rows": rows, "lines": lines}))
    said = f"{options.prompts} prompts, {options.seeds} seeds, {options.seconds:g} s each"
    text = f"{said}; shares are per cent right, drift and jump as in the README.\n\n{figures.table(rows)}\n"
    write(options.out / "table.md", text)
    return text


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--checkpoint", help="a bundle or a run (default: the shipped model)")
    made.add_argument("--seconds", type=float, default=60.0)
    made.add_argument("--steps", type=int)
    made.add_argument("--prompts", type=int, default=3, choices=range(1, len(PROMPTS) + 1))
    made.add_argument("--seeds", type=int, default=1)
    made.add_argument("--methods", help="names with commas (default: all that the checkpoint can follow)")
    made.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/e002"))
    made.add_argument("--one", help=argparse.SUPPRESS)
    return made


def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    options = parser().parse_args(argv)
    if options.one:
        child(options)
        return
    traits = Pipeline.load(options.checkpoint).traits
    able = [name for name, entry in METHODS.items() if set(entry.needs) <= traits]
    names = options.methods.split(",") if options.methods else able
    asked = {name: getattr(options, name) for name in ("checkpoint", "seconds", "steps")}
    settings = options.out / "settings.json"
    if settings.exists() and json.loads(settings.read_text(encoding="utf-8")) != asked:
        raise SystemExit(f"{options.out} holds videos of other settings ({settings}); give another --out")
    write(settings, json.dumps(asked, indent=1))
    failed = []
    for name in names:
        if missing(options, name):
            command = [sys.executable, "-m", "experiments.e002_long_video.run", *argv, "--one", name]
            if subprocess.run(command).returncode:
                failed.append(name)
        text = report(options, names)  # after every method: an interrupted comparison is one already
    print(text)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
