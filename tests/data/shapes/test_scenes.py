# SPDX-License-Identifier: Apache-2.0
"""Scenes: what is held out never shows, objects keep apart, and nothing ever jumps."""

import itertools
import math

import jax
import numpy as np
import pytest

from jaxvid.data.shapes import (
    COLOURS,
    MOTIONS,
    SHAPES,
    Attributes,
    Look,
    held_out,
    parse,
    sample_scene,
    story_scene,
)
from jaxvid.data.shapes.motion import place
from jaxvid.types import InputError


def looks(scene):
    return [part.look for thing in scene.things for part in thing.parts]


def test_held_out_pairs():
    pairs = [(c, s) for c, s in itertools.product(COLOURS, SHAPES) if held_out(c, s)]
    assert pairs == [
        ("red", "circle"),
        ("red", "ring"),
        ("blue", "cross"),
        ("magenta", "triangle"),
        ("orange", "square"),
        ("orange", "star"),
    ]


def test_training_never_shows_a_held_out_pair():
    seen = set()
    for seed in range(600):
        for look in looks(sample_scene(seed, "train", seconds=30.0, two=0.5, events=0.8)):
            assert not held_out(look.colour, look.shape)
            seen.add((look.colour, look.shape))
    assert len(seen) == 48 - 6


def test_heldout_scenes_show_one():
    for seed in range(300):
        assert any(
            held_out(look.colour, look.shape) for look in looks(sample_scene(seed, "heldout", seconds=8.0))
        )


def test_objects_differ_and_keep_apart():
    """At every moment at most two objects, unlike in colour or shape, inside lanes that do not meet."""
    for seed in range(300):
        scene = sample_scene(seed, "all", seconds=20.0, two=0.6, events=0.9)
        seconds = np.arange(0, 22, 1 / 16)
        at = [scene.at(second) for second in seconds[::8]]
        for told in at:
            assert 1 <= len(told.objects) <= 2
            assert len({(o.colour, o.shape) for o in told.objects}) == len(told.objects)
            assert not any(o.motion == "spins" and o.shape in ("circle", "ring") for o in told.objects)
        boxes = []
        for thing in scene.things:
            ends = [part.start for part in thing.parts[1:]] + [thing.end]
            lane = thing.parts[0].path.lane
            for part, end in zip(thing.parts, ends, strict=True):
                shown = seconds[(seconds >= part.start) & (seconds < end)]
                x, y, radius, _ = place(part.path, shown)
                assert part.path.lane == lane
                for low, high in ((x - radius, x + radius), (y - radius, y + radius)):
                    assert np.all(low > 0) and np.all(high < 64)
                assert np.all(x - radius >= lane[0] - 1e-6) and np.all(x + radius <= lane[2] + 1e-6)
                assert np.all(y - radius >= lane[1] - 1e-6) and np.all(y + radius <= lane[3] + 1e-6)
            boxes.append((lane, thing.parts[0].start, thing.end))
        for (a, begin, end), (b, begin2, end2) in itertools.combinations(boxes, 2):
            if begin < end2 and begin2 < end:
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_nothing_jumps():
    """Place, size and angle are continuous over every event, to the limit of a thousandth of a second."""
    events = 0
    for seed in range(300):
        for thing in sample_scene(seed, "all", seconds=30.0, events=1.0).things:
            for before, after in itertools.pairwise(thing.parts):
                events += 1
                now = np.array([after.start])
                for a, b in zip(place(before.path, now), place(after.path, now), strict=True):
                    assert abs(float(a[0] - b[0])) < 1e-6
                if before.look.motion == after.look.motion and before.look.size == after.look.size:
                    assert before.path == after.path
    assert events > 500


def test_paths_never_leap():
    """No step at 16 fps is longer than that of the widest and fastest slide, with its glide."""
    for seed in range(100):
        for thing in sample_scene(seed, "all", seconds=20.0, events=1.0).things:
            for part in thing.parts:
                x, y, radius, _ = place(part.path, part.start + np.arange(0, 8, 1 / 16))
                assert np.hypot(np.diff(x), np.diff(y)).max() < 2 * math.pi * 25 / 2.5 / 16 + 0.5
                assert np.abs(np.diff(radius)).max() < 1.5


@pytest.mark.parametrize("motion, sign", [("circles clockwise", 1), ("circles counterclockwise", -1)])
def test_clockwise_is_as_seen_on_the_screen(motion, sign):
    """From right to bottom to left: with y down, the cross product of place and step is positive."""
    for seed in range(20):
        scene = story_scene([(0, Attributes("black", (Look("star", "red", "small", motion),)))], seed)
        path = scene.things[0].parts[0].path
        x, y, _, _ = place(path, np.linspace(0, 4, 65))
        turn = (x[:-1] - path.centre[0]) * np.diff(y) - (y[:-1] - path.centre[1]) * np.diff(x)
        assert np.all(sign * turn > 0)


def test_every_motion_goes_on_for_ever():
    """An hour later, a whole number of its periods on, an object is where it was, as large and as turned."""
    for motion, seed in itertools.product(MOTIONS, range(5)):
        scene = story_scene([(0, Attributes("black", (Look("star", "red", "large", motion),)))], seed)
        path = scene.things[0].parts[0].path
        assert all(2.5 <= period <= 4.0 for period in path.period)
        now = np.arange(0, 4, 1 / 16)
        for axis, which in ((0, 0), (1, 1), (0, 2), (0, 3)):
            later = now + round(3600 / path.period[axis]) * path.period[axis]
            change = place(path, later)[which] - place(path, now)[which]
            if which == 3:
                change = np.abs(np.exp(1j * change) - 1)
            assert np.abs(change).max() < 1e-6


def test_the_same_seed_is_the_same_scene():
    assert sample_scene(5, seconds=8.0) == sample_scene(np.random.default_rng(5), seconds=8.0)
    assert sample_scene(5, seconds=8.0) != sample_scene(6, seconds=8.0)
    key = jax.random.key(3)
    assert sample_scene(key, seconds=8.0) == sample_scene(jax.random.key(3), seconds=8.0)
    assert sample_scene(key) == sample_scene(jax.random.PRNGKey(3))


def test_a_story_is_told_as_it_is_written():
    story = [
        (0, "a large red star bounces around on a black background"),
        (4, "a large blue star bounces around"),
        (8, "a large blue star spins and a small yellow ring slides left and right"),
        (12, "a small yellow ring pulses"),
    ]
    scene = story_scene([(second, parse(text)) for second, text in story], 1)
    assert scene.borders() == (0.0, 4.0, 8.0, 12.0)
    for second, text in story:
        assert set(scene.at(second).objects) == set(parse(text).objects)
    star, ring = scene.things
    assert [part.look.motion for part in star.parts] == ["bounces around", "bounces around", "spins"]
    assert star.end == 12 and ring.parts[0].start == 8 and math.isinf(ring.end)
    assert star.parts[0].path == star.parts[1].path


def test_what_a_story_leaves_unsaid_is_filled_in():
    for seed in range(50):
        scene = story_scene(
            [(0, parse("a shape spins and a red object")), (3, parse("a red star and a circle"))], seed
        )
        for look in looks(scene):
            assert None not in (look.shape, look.colour, look.size, look.motion)


@pytest.mark.parametrize(
    "story, named",
    [
        ([], "unordered"),
        ([(1, "a red star")], "unordered"),
        ([(0, "a red star"), (0, "a blue star")], "unordered"),
        (
            [(0, "a red star on a black background"), (3, "a red star on a white background")],
            "one background",
        ),
        ([(0, "a red star and a red star")], "two red stars"),
        ([(0, "a red circle spins")], "spins"),
    ],
)
def test_bad_stories(story, named):
    with pytest.raises(InputError, match=named):
        story_scene([(second, parse(text)) for second, text in story])


def test_bad_arguments():
    with pytest.raises(InputError, match="'test'"):
        sample_scene(0, "test")
    with pytest.raises(InputError, match="probabilities"):
        sample_scene(0, two=1.5)
    with pytest.raises(InputError, match="pink"):
        story_scene([(0, Attributes("black", (Look("star", "pink", "small", "spins"),)))])
