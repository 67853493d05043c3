# SPDX-License-Identifier: Apache-2.0
"""A long video with every method, read second by second, and what it cost.

    python -m experiments.e002_long_video.run [--checkpoint DIR ...] [--seconds 60] [--methods A,B,A@2] [--prompts 3]
        [--seeds 1] [--out FOLDER]

A method runs on the first checkpoint that it can run on; `A@2` is method A on the second one. Every method runs in a process
of its own, so that its peak memory is its own, and every video leaves a file behind: the same command goes on where it was
interrupted, also with more checkpoints or methods. Another length or number of steps needs another folder.
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
from experiments.e002_long_video.sheet import save_sheet, save_strip
from jaxvid.cli.main import use_compilation_cache
from jaxvid.data.shapes.reader import read
from jaxvid.eval.shapes_accuracy import score_seconds
from jaxvid.pipeline import Pipeline
from jaxvid.run import method_of
from jaxvid.sampling.methods.table import METHODS, model_with
from jaxvid.traits import shipped

PROMPTS = (
    "a large red star spins on a black background",
    "a small blue circle slides left and right on a white background",
    "a large green square bounces around on a black background",
    "a large yellow triangle pulses on a black background",
    "a small green ring slides up and down on a white background",
    "a large red cross circles clockwise on a white background",
)


def one(pipe: Pipeline, name: str, prompt: str, seed: int, seconds: float, steps: int | None, folder) -> dict:
    """All figures of one video; its contact sheet and a strip of it go to ``folder``, unless that is None."""
    method = name.partition("@")[0]
    before, compiled = time.monotonic(), _compiled(pipe)
    run = pipe.prepare(prompt, seconds=seconds, seed=seed, method=method, steps=steps)
    clip = pipe(prompt, seconds=seconds, seed=seed, method=method, steps=steps)
    wall, compiling = time.monotonic() - before, _compiled(pipe) - compiled
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before the reader takes its share
    if folder is not None:
        clip.contact_sheet(folder / f"{name}.png")
        save_strip(folder / "strips" / f"{name}.png", clip.frames)
    count = pipe.engine.vae.latent_frames(run.request.frames)
    followed = method_of(pipe.engine, pipe.serves, run.request, count)
    verdicts = read(clip.frames, clip.fps, [0.0])
    accuracy: list[dict] = [{} for _ in range(round(seconds))]
    for second, counts in score_seconds(clip.frames, clip.fps, [(0, prompt)], verdicts):
        accuracy[min(second, len(accuracy) - 1)] = counts
    inner = followed.window if followed.windows is None else followed.windows.length
    return {
        "method": name,
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
    use_compilation_cache()  # what methods have in common, such as the decoder, is compiled once
    name, where = options.one, options.on
    pipe = Pipeline.load(where)
    for prompt, seed in missing(options, name):
        folder = options.out if (prompt, seed) == (0, 0) else None
        made = one(pipe, name, PROMPTS[prompt], seed, options.seconds, options.steps, folder)
        write(place(options.out, name, prompt, seed), to_json({"model": model_name(where), **made}))
        print(f"{name}: prompt {prompt}, seed {seed}: {made['wall']:.1f} s", file=sys.stderr, flush=True)


def model_name(where) -> str:
    """What the table calls a checkpoint."""
    return pathlib.Path(where).resolve().name


def assigned(checkpoints, traits, asked) -> tuple[dict, list[str]]:
    """({name: checkpoint}, a line for each method that none of them can follow); ``asked`` None is every method."""
    places, lines = {}, []
    for name in METHODS if asked is None else asked:
        method, at, number = name.partition("@")
        if method not in METHODS or (at and number not in map(str, range(1, len(checkpoints) + 1))):
            raise SystemExit(f"{name!r} is no method, or no method@checkpoint of {len(checkpoints)}")
        needs = set(METHODS[method].needs)
        among = [int(number) - 1] if at else range(len(checkpoints))
        able = [i for i in among if needs <= traits[i]]
        if able:
            places[name] = checkpoints[able[0]]
        else:
            lines.append(f"{name}: not made, it needs {model_with(METHODS[method].needs)} and none was given")
    return places, lines


def report(options, names, notes) -> str:
    """Table, plot, figures and strips of all that there is; returns the table with its notes."""
    runs = {}
    for name in names:
        files = [place(options.out, name, p, s) for s in range(options.seeds) for p in range(options.prompts)]
        if all(file.exists() for file in files):
            runs[name] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not runs:
        return "\n".join(["nothing was made", *notes, ""])
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
    text += "".join(f"\n{note}\n" for note in notes)
    strips = {name: options.out / "strips" / f"{name}.png" for name in runs}
    save_sheet(options.out / "sheet.png", {name: path for name, path in strips.items() if path.exists()})
    write(options.out / "table.md", text)
    return text


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument(
        "--checkpoint",
        action="append",
        help="a bundle or a run (default: the shipped model); may be repeated",
    )
    made.add_argument("--seconds", type=float, default=60.0)
    made.add_argument("--steps", type=int)
    made.add_argument("--prompts", type=int, default=3, choices=range(1, len(PROMPTS) + 1))
    made.add_argument("--seeds", type=int, default=1)
    made.add_argument("--methods", help="names with commas (default: all)")
    made.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/e002"))
    made.add_argument("--one", help=argparse.SUPPRESS)  # the name, and on: the checkpoint, of a child
    made.add_argument("--on", help=argparse.SUPPRESS)
    return made


def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    options = parser().parse_args(argv)
    if options.one:
        child(options)
        return
    every = [str(path) for path in shipped()]
    checkpoints = [
        c for where in options.checkpoint or ["shipped"] for c in (every if where == "shipped" else [where])
    ]
    traits = [Pipeline.load(where).traits for where in checkpoints]
    places, notes = assigned(checkpoints, traits, options.methods and options.methods.split(","))
    asked = {name: getattr(options, name) for name in ("seconds", "steps")}
    settings = options.out / "settings.json"
    if settings.exists() and json.loads(settings.read_text(encoding="utf-8")) != asked:
        raise SystemExit(f"{options.out} holds videos of other settings ({settings}); give another --out")
    for name, where in places.items():
        for file in sorted((options.out / "videos").glob(f"{name}-*.json")):
            if (model := json.loads(file.read_text(encoding="utf-8"))["model"]) != model_name(where):
                raise SystemExit(f"{file} is of {model}, not of {model_name(where)}; give another --out")
    write(settings, json.dumps(asked, indent=1))
    text = report(options, places, notes)
    for name, where in places.items():
        if missing(options, name):
            command = [sys.executable, "-m", "experiments.e002_long_video.run", *argv, "--one", name]
            if subprocess.run(command + ["--on", where]).returncode:
                notes.append(f"{name}: failed on {model_name(where)}; the same command tries again")
        text = report(options, places, notes)  # after every method: an interrupted comparison is one already
    print(text)
    if any("failed" in note for note in notes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
