# SPDX-License-Identifier: Apache-2.0
"""The figures of experiments/e005_cache on videos that are known."""

import types

import numpy as np
import pytest

from experiments.e005_cache.run import compared, errors, table


def clip(latents, level):
    frames = np.full((2, 4, 4, 3), 100, np.uint8)
    frames[1] += level
    return types.SimpleNamespace(latents=np.asarray(latents, np.float32), frames=frames)


def test_errors_by_hand():
    found = errors(clip([3.0, 4.0], 10), clip([3.0, 4.5], 0))
    assert found["latents"] == pytest.approx(0.5 / np.hypot(3, 4.5))
    assert found["least"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)
    assert found["psnr"] == pytest.approx((100 + found["least"]) / 2)


def test_thresholds_are_compared_with_the_exact_video_of_the_same_prompt():
    class Pipe:
        engine = types.SimpleNamespace(asked=0)

        def __call__(self, prompt, cache=None, **asked):
            assert asked == {"seed": 0}
            self.engine.asked = 8 if cache is None else 4
            return clip([len(prompt) + (cache or 0)], 0)

    rows = compared(Pipe(), ["a", "bc"], [0.0, 0.5], seed=0)
    assert [row["threshold"] for row in rows] == [0.0, 0.5]
    assert rows[0]["latents"] == 0 and rows[1]["latents"] == pytest.approx((0.5 + 0.25) / 2)
    assert "| 0.5 | 4.0 of 8 | 37.5 % | 100.0 dB | 100.0 dB |" in table(rows)
