# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from jaxvid.sampling.fade import RUNGS, fade, spans_for
from jaxvid.types import InputError

TEXT = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], bool)
STARTS, TIMES = [0, 40, 80], np.arange(120.0)


def test_without_width_nothing_is_added():
    text, mask, span = fade(TEXT, MASK, STARTS, TIMES, 0)
    assert text is TEXT and mask is MASK and np.array_equal(span, np.repeat([0, 1, 2], 40))
    assert spans_for(3, 0) == 3


def test_a_change_goes_straight_from_one_caption_to_the_next():
    text, mask, span = fade(TEXT, MASK, STARTS, TIMES, 16)
    assert len(text) == len(mask) == spans_for(3, 16) == 3 + 2 * RUNGS
    told = np.where(mask[..., None], text, 0)[span]
    plain = np.where(MASK[..., None], TEXT, 0)
    for border in (1, 2):
        change = plain[border] - plain[border - 1]
        far = told[40 * border - 20 : 40 * border + 20] - plain[border - 1]
        share = np.einsum("fld,ld->f", far, change) / np.sum(change**2)
        assert np.allclose(far, share[:, None, None] * change, atol=1e-5)  # nowhere beside the line
        assert np.all(np.diff(share) >= -1e-6) and share[0] < 1e-6 and share[-1] > 1 - 1e-6
        assert np.abs(share - np.clip((np.arange(40) - 20) / 16 + 0.5, 0, 1)).max() <= 0.5 / RUNGS + 1e-6
    assert np.array_equal(span[:33], np.zeros(33)) and span[119] == 2


def test_a_caption_that_goes_on_is_not_changed():
    same = np.repeat(TEXT[:1], 2, 0), np.repeat(MASK[:1], 2, 0)
    text, mask, span = fade(*same, [0, 40], TIMES, 10)
    told = np.where(mask[..., None], text, 0)[span]
    assert np.allclose(told, np.where(MASK[0, :, None], TEXT[0], 0)[None], atol=1e-6)


def test_a_change_fits_between_captions():
    for wrong in (-1.0, 41.0):
        with pytest.raises(InputError, match="fade"):
            fade(TEXT, MASK, STARTS, TIMES, wrong)
