# SPDX-License-Identifier: Apache-2.0
"""The directive `commands`: every `jaxvid COMMAND` as its own argument parser describes it."""

from __future__ import annotations

import argparse
import functools
import importlib
import keyword

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from jaxvid.cli import main


class Commands(SphinxDirective):
    """A section for each command, in the order of `jaxvid --help`."""

    def run(self):
        return [self.section(name, said) for name, said in main.COMMANDS.items()]

    def section(self, name, said):
        module = importlib.import_module(f"jaxvid.cli.{name + '_' * keyword.iskeyword(name)}")
        self.env.note_dependency(module.__file__)
        title = f"jaxvid {name}"
        section = nodes.section("", nodes.title("", "", nodes.literal(title, title)), ids=[f"jaxvid-{name}"])
        self.state.document.note_explicit_target(section, section)
        section += nodes.paragraph(said, f"{said[0].upper()}{said[1:]}.")
        if name == "train":  # absl reads its command line, and its help is the docstring
            from jaxvid.cli.train_options import __doc__ as text

            section += nodes.literal_block(text, text.strip())
            return section
        wide = functools.partial(argparse.HelpFormatter, width=100)
        about = module.__doc__.split("\n")[0]
        parser = main.Parser(prog=title, description=about, allow_abbrev=False, formatter_class=wide)
        module.arguments(parser)
        section += nodes.literal_block(parser.format_usage(), parser.format_usage().strip())
        options = [described(parser, action) for action in parser._actions if action.dest != "help"]
        if options:
            section += nodes.option_list("", *options)
        return section


def described(parser, action):
    """One argument: how it is written and what its help says."""
    formatter = parser.formatter_class(parser.prog)
    default = action.dest.upper() if action.option_strings else action.dest
    value = formatter._format_args(action, default) if action.nargs != 0 else ""
    spelled = action.option_strings or [value]
    group = nodes.option_group()
    for text in spelled:
        option = nodes.option("", nodes.option_string(text, text))
        if action.option_strings and value:
            option += nodes.option_argument(value, value, delimiter=" ")
        group += option
    words = formatter._expand_help(action) if action.help else ""
    return nodes.option_list_item("", group, nodes.description("", nodes.paragraph(words, words)))


def setup(app):
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "version": "1"}
