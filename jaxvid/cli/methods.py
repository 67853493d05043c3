# SPDX-License-Identifier: Apache-2.0
"""Lists the ways to generate: what each needs of a model, its memory, its cost, its options and its paper."""

from __future__ import annotations


def arguments(parser):
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="mark those that this bundle or training run can follow"
    )


def run(options) -> None:
    """Prints to standard output."""
    from jaxvid.sampling.methods.table import METHODS

    traits = None
    if options.checkpoint is not None:
        from jaxvid.pipeline import Pipeline

        traits = Pipeline.load(options.checkpoint).traits
    head = ("method", "memory", "calls per latent frame", "needs")
    rows = [(name, e.memory, e.calls, " and ".join(e.needs) or "any model") for name, e in METHODS.items()]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    line = lambda row: "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    print(line(head))
    for name, row in zip(METHODS, rows, strict=True):
        entry = METHODS[name]
        lacking = "" if traits is None or set(entry.needs) <= traits else "  (not with this checkpoint)"
        print(line(row) + lacking)
        print(f"    {entry.summary}.")
        if entry.options:
            print("    options: " + ", ".join(f"{key}={value}" for key, value in entry.options.items()))
        print(f"    {entry.reference}")
    print("S: solver steps; W, O: latent frames in a window, of its overlap; F: of the video.")
