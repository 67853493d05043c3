# SPDX-License-Identifier: Apache-2.0
"""Writes imported weights back in diffusers' layout or the authors', bit for bit, with their licence."""

from __future__ import annotations

import pathlib


def arguments(parser):
    parser.add_argument("directory", metavar="DIR", help="made by jaxvid import")
    parser.add_argument(
        "--format", choices=("diffusers", "original"), required=True, help="whose names and files"
    )
    parser.add_argument("--to", metavar="OUT", help="the directory to make (default: DIR-FORMAT beside it)")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="of a file at most (default: 5)")


def run(options) -> None:
    """Prints what was written, the licence, and the directory on the last line of standard output."""
    from jaxvid.exports import export
    from jaxvid.request import number

    source = pathlib.Path(options.directory)
    target = pathlib.Path(options.to or source.with_name(f"{source.name}-{options.format}"))
    largest = int(number(options.shard_gb, "--shard-gb", above=0) * 1e9)
    for line in export(source, target, options.format, largest):
        print(line)
    print(target)
