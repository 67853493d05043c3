# SPDX-License-Identifier: Apache-2.0
"""The race of experiments/e001_bench: the same work for all, what is right, and what the page makes of the rows."""

import json
import sys

import numpy as np
import pytest

from experiments.e001_bench import cases, ours, run


def row(case, ms, **more):
    return dict(case=case, by="x", ms=ms, least=ms, most=ms, flops=None, **{"pass": "forward"}, **more)


@pytest.mark.parametrize("leg", ["cpu", "gpu"])
def test_every_case_has_offers_and_a_name_of_its_own(leg):
    names = [case.name for case in cases.cases(leg)]
    assert len(set(names)) == len(names)
    for case in cases.cases(leg):
        if case.kind in ("attention", "windows", "scan", "conv"):
            assert len(cases.inputs(case.small)) == len(cases.shapes(case.small))
            assert list(ours.programs(case, leg))


@pytest.mark.parametrize("kind", ["attention", "windows", "scan", "conv"])
def test_ours_is_right_on_the_small_twin(kind):
    case = next(case for case in cases.cases("cpu") if case.kind == kind)
    for name in ours.OFFERS["cpu"].get(kind, ("",)):
        assert ours.check(case, name) < cases.TOLERANCE["float32"]


def test_an_affine_law_is_found():
    rows = [row(f"LinGen block, {n} s", 3 + 0.5 * n) for n in (17, 34, 68)] + [row("DiT block, 17 s", 1.0)]
    said = "\n".join(run.laws(rows))
    assert "LinGen block: 3.00 ms + 0.500 ms x s, off by 0.0% at most" in said and "DiT" not in said
    assert run.laws(rows[:2]) == []


def test_a_table_says_what_was_refused_and_how_fast_the_rest_was():
    rows = [
        dict(row("product 2048", 10.0), flops=1e9),
        dict(row("attention full", 5.0), flops=1e9, **{"pass": "both"}, error=1e-6),
        dict(case="attention full", by="y", **{"pass": "forward", "not": "takes bfloat16"}),
    ]
    table = run.table(rows, "cpu")
    assert "| 700 | 700% | 1.0e-06 |" in table[3], "3.5 times the arithmetic of the forward pass"
    assert "not: takes bfloat16" in table[4]


def test_what_a_process_cannot_do_is_told():
    found, why = run.rows(sys.executable, "tokamax_peer", ["--leg", "gpu", "--only", "no such case"])
    assert found == [] and ("where it is installed" in why or not why)
    assert json.dumps(found) == "[]" and np.isfinite(run.H200)
