# SPDX-License-Identifier: Apache-2.0
"""Where experiments put their tables: on a page, each between marks of its own."""

from __future__ import annotations

import os
import pathlib


def write(path: pathlib.Path, name: str, text: str) -> None:
    """Puts the text between the marks of the experiment ``name``, leaving the rest of the page alone."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = path.read_text() if path.exists() else f"# Benchmarks\n\n{begin}\n{end}\n"
    if begin not in page:
        page += f"\n{begin}\n{end}\n"
    before, rest = page.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    os.replace(aside, path)
