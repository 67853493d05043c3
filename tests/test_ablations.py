# SPDX-License-Identifier: Apache-2.0
"""The networks of `experiments/e007_ablations` differ in what their names say, and their table says what was found."""

import math

import jax
import pytest

from experiments.e000_linear_law.run import parameters
from experiments.e007_ablations.run import table
from experiments.e007_ablations.variants import NETWORKS, recipe
from jaxvid.config import build, to_json
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.nn.mixers.mate import Mate


def paths(model):
    flat, _ = jax.tree_util.tree_flatten_with_path(parameters(model))
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in flat}


def size(model):
    return sum(math.prod(shape) for shape in paths(model).values())


@pytest.fixture(scope="module")
def networks():
    return {name: build(node) for name, node in NETWORKS.items()}


def test_one_thing_differs(networks):
    ours = networks["LinGen"]
    assert [m.far.order for m in ours.mixers] == [0, 1, 2, 3]
    assert all(m.far.review for m in ours.mixers)
    assert not any(m.far.review for m in networks["without review tokens"].mixers)
    one = networks["one scan order"]
    assert [m.far.order for m in one.mixers] == [0] * 4
    assert [m.far.clone(order=0) for m in ours.mixers] == [m.far for m in one.mixers]
    assert [m.near for m in ours.mixers] == [m.near for m in one.mixers]
    scans = networks["without TESA"].mixers
    assert all(isinstance(m, Mamba) for m in scans)
    assert [m.far for m in ours.mixers] == list(scans)
    same = {name: paths(networks[name]) for name in ("LinGen", "without review tokens", "one scan order")}
    assert len({tuple(sorted(p.items())) for p in same.values()}) == 1
    for name, model in networks.items():
        if name.startswith("DiT"):
            assert all(isinstance(m, Attention) for m in model.mixers)
            assert model.width == ours.width
        else:
            assert name == "without TESA" or all(isinstance(m, Mate) for m in model.mixers)


def test_equal_is_equal(networks):
    ours, twin = size(networks["LinGen"]), size(networks["DiT of equal parameters"])
    assert abs(twin / ours - 1) < 0.02
    assert networks["DiT of equal width"].repeats == ours_layers(networks["LinGen"])


def ours_layers(model):
    return model.repeats * len(model.mixers)


def test_only_the_network_differs():
    texts = set()
    for name, node in NETWORKS.items():
        config = recipe(name, 20)
        assert to_json(config.stages.backbone.task.model.dit) == to_json(node)
        config.stages.backbone.task.model.dit = None
        texts.add(to_json(config))
    assert len(texts) == 1


def test_the_table_says_what_was_found():
    counts = {
        kind: dict.fromkeys(("count", "background", "shape", "colour", "size", "motion"), (3, 4))
        for kind in ("seen pairs", "held-out pairs", "a minute")
    }
    counts["a minute"]["shape"] = (0, 4)
    row = {
        "name": "X",
        "parameters": 1_500_000,
        "flops": [5e8, 1.1e10],
        "steps": 1234,
        "held out": 0.5,
        "cpu minutes": 20.4,
        "sampling": 1.25,
        "clips": 24,
        "long": 4,
        "counts": counts,
    }
    line = table([row]).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:9] == ["X", "1.50", "0.50", "11.00", "1,234", "20.4", "0.500", "75.0", "75.0"]
    assert cells[10] == "62.5"  # 15 of 24
    assert len(cells) == table([row]).splitlines()[0].count("|") - 1
