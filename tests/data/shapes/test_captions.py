# SPDX-License-Identifier: Apache-2.0
"""Captions: parse undoes caption, for everything that can be seen and every way of saying it."""

import dataclasses

import numpy as np
import pytest

from jaxvid.data.shapes import (
    BACKGROUNDS,
    Attributes,
    Look,
    caption,
    captions,
    every_look,
    parse,
    sample_scene,
)
from jaxvid.types import InputError

LOOKS = list(every_look())
SAID = ("shape", "colour", "size", "motion")


def test_every_look_is_the_whole_world():
    assert len(LOOKS) == len(set(LOOKS)) == 8 * 2 * (4 * 8 + 2 * 7)


@pytest.mark.parametrize("variant", range(3))
def test_parse_undoes_caption(variant):
    """All looks on all backgrounds, alone and in pairs, in the plain way (0) and in random paraphrases."""
    rng = np.random.default_rng(variant)
    for i, look in enumerate(LOOKS):
        other = LOOKS[int(rng.integers(len(LOOKS)))]
        pairs = [(background, (look,)) for background in (*BACKGROUNDS, None)]
        for background, objects in [*pairs, ((*BACKGROUNDS, None)[i % 4], (look, other))]:
            told = Attributes(background, objects)
            assert parse(caption(told, variant=rng if variant else 0)) == told


def test_parse_undoes_what_is_left_unsaid():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        objects = [LOOKS[int(rng.integers(len(LOOKS)))] for _ in range(int(rng.integers(1, 3)))]
        objects = [dataclasses.replace(o, **{k: None for k in SAID if rng.random() < 0.4}) for o in objects]
        told = Attributes("white" if rng.random() < 0.5 else None, tuple(objects))
        assert parse(caption(told, variant=rng)) == told


def test_plain_captions():
    one = Look("star", "red", "large", "bounces around")
    two = Look("ring", "blue", "small", "slides up and down")
    assert caption(Attributes("black", (one,))) == "a large red star bounces around on a black background"
    assert caption(Attributes("black", (one, two))) == (
        "a large red star bounces around and a small blue ring slides up and down on a black background"
    )
    assert caption(Attributes("gray", (one,)), motion=False) == "a large red star on a gray background"


def test_paraphrases_are_many_and_repeatable():
    told = Attributes("gray", (Look("star", "red", "large", "spins"),))
    assert len({caption(told, variant=v) for v in range(200)}) > 40
    assert caption(told, variant=17) == caption(told, variant=17)


def test_a_sentence_of_ones_own():
    assert parse("A red star spins.") == Attributes(None, (Look("star", "red", None, "spins"),))
    assert parse("the big object moves clockwise in a circle against a grey background").objects[0] == Look(
        None, None, "large", "circles clockwise"
    )


def test_spans_of_a_scene():
    for seed in range(200):
        scene = sample_scene(seed, "all", seconds=12.0, events=1.0)
        spans = captions(scene, 192, 16.0)
        assert [frame for frame, _ in spans] == [int(np.ceil(s * 16 - 1e-6)) for s in scene.borders()]
        assert spans[0][0] == 0 and len(spans) > 1
        for frame, text in spans:
            assert parse(text) == scene.at(frame / 16)
    assert len(captions(scene, 1, 16.0)) == 1
    assert all(look.motion is None for look in parse(captions(scene, 1, 16.0)[0][1]).objects)


@pytest.mark.parametrize(
    "text, named",
    [
        ("", "names no object"),
        ("a cat walks", "'cat'"),
        ("a red star dances", "'dances'"),
        ("a red", "names no shape"),
        ("a red star on a pink background", "'pink'"),
        ("a red star and a blue ring and a green cross", "3 objects"),
        ("a red blue star", "'blue'"),
        ("x" * 100_000, "not understood"),
    ],
)
def test_what_cannot_be_parsed_is_named(text, named):
    with pytest.raises(InputError, match=named) as error:
        parse(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
