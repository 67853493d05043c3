# SPDX-License-Identifier: Apache-2.0
"""Windows lie inside their clips, show something, and are the same every time."""

import numpy as np
import pytest

from jaxvid.data.clips import ClipShape
from jaxvid.data.crops import Crops
from jaxvid.data.shapes import ShapesSource
from jaxvid.types import InputError

SHAPE = ClipShape(frames=3, height=32, width=24, fps=16.0)
WHOLE = ClipShape(frames=3, height=64, width=64, fps=16.0)


def test_windows_are_cut_from_the_clip():
    source = ShapesSource(size=20)
    crops = Crops(source, jitter=0.0)
    assert len(crops) == 20
    shown = 0
    for index in range(20):
        window, whole = crops.clip(index, SHAPE), source.clip(index, WHOLE)
        assert window.x.shape == (3, 32, 24, 3) and window.x.dtype == np.uint8
        assert window.captions == whole.captions
        places = np.lib.stride_tricks.sliding_window_view(whole.x, (32, 24), axis=(1, 2)).transpose(
            0, 1, 2, 4, 5, 3
        )
        found = [np.array_equal(places[:, i, j], window.x) for i, j in np.ndindex(33, 41)]
        assert any(found)
        shown += np.ptp(window.x[1].reshape(-1, 3).astype(int), axis=0).max() > 24
    assert shown >= 17


def test_windows_are_the_same_every_time_and_keys_tell_them_apart():
    one, two, other = (Crops(ShapesSource(size=20), seed=seed, jitter=0.5) for seed in (0, 0, 1))
    assert all(np.array_equal(one.clip(i, SHAPE).x, two.clip(i, SHAPE).x) for i in range(8))
    assert any(not np.array_equal(one.clip(i, SHAPE).x, other.clip(i, SHAPE).x) for i in range(8))
    keys = {c.key(i, s) for c in (one, other) for i in (0, 1) for s in (SHAPE, WHOLE)}
    assert len(keys) == 8 and one.key(0, SHAPE) == two.key(0, SHAPE)


def test_windows_larger_than_the_frame_are_refused():
    with pytest.raises(InputError, match="cannot be cut from 16x16"):
        Crops(ShapesSource(size=1), height=16, width=16).clip(0, SHAPE)
