# SPDX-License-Identifier: Apache-2.0
"""The formulas of a backbone's cost against the count on its jaxpr, and where two costs cross."""

import pytest

from jaxvid.cli.plan_lengths import count, parameters, twins
from jaxvid.eval.costs import Geometry, break_even, formula
from jaxvid.models.video_dit import dit, lingen
from jaxvid.nn.refine import Refine

SMALL = dict(width=64, head=16, channels=4, text_width=32)
NETWORKS = {
    "lingen": lambda: lingen(
        repeats=1, scan_head=32, state=8, window=(4, 4, 4), review=(2, 2, 2), chunk=32, **SMALL
    ),
    "dit": lambda: dit(layers=2, **SMALL),
    "refined": lambda: dit(layers=2, refine=Refine(width=48, blocks=3), **SMALL),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_formula_and_count_agree(name):
    model, geometry = NETWORKS[name](), Geometry(32, 16, 16, 24)
    assert formula(model, geometry) == pytest.approx(count(model, geometry), rel=0.02)


def test_a_backbone_of_scans_is_linear_and_a_dit_is_not():
    once, twice = Geometry(64, 16, 16, 24), Geometry(128, 16, 16, 24)
    linear, quadratic = NETWORKS["lingen"](), NETWORKS["dit"]()
    assert formula(linear, twice) / formula(linear, once) == pytest.approx(2, rel=1e-3)
    assert formula(quadratic, twice) / formula(quadratic, once) > 3.5


def test_costs_cross_where_they_are_said_to():
    linear, quadratic = NETWORKS["lingen"](), NETWORKS["dit"]()
    tokens = break_even(linear, quadratic, Geometry(1, 16, 16, 24))
    at = lambda model, factor: formula(model, Geometry(factor * tokens / 64, 16, 16, 24))
    assert at(linear, 1) == pytest.approx(at(quadratic, 1), rel=0.05)
    assert at(linear, 1.5) < at(quadratic, 1.5) and at(linear, 0.5) > at(quadratic, 0.5)
    assert break_even(quadratic, linear, Geometry(1, 16, 16, 24)) is None


def test_twins_are_as_wide_and_as_large():
    model = NETWORKS["lingen"]()
    made = twins(model)
    assert {net.width for net in made.values()} == {64}
    assert made["DiT, equal width"].repeats == 4
    layer = parameters(dit(layers=2, **SMALL), 1) - parameters(dit(layers=1, **SMALL), 1)
    assert abs(parameters(made["DiT, equal parameters"], 1) - parameters(model, 1)) <= layer / 2 + 1
