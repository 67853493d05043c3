# SPDX-License-Identifier: Apache-2.0
"""The report of a run: held-out loss at the start and the end, pictures, and what the time went into."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from jaxvid.cli.codec import write_text


def write_report(workdir: str, stages: Sequence[dict[str, Any]]) -> None:
    """WORKDIR/report.md, from what every finished stage has to tell."""
    lines = [f"# {os.path.basename(workdir)}", ""]
    for stage in stages:
        lines += _stage(workdir, stage)
    write_text(os.path.join(workdir, "report.md"), "\n".join(lines) + "\n")


def _stage(workdir: str, stage: dict[str, Any]) -> list[str]:
    name, history = stage["stage"], stage["history"]
    lines = [f"## {name}", "", f"{stage['step']} steps; {stage['seconds']:.0f} s in the last run.", ""]
    if history:
        first, last = history[0], history[-1]
        lines += [
            f"| held out | step {first['step']} | step {last['step']} |",
            "|---|---|---|",
            *(f"| {k} | {first[k]:.5g} | {last[k]:.5g} |" for k in last if k != "step" and k in first),
            "",
        ]
    if stage["times"]:
        lines += ["| bucket | compile | step (median) | steps |", "|---|---|---|---|"]
        for bucket, t in stage["times"].items():
            lines.append(f"| {bucket} | {t['compile']:.1f} s | {t['step']:.3f} s | {t['steps']} |")
        lines.append("")
    if stage.get("bad"):
        lines += [f"{len(stage['bad'])} files could not be used:", ""]
        lines += [*(f"- {why}" for why in list(stage["bad"].values())[:100]), ""]
    for picture, said in (
        ("reconstruction.png", "originals above, reconstructions below"),
        ("sample.png", "a sample"),
    ):
        if os.path.isfile(os.path.join(workdir, name, picture)):
            lines += [f"![{said}]({name}/{picture})", "", f"{said[0].upper()}{said[1:]}.", ""]
    return lines
