# SPDX-License-Identifier: Apache-2.0
"""Scores: what is wrong is counted as wrong, once, under its own name."""

import math

import pytest

from jaxvid.data.shapes import parse, render, story_scene
from jaxvid.eval.shapes_accuracy import ATTRIBUTES, add, score, summarise, wilson
from jaxvid.types import InputError

TRUTH = "a large red star spins and a small blue ring slides left and right on a black background"


@pytest.fixture(scope="module")
def frames():
    return render(story_scene([(0, parse(TRUTH))], 4), 64, 16.0, 64)


def test_the_truth_is_right(frames):
    counts = score(frames, 16.0, [(0, TRUTH)])
    assert counts == {name: (4, 4) if name in ("count", "background") else (8, 8) for name in ATTRIBUTES}


@pytest.mark.parametrize(
    "said, wrong",
    [
        ("large red star spins", None),
        ("large green star spins", "colour"),
        ("large red cross spins", "shape"),
        ("small red star spins", "size"),
        ("large red star pulses", "motion"),
    ],
)
def test_one_lie_is_one_wrong_attribute(frames, said, wrong):
    counts = score(frames, 16.0, [(0, TRUTH.replace("large red star spins", said))])
    for name, (right, total) in counts.items():
        assert total - right == (4 if name == wrong else 0), name


def test_order_of_naming_does_not_matter(frames):
    turned = "a small blue ring slides left and right and a large red star spins on a black background"
    assert score(frames, 16.0, [(0, turned)]) == score(frames, 16.0, [(0, TRUTH)])


def test_missing_and_surplus_objects(frames):
    less = score(frames, 16.0, [(0, "a large red star spins on a white background")])
    assert less["count"] == (0, 4) and less["background"] == (0, 4) and less["shape"] == (4, 4)
    alone = render(story_scene([(0, parse("a large red star spins on a black background"))], 4), 64, 16.0, 64)
    more = score(alone, 16.0, [(0, TRUTH)])
    assert more["count"] == (0, 4) and more["shape"] == (4, 8) and more["motion"] == (4, 8)


def test_what_is_unsaid_is_not_scored(frames):
    counts = score(frames, 16.0, [(0, "a red star and a shape")])
    assert counts["background"] == counts["size"] == counts["motion"] == (0, 0)
    assert counts["colour"] == counts["shape"] == (4, 4)


def test_seconds_with_a_border_are_not_scored():
    story = [(0, "a red star spins on a black background"), (3.5, "a blue star spins on a black background")]
    frames = render(story_scene([(s, parse(text)) for s, text in story]), 112, 16.0, 64)
    counts = score(frames, 16.0, [(0, story[0][1]), (56, story[1][1])])
    assert counts["colour"] == (6, 6) and counts["motion"] == (6, 6)
    # A border on the second's own edge spoils no second; a span under three seconds shows no motion.
    frames = render(story_scene([(0, parse(story[0][1])), (5, parse(story[1][1]))]), 112, 16.0, 64)
    counts = score(frames, 16.0, [(0, story[0][1]), (80, story[1][1])])
    assert counts["colour"] == (7, 7) and counts["motion"] == (5, 5)


def test_sums_and_intervals():
    counts = add([dict.fromkeys(ATTRIBUTES, (1, 2)), dict.fromkeys(ATTRIBUTES, (3, 4))])
    rows = summarise(counts)
    assert counts["shape"] == (4, 6) and rows["all"]["total"] == 36
    assert rows["shape"]["low"] < rows["shape"]["accuracy"] == 4 / 6 < rows["shape"]["high"]
    assert math.isnan(summarise(dict.fromkeys(ATTRIBUTES, (0, 0)))["all"]["accuracy"])


@pytest.mark.parametrize("right, total", [(0, 10), (5, 10), (10, 10), (995, 1000)])
def test_wilson_solves_its_equation(right, total):
    """The limits are the p at which the observed share lies z standard errors away."""
    for p in wilson(right, total):
        if 0 < p < 1:
            assert abs(right / total - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / total), rel=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_bad_captions(frames):
    with pytest.raises(InputError, match="'cat'"):
        score(frames, 16.0, [(0, "a cat")])
