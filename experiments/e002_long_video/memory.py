# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a fresh process that makes videos of growing length, method by method.

    python -m experiments.e002_long_video.memory [--checkpoint DIR] [--methods rollout,fifo] [--seconds 15,30,60] [--steps 2]

A process compiles on a short video, lets the kernel forget its peak, then makes the long one and hands its frames on as they
come: what is left is what generating takes. Linux only.
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


def child(options, seconds: float) -> None:
    """Prints the peak of one method at one length."""
    use_compilation_cache()
    pipe = Pipeline.load(options.checkpoint)
    for length in (WARM, seconds):
        before = peak(reset=length == seconds)
        for _ in pipe.stream(PROMPT, seconds=length, method=options.one, steps=options.steps):
            pass
    print(f"{before:.0f} {peak():.0f}")


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
    lengths = [float(length) for length in options.seconds.split(",")]
    if options.one:
        child(options, lengths[0])
        return
    traits = Pipeline.load(options.checkpoint).traits
    able = [name for name, e in METHODS.items() if e.memory == "constant" and set(e.needs) <= traits]
    print("| method | " + " | ".join(f"{length:g} s" for length in lengths) + " |")
    print("|---" * (len(lengths) + 1) + "|")
    for name in options.methods.split(",") if options.methods else able:
        cells = []
        for length in lengths:
            command = [sys.executable, "-m", "experiments.e002_long_video.memory", *argv]
            command += ["--one", name, "--seconds", str(length)]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
            cells.append(f"{said[1]} MiB (+{int(said[1]) - int(said[0])})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
