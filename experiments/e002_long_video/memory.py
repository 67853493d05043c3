# SPDX-License-Identifier: Apache-2.0
"""Peak memory while videos of growing length are made, method by method.

    python -m experiments.e002_long_video.memory [--checkpoint DIR] [--methods rollout,fifo] [--seconds 15,30,60] [--steps 2]

A fresh process for each method compiles on a short video; then, for each length, the kernel forgets the process's peak, and
a video is made and its frames are handed on as they come. What an allocator keeps can only make later peaks higher. Linux
only.
"""

import argparse
import pathlib
import subprocess
import sys

from jaxvid.cli.main import use_compilation_cache
from jaxvid.pipeline import Pipeline
from jaxvid.sampling.methods.table import METHODS

PROMPT = "a large red star spins on a black background"
WARM = 10.0  # seconds: more than one window


def peak(reset: bool = False) -> float:
    """The process's greatest resident size so far in MiB; with ``reset`` the kernel forgets it first."""
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def child(options) -> None:
    """Prints resident size in MiB before the first length and the peak of each."""
    use_compilation_cache()
    pipe = Pipeline.load(options.checkpoint)
    said = [peak()]
    for length in [WARM, *lengths_of(options)]:
        peak(reset=True)
        for _ in pipe.stream(PROMPT, seconds=length, method=options.one, steps=options.steps):
            pass
        said.append(peak())
    del said[1]  # that of compiling
    print(" ".join(f"{one:.0f}" for one in said))


def lengths_of(options) -> list[float]:
    return sorted(float(length) for length in options.seconds.split(","))


def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a bundle or a run (default: the shipped model)")
    parser.add_argument(
        "--methods", help="names with commas (default: all with constant memory that it can follow)"
    )
    parser.add_argument("--seconds", default="15,30,60")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        child(options)
        return
    lengths = lengths_of(options)
    traits = Pipeline.load(options.checkpoint).traits
    able = [name for name, e in METHODS.items() if e.memory == "constant" and set(e.needs) <= traits]
    print("| method | loaded | " + " | ".join(f"{length:g} s" for length in lengths) + " |")
    print("|---" * (len(lengths) + 2) + "|")
    for name in options.methods.split(",") if options.methods else able:
        command = [sys.executable, "-m", "experiments.e002_long_video.memory", *argv, "--one", name]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        print(f"| {name} | {' | '.join(f'{one} MiB' for one in said)} |", flush=True)


if __name__ == "__main__":
    main()
