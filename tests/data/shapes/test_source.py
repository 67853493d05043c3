# SPDX-License-Identifier: Apache-2.0
"""The source contract: random access, the same clip for the same index, keys that tell clips apart."""

import numpy as np
import pytest

from jaxvid.data.clips import ClipShape
from jaxvid.data.shapes import ShapesSource, held_out, parse
from jaxvid.types import InputError

SHAPE = ClipShape(32, 64, 64, 16.0)


def test_clips_are_deterministic_and_independent_of_order():
    one, two = ShapesSource(seed=3), ShapesSource(seed=3)
    two.clip(7, SHAPE)
    for index in (0, 99_999, 5):
        a, b = one.clip(index, SHAPE), two.clip(index, SHAPE)
        assert a.captions == b.captions and np.array_equal(a.x, b.x)
    assert not np.array_equal(one.clip(0, SHAPE).x, ShapesSource(seed=4).clip(0, SHAPE).x)


def test_a_clip_is_what_it_says():
    source = ShapesSource("all", paraphrase=False, events=0.0)
    for index in range(30):
        sample = source.clip(index, SHAPE)
        assert sample.x.shape == (32, 64, 64, 3) and sample.x.dtype == np.uint8
        ((frame, text),) = sample.captions
        assert frame == 0 and parse(text) == source.scene(index, SHAPE).at(0.0)


def test_frames_of_a_size_show_the_scene_of_another():
    source = ShapesSource()
    small, large = source.clip(1, ClipShape(8, 32, 32, 4.0)), source.clip(1, ClipShape(8, 64, 64, 4.0))
    mean = large.x.reshape(8, 32, 2, 32, 2, 3).astype(float).mean((2, 4))
    assert np.abs(mean - small.x).mean() < 1.5
    assert small.captions == large.captions


def test_an_image_is_one_frame_without_motion():
    for index in range(50):
        sample = ShapesSource(unsaid=0.0).clip(index, ClipShape(1, 64, 64, 16.0))
        ((frame, text),) = sample.captions
        assert sample.x.shape == (1, 64, 64, 3) and frame == 0
        assert all(look.motion is None and look.size is not None for look in parse(text).objects)


def test_splits_differ_and_hold_out():
    shape = ClipShape(160, 16, 16, 16.0)
    for index in range(60):
        for _, text in ShapesSource("train", unsaid=0.0).clip(index, shape).captions:
            assert not any(held_out(o.colour, o.shape) for o in parse(text).objects)
        first = ShapesSource("heldout", unsaid=0.0).clip(index, shape).captions[0][1]
        assert any(held_out(o.colour, o.shape) for o in parse(first).objects)


def test_keys_tell_clips_apart():
    sources = [
        ShapesSource(),
        ShapesSource("all"),
        ShapesSource(seed=1),
        ShapesSource(events=0.0),
        ShapesSource(unsaid=0.0),
    ]
    shapes = [SHAPE, ClipShape(1, 64, 64, 16.0), ClipShape(32, 32, 64, 16.0), ClipShape(32, 64, 64, 8.0)]
    keys = {source.key(index, shape) for source in sources for index in (0, 1) for shape in shapes}
    assert len(keys) == len(sources) * 2 * len(shapes)
    assert ShapesSource().key(3, SHAPE) == ShapesSource().key(3, SHAPE)


def test_bad_arguments():
    with pytest.raises(InputError, match="'test'"):
        ShapesSource("test")
    with pytest.raises(InputError, match="size=0"):
        ShapesSource(size=0)
    with pytest.raises(InputError, match="probabilities"):
        ShapesSource(objects=(0.0, 0.0))
    assert len(ShapesSource(size=10)) == 10
    with pytest.raises(IndexError, match="clip 10"):
        ShapesSource(size=10).clip(10, SHAPE)
