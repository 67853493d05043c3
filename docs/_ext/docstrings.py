# SPDX-License-Identifier: Apache-2.0
"""Docstrings are written to be read in the source: a block that is indented behind an empty line is shown as it stands.

Sections in Google's form (``Args:`` and the like, their lines indented at once) are left to napoleon.
"""

from __future__ import annotations

import re

ARRAY = re.compile(r"~?(?:jax\.)?jaxlib\._jax\.Array")
LINEN = re.compile(r"(?:, )?parent: [^=]*= <[^>]*>, name: str \| None = None\)")
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
    if [line for line in lines if line] == ["Call self as a function."]:  # Python's own words
        lines.clear()
    lines[:] = preformatted(lines)


def shown(app, what, name, obj, options, signature, returned):
    """Signatures without what Linen adds to every module's, and arrays under the name that they are known by."""
    signature, returned = (text and ARRAY.sub("~jax.Array", text) for text in (signature, returned))
    return signature and LINEN.sub(")", signature), returned


def left_out(app, what, name, obj, skip, options):
    """Fields of named tuples, of which Python says no more than their number: the class speaks of them."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app):
    app.connect("autodoc-skip-member", left_out)
    app.connect("autodoc-process-signature", shown)
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "version": "1"}
