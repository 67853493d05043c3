# SPDX-License-Identifier: Apache-2.0
"""Collages are deterministic, keyed by what they are, and fuller than what they are made of."""

import numpy as np

from jaxvid.data.clips import ClipShape
from jaxvid.data.shapes import ShapesSource
from jaxvid.data.shapes.collage import CollageSource

SHAPE = ClipShape(3, 32, 32, 16.0)


def edges(x):
    return np.abs(np.diff(x.astype(np.int32), axis=2)).mean()


def test_a_collage_is_its_index_and_holds_more():
    plain = ShapesSource(size=40, seed=3)
    full, none = CollageSource(plain, share=1.0), CollageSource(plain, share=0.0)
    a, b = full.clip(5, SHAPE), full.clip(5, SHAPE)
    np.testing.assert_array_equal(a.x, b.x)
    assert a.x.shape == (3, 32, 32, 3) and a.x.dtype == np.uint8
    np.testing.assert_array_equal(none.clip(5, SHAPE).x, plain.clip(5, SHAPE).x)
    more = [edges(full.clip(i, SHAPE).x) - edges(plain.clip(i, SHAPE).x) for i in range(40)]
    assert np.mean(more) > 0
    assert len(full) == 40


def test_keys_tell_collages_apart():
    plain = ShapesSource(size=40)
    keys = {CollageSource(plain, share=s, most=m).key(1, SHAPE) for s in (0.2, 0.4) for m in (2, 3)}
    assert len(keys | {plain.key(1, SHAPE)}) == 5
