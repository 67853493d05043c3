# SPDX-License-Identifier: Apache-2.0
"""Docstrings say `name` as Markdown does: code, and a link where the name is one that the reference describes."""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxRole
from sphinx.util.nodes import make_refnode


class Backticks(SphinxRole):
    """Code that may turn out to be the name of something."""

    def run(self):
        shown = nodes.literal(self.text, self.text)
        node = addnodes.pending_xref(
            self.rawtext,
            shown,
            refdomain="",
            reftype="backticks",
            reftarget=self.text,
            refdoc=self.env.docname,
            module=self.env.ref_context.get("py:module"),
            holder=self.env.ref_context.get("py:class"),
        )
        return [node], []


def resolve(app, env, node, contnode):
    """A link to what the name stands for where it is said, or just the code."""
    if node.get("reftype") != "backticks":
        return None
    objects = env.get_domain("py").objects
    name = node["reftarget"].removesuffix("()")
    module, holder = node.get("module"), node.get("holder")
    near = [f"{module}.{holder}.{name}" if holder else "", f"{module}.{name}", name, f"jaxvid.{name}"]
    found = next((full for full in near if full in objects), None)
    if found is None:  # said of another room: only what one thing alone is called
        ends = [
            full for full, entry in objects.items() if full.endswith(f".{name}") and entry.objtype in LOOSE
        ]
        found = ends[0] if len(ends) == 1 else None
    if found is None:
        return contnode
    entry = objects[found]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found)


LOOSE = ("class", "exception", "function", "module")


def setup(app):
    app.add_role("backticks", Backticks())
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "version": "1"}
