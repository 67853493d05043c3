# SPDX-License-Identifier: Apache-2.0
"""Pictures: the right colours, areas, holes and edges, at any size."""

import math

import numpy as np
import pytest

from jaxvid.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Attributes,
    Look,
    render,
    sample_scene,
    story_scene,
)
from jaxvid.data.shapes.detect import AREAS
from jaxvid.data.shapes.render import coverage, distance
from jaxvid.types import InputError


def still(shape, colour="red", size="large", background="black", seed=0):
    return story_scene([(0, Attributes(background, (Look(shape, colour, size, "stays still"),)))], seed)


@pytest.mark.parametrize("shape", SHAPES)
def test_area_and_reach_of_a_shape(shape):
    """Sampled finely, the shape has its closed-form area and touches its circle, but does not leave it."""
    x, y = np.meshgrid(*[np.linspace(-1.2, 1.2, 1201)] * 2)
    inside = distance(shape, x, y) < 0
    assert inside.mean() * 2.4**2 == pytest.approx(AREAS[shape], rel=3e-3)
    assert np.hypot(x, y)[inside].max() == pytest.approx(1.0, abs=5e-3)
    assert inside[600, 600] == (shape != "ring")


def test_the_proportions_of_the_issue():
    """A ring's hole is 0.55 of its radius, a star's inner radius 0.42, a cross's arm a third of its width."""
    line = np.linspace(-1, 1, 4001)
    hole = np.abs(line[distance("ring", line, 0 * line) < 0]).min()
    assert hole == pytest.approx(0.55, abs=1e-3)
    turns = 2 * math.pi * np.arange(5) / 5
    for reach, turned in ((1.0, turns), (0.42, turns + math.pi / 5)):
        corner = distance("star", reach * np.sin(turned), -reach * np.cos(turned))
        assert np.abs(corner).max() < 1e-6
    width = np.abs(line[distance("cross", line, 0 * line) < 0]).max()
    arm = np.abs(line[distance("cross", line, 0 * line + 0.8) < 0]).max()
    assert arm / width == pytest.approx(1 / 3, abs=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_antialiasing_keeps_the_area(shape):
    """Summed coverage is the area within 2 %, wherever between the pixels the centre lies."""
    grid = np.arange(-16, 17, dtype=float)
    for dx, dy, angle in ((0, 0, 0), (0.3, 0.4, 0.2), (0.5, 0.1, 1.0)):
        x, y = np.meshgrid(grid + dx, grid + dy)
        assert coverage(shape, x, y, 11.0, angle).sum() == pytest.approx(AREAS[shape] * 121, rel=0.02)


@pytest.mark.parametrize("size", [32, 64, 96, 128, (48, 80)])
def test_colours_and_place_at_any_size(size):
    height, width = (size, size) if isinstance(size, int) else size
    unit = min(height, width) / 64
    for i, (shape, colour) in enumerate(
        zip(("circle", "square", "triangle", "cross", "star"), COLOURS, strict=False)
    ):
        background = tuple(BACKGROUNDS)[i % 3]
        scene = still(shape, colour, background=background, seed=i)
        frame = render(scene, 1, 16.0, size)[0]
        assert frame.shape == (height, width, 3) and frame.dtype == np.uint8
        x, y = scene.things[0].parts[0].path.centre
        row, column = int(y * unit + (height - 64 * unit) / 2), int(x * unit + (width - 64 * unit) / 2)
        assert tuple(frame[row, column]) == COLOURS[colour]
        assert tuple(frame[0, 0]) == BACKGROUNDS[background]


def test_small_and_large():
    areas = [(render(still("circle", size=size), 1, 16.0, 64)[0, :, :, 0] / 230.0).sum() for size in SIZES]
    assert areas == pytest.approx([math.pi * 36, math.pi * 121], rel=0.01)


def test_one_frame_is_the_first_of_many_and_pieces_are_the_whole():
    scene = sample_scene(11, "all", seconds=12.0, two=1.0, events=1.0)
    whole = render(scene, 192, 16.0, 64)
    assert np.array_equal(render(scene, 1, 16.0, 64), whole[:1])
    assert np.array_equal(render(scene, 60, 16.0, 64, first=100), whole[100:160])
    assert np.array_equal(render(scene, 96, 8.0, 64), whole[::2])


def test_bad_sizes():
    for bad in ({"frames": 0}, {"fps": 0.0}, {"size": 0}):
        with pytest.raises(InputError, match="positive"):
            render(still("star"), **({"frames": 2, "fps": 16.0, "size": 64} | bad))
