# SPDX-License-Identifier: Apache-2.0
"""Docstrings are written to be read in the source: a block that is indented behind an empty line is shown as it stands.

Sections in Google's form (``Args:`` and the like, their lines indented at once) are left to napoleon.
"""

from __future__ import annotations

import re

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):\s*$")


def preformatted(lines: list[str]) -> list[str]:
    """The lines with reStructuredText's mark before every such block."""
    made, inside, section = [], False, False
    for before, line in zip(["x", *lines], lines, strict=False):
        indented = line.startswith("  ")
        if line and not indented:
            inside, section = False, bool(SECTION.match(line))
        elif indented and not inside and not section and not before.strip():
            made += ["::", ""]
            inside = True
        made.append(line)
    return made


def process(app, what, name, obj, options, lines):
    lines[:] = preformatted(lines)


def setup(app):
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "version": "1"}
