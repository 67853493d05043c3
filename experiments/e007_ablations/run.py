# SPDX-License-Identifier: Apache-2.0
"""What LinGen's parts are worth: networks that differ in one thing, each trained for the same time from chance, then read.

    python -m experiments.e007_ablations.run [--minutes 20] [--clips 24] [--long 4] [--only NAME,NAME] [--out FOLDER]
    python -m experiments.e007_ablations.run --time [--out FOLDER]      # sampling timed anew, one network after the other

Every network trains and is judged in a process of its own, on latents that the first of them makes (`latents` there).
The same command goes on where it was interrupted; several of them, each with its own ``--only`` and one core, may share a
folder once the latents are there.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import jax

from experiments.e000_linear_law.run import count, parameters
from experiments.e002_long_video.run import write
from experiments.e003_shapes_accuracy.run import generated, sources
from experiments.e007_ablations.variants import NETWORKS, recipe
from jaxvid.cli.main import use_compilation_cache
from jaxvid.cli.progress import Progress
from jaxvid.cli.train import train
from jaxvid.config import build
from jaxvid.data.clips import ClipShape
from jaxvid.eval.shapes_accuracy import add, summarise
from jaxvid.pipeline import Pipeline

SIDE, TEXT, FPS = 8, 28, 16.0  # latent rows and columns, pooled text tokens, frames a second
LATENTS = 12, 240  # frames of a training clip and of a minute


def place(out: pathlib.Path, name: str) -> pathlib.Path:
    """The directory of a network's run."""
    return out / name.replace(" ", "_")


def cpu_minutes() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) / 60


def learn(name: str, folder: pathlib.Path, minutes: float, command: list[str]) -> None:
    """Trains, or goes on; the CPU time of all processes that took part is kept beside the run."""
    begun, progress, kept = cpu_minutes(), Progress(), folder / "cpu_minutes.json"
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else 0.0
    try:
        train(
            recipe(name, minutes, os.path.abspath(folder.parent / "latents")),
            os.fspath(folder),
            command,
            True,
            progress,
        )
    finally:
        progress.close()
        write(kept, json.dumps(before + cpu_minutes() - begun))


def judge(name: str, folder: pathlib.Path, clips: int, long: int) -> dict:
    """What the reader makes of four seconds and of a minute, and what the network costs."""
    pipe = Pipeline.load(folder)
    found, four = {}, ClipShape(64, 64, 64, FPS)
    for kind, source in sources(clips, (1.0, 0.0)).items():
        found[kind] = generated(pipe, source, four, 4.0)
    seconds = timed(pipe)
    (minute,) = (source for kind, source in sources(long, (1.0, 0.0)).items() if kind == "seen pairs")
    found["a minute"] = generated(pipe, minute, ClipShape(960, 64, 64, FPS), 60.0)
    done = json.loads((folder / "backbone" / "done.json").read_text(encoding="utf-8"))
    network = build(NETWORKS[name])
    return {
        "name": name,
        "parameters": sum(x.size for x in jax.tree.leaves(parameters(network))),
        "flops": [count(network, n, SIDE, TEXT).total for n in LATENTS],
        "steps": done["step"],
        "held out": done["history"][-1]["loss"],
        "cpu minutes": json.loads((folder / "cpu_minutes.json").read_text(encoding="utf-8")),
        "sampling": seconds,
        "clips": clips,
        "long": long,
        "counts": found,
    }


def timed(pipe: Pipeline, times: int = 5) -> float:
    """Seconds that a clip of four seconds takes once its programs are compiled, the median of several."""
    took = []
    for seed in range(times + 1):
        begun = time.monotonic()
        pipe("a large red star spins on a black background", seconds=4, seed=seed)
        took.append(time.monotonic() - begun)
    return statistics.median(took[1:])


def table(rows: list[dict]) -> str:
    """A line a network."""
    head = (
        "network, parameters M, GFLOPs a call of 3 s, of 60 s, steps, CPU-minutes, held-out loss, seen pairs, held-out "
        "pairs, 95 % interval of both, a minute, 95 % interval, 4 s in s"
    ).split(", ")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        every = {kind: summarise(counts)["all"] for kind, counts in row["counts"].items()}
        both = summarise(add([row["counts"]["seen pairs"], row["counts"]["held-out pairs"]]))["all"]
        share = lambda kind, every=every: f"{100 * every[kind]['accuracy']:.1f}"
        between = lambda found: f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"
        cells = [
            row["name"],
            f"{row['parameters'] / 1e6:.2f}",
            *(f"{flops / 1e9:.2f}" for flops in row["flops"]),
            f"{row['steps']:,}",
            f"{row['cpu minutes']:.1f}",
            f"{row['held out']:.3f}",
            share("seen pairs"),
            share("held-out pairs"),
            between(both),
            share("a minute"),
            between(every["a minute"]),
            f"{row['sampling']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--minutes", type=float, default=20.0, help="of training, compiling not counted")
    made.add_argument(
        "--clips", type=int, default=24, help="of four seconds, seen pairs and held-out pairs each"
    )
    made.add_argument("--long", type=int, default=4, help="of a minute")
    made.add_argument("--only", help="names with commas (default: all)")
    made.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/e007"))
    made.add_argument("--time", action="store_true", help="only time the sampling of those that are done")
    made.add_argument("--one", help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.one:
        use_compilation_cache()
        folder = place(options.out, options.one)
        learn(options.one, folder, options.minutes, sys.argv)
        write(
            folder / "found.json",
            json.dumps(judge(options.one, folder, options.clips, options.long), indent=1),
        )
        return
    asked = options.only.split(",") if options.only else list(NETWORKS)
    if unknown := set(asked) - set(NETWORKS):
        raise SystemExit(f"{sorted(unknown)}: no such network; there are {', '.join(NETWORKS)}")
    for name in asked:
        file = place(options.out, name) / "found.json"
        if options.time and not file.exists():
            print(f"{name} is not done and is not timed", file=sys.stderr)
        elif options.time:
            use_compilation_cache()
            found = json.loads(file.read_text(encoding="utf-8"))
            write(file, json.dumps({**found, "sampling": timed(Pipeline.load(file.parent))}, indent=1))
        elif not file.exists():
            command = [sys.executable, "-m", "experiments.e007_ablations.run", *sys.argv[1:], "--one", name]
            if code := subprocess.run(command).returncode:
                raise SystemExit(f"{name} failed ({code}); the same command goes on")
    files = [place(options.out, name) / "found.json" for name in NETWORKS]
    text = table([json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()])
    write(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
