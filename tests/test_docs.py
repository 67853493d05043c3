# SPDX-License-Identifier: Apache-2.0
"""The site's pages: their commands are ones that the parsers take, their code runs, and their lists are whole."""

import importlib
import importlib.util
import keyword
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.cli import main, train_options
from jaxvid.config import build
from jaxvid.data.clips import ClipShape
from jaxvid.sampling.plan import time_table, together
from jaxvid.sampling.sample import sample

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "tutorials" not in path.parts)


def commands(path: pathlib.Path) -> list[str]:
    """Lines of code blocks that begin with jaxvid, behind variables of the environment or not."""
    code = re.findall(r"^```\w*\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    lines = [re.sub(r"^([A-Z_]+=\S+ )+", "", line) for block in code for line in block.splitlines()]
    return [line for line in lines if line.startswith("jaxvid ")]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: page.relative_to(DOCS).as_posix()
)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in commands(page):
        _, command, *rest = shlex.split(line, comments=True)
        assert command in main.COMMANDS, line
        if command == "train":
            train_options.parse(["jaxvid train", *rest])
            continue
        module = importlib.import_module(f"jaxvid.cli.{command + '_' * keyword.iskeyword(command)}")
        parser = main.Parser(prog=f"jaxvid {command}", allow_abbrev=False)
        module.arguments(parser)
        options = parser.parse_args(rest)
        if getattr(options, "config", None):
            assert pathlib.Path(options.config).is_file(), line


def test_what_is_added_in_one_file_works():
    page = (DOCS / "howto" / "add_in_one_file.md").read_text(encoding="utf-8")
    mixer, config, solver, dataset = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    names: dict = {"__name__": "tests.test_docs"}  # where `call` looks for what the page defines
    exec(mixer, names)
    x = jnp.ones((1, 2, 2, 2, 8))
    (made, memory), _ = names["Mean"]().init_with_output(jax.random.key(0), x)
    assert made.shape == x.shape and memory is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "Mean", names["Mean"])
        exec(config, names)
        assert [type(one) for one in build(names["dit"]).mixers] == [names["Mean"]] * 4
    exec(solver, names)
    plan, truth = together(4, 3), jnp.full((1, 3, 2), 0.5)
    ends = sample(
        lambda x, t, memory: (truth, memory), names["midpoint"](), plan, time_table(4), jnp.ones((1, 3, 2))
    )
    np.testing.assert_allclose(ends, truth, atol=1e-6)
    exec(dataset, names)
    source, shape = names["Fades"](), ClipShape(5, 4, 6, 8.0)
    clip = source.clip(3, shape)
    assert clip.x.shape == (5, 4, 6, 3) and clip.x.dtype == np.uint8
    np.testing.assert_array_equal(clip.x, source.clip(3, shape).x)
    assert source.key(3, shape) != source.key(4, shape)


def test_the_gallery_shows_every_picture():
    shown = set(re.findall(r"\]\(([\w./-]+\.(?:png|webp|gif))\)", (DOCS / "gallery.md").read_text()))
    assert shown == {path.name for path in DOCS.iterdir() if path.suffix in (".png", ".webp", ".gif")}


def test_every_public_room_is_in_the_reference():
    said = set(
        re.findall(
            r"^   ((?:jaxvid|pallas_kernels)[\w.]*)$", (DOCS / "reference" / "index.md").read_text(), re.M
        )
    )
    rooms = {f"jaxvid.{name}" for name in importlib.import_module("jaxvid")._ROOMS}
    assert rooms <= said
    assert all(importlib.util.find_spec(name) for name in said)


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([\w./-]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"
