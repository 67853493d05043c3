# SPDX-License-Identifier: Apache-2.0
"""The race: ours and the peers one after the other, each in a process of its own; JSON and tables.

python -m experiments.e001_bench.run [--leg cpu|gpu] [--write docs/benchmarks.md] [--torch PYTHON]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import numpy as np

from experiments import page

H200 = 790.0  # TFLOP/s of a large bfloat16 product, measured; 989 by data sheet


def rows(python: str, module: str, arguments: list[str]) -> tuple[list[dict[str, Any]], str]:
    """What a process printed, and why there is no more of it."""
    command = [python, "-m", f"experiments.e001_bench.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    made = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    lines = done.stderr.strip().splitlines()
    return made, "" if not done.returncode else (lines[-1] if lines else f"it left with {done.returncode}")


def table(found: list[dict[str, Any]], leg: str) -> list[str]:
    """A line per case, pass and contestant. Backward counts 2.5 forward passes for attention and windows, 2 for others."""
    ceiling = H200
    if leg == "cpu":
        ceiling = next((r["flops"] / r["ms"] / 1e9 for r in found if r["case"] == "product 2048"), 0.0)
    lines = [
        "| case | pass | by | median ms | least to most | GFLOP/s | share of a product | error |",
        "|" + "---|" * 8,
    ]
    for row in found:
        error = f"{row['error']:.1e}" if "error" in row else ""
        head = f"| {row['case']} | {row['pass']} | {row['by']}"
        if "not" in row:
            lines.append(f"{head} | not: {row['not']} | | | | {error} |")
            continue
        rate = share = ""
        if row.get("flops"):
            twice = 3.5 if row["case"].startswith(("attention", "windows")) else 3.0
            done = row["flops"] * (twice if row["pass"] == "both" else 1.0)
            rate = f"{done / row['ms'] / 1e6:,.0f}"
            share = f"{done / row['ms'] / 1e9 / ceiling:.0%}" if ceiling else ""
        spread = f"{row['least']:.1f} to {row['most']:.1f}"
        lines.append(f"{head} | {row['ms']:.1f} | {spread} | {rate} | {share} | {error} |")
    return lines


def laws(found: list[dict[str, Any]]) -> list[str]:
    """A line per kind of block that was timed at three lengths or more: a + b n fitted to its milliseconds.

    n is the number in the case's name, such as seconds; the largest miss says how straight the line is.
    """
    times: dict[str, list[tuple[float, float]]] = {}
    unit = ""
    for row in found:
        kind, _, length = row["case"].partition(" block, ")
        if length and "ms" in row:
            n, unit = length.split()
            times.setdefault(kind, []).append((float(n), row["ms"]))
    lines = []
    for kind, points in times.items():
        if len(points) < 3:
            continue
        n, ms = np.asarray(points).T
        slope, start = np.polyfit(n, ms, 1)
        miss = np.abs(slope * n + start - ms).max() / ms.max()
        lines.append(f"- {kind} block: {start:.2f} ms + {slope:.3f} ms x {unit}, off by {miss:.1%} at most.")
    return ["", "Blocks by length, an affine law fitted by least squares:", "", *lines] if lines else []


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leg", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torch", default=sys.executable, help="an interpreter that has torch")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("bench.json"))
    parser.add_argument("--write", type=pathlib.Path, help="a page to put the tables in")
    args = parser.parse_args(argv)
    passed = ["--leg", args.leg, "--only", args.only, "--repeats", str(args.repeats)]
    found, missing = rows(sys.executable, "ours", passed)
    theirs, why = rows(args.torch, "peers", passed)
    more, no_tokamax = rows(sys.executable, "tokamax_peer", passed) if args.leg == "gpu" else ([], "")
    order = list(dict.fromkeys(row["case"] for row in found))
    found = sorted(
        found + theirs + more,
        key=lambda r: (order.index(r["case"]) if r["case"] in order else 99, r["pass"] == "both"),
    )
    versions = ", ".join(dict.fromkeys(row["version"] for row in found))
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    if args.leg == "gpu":
        machine = f"{next((row['device'] for row in found if 'device' in row), 'no GPU')}, {machine}"
    said = [
        f"## Against peers: {args.leg}",
        "",
        "Medians of wall time; `both` is forward and backward. Results were held against float64 on a small twin of the",
        "case before timing (error: largest difference over largest number). `make bench` runs it.",
        "",
        f"`python -m experiments.e001_bench.run {' '.join(sys.argv[1:] if argv is None else argv)}`, "
        f"{datetime.date.today()}, {versions}, Python {platform.python_version()}, {machine}, "
        f"load average {os.getloadavg()[0]:.1f} at the end.",
        "",
        *table(found, args.leg),
        *laws(found),
    ]
    said += ["", f"Ours ended early: {missing}"] if missing else []
    said += ["", f"Peers are missing: {why}"] if why else []
    said += ["", f"Not raced: {no_tokamax}"] if no_tokamax else []
    args.json.write_text(json.dumps({"leg": args.leg, "versions": versions, "rows": found}, indent=1))
    print("\n".join(said))
    if args.write:
        page.write(args.write, f"e001_bench {args.leg}", "\n".join(said))


if __name__ == "__main__":
    main()
