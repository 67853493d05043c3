# SPDX-License-Identifier: Apache-2.0
"""How the site is built: `make docs` writes it to build/docs, and fails on any warning."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import jaxvid  # noqa: E402

project = "JaxVid"
author = "The JaxVid authors"
copyright = "The JaxVid authors, Apache-2.0"
version = release = jaxvid.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "backticks",
    "docstrings",
    "commands",
]
html_theme = "furo"
html_title = "JaxVid"
templates_path = ["_templates"]
# tutorials is a link to colab, where strip.py lies beside the notebooks
exclude_patterns = ["_ext", "_templates", "tutorials/.ipynb_checkpoints", "**/README.md"]

# Notebooks are shown as they are kept, without outputs: tests/test_colab.py runs them, the site does not.
nb_execution_mode = "off"
myst_heading_anchors = 3

default_role = "backticks"
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# what a package gathers from its modules is described there
autodoc_default_options = {"members": True, "special-members": "__call__", "ignore-module-all": True}
autodoc_typehints = "signature"
python_display_short_literal_types = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
smartquotes = False  # -- is the beginning of an option

# Other libraries' names lead nowhere, for the site is built without a network; names of ours have to be found.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(collections|flax|grain|jax|jaxlib|jaxtyping|ml_collections|mmap|np|numpy|optax|os|pathlib|re)\..*",
    ),
    # what is left of annotations in quotes that are cut at a comma, and of aliases
    ("py:class", r"ndarray|Array|Rate|tuple\[.*"),
]
