# SPDX-License-Identifier: Apache-2.0
"""A mixture keeps its shares and leaves nothing out."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.mixture import ROUND, MixtureSource
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.types import InputError

SHAPE = ClipShape(1, 2, 2, 8.0)


class Plain:
    def __init__(self, name, items):
        self.name, self.items = name, items

    def __len__(self):
        return self.items

    def key(self, index, shape):
        return f"{self.name} {index}"

    def clip(self, index, shape):
        x = np.full((shape.frames, shape.height, shape.width, 3), index, np.uint8)
        return Sample(x, ((0, f"{self.name} {index}"),))


@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (1, 1000)])
def test_shares_and_completeness(weights):
    mixture = MixtureSource([Plain("a", 100), Plain("b", 7)], weights)
    names = [mixture.clip(i, SHAPE).captions[0][1] for i in range(len(mixture))]
    assert set(names) == {f"a {i}" for i in range(100)} | {f"b {i}" for i in range(7)}
    counts = collections.Counter(name[0] for name in names)
    share = counts["a"] / len(names)
    assert abs(share - weights[0] / sum(weights)) <= 1 / ROUND
    again = MixtureSource([Plain("a", 100), Plain("b", 7)], weights)
    assert [mixture.place(i) for i in range(ROUND)] == [again.place(i) for i in range(ROUND)]
    keys = {name: mixture.key(i, SHAPE) for i, name in enumerate(names)}
    assert len(set(keys.values())) == 107


def test_through_batches():
    mixture = MixtureSource([Plain("a", 10), MixtureSource([Plain("b", 3), Plain("c", 3)])])
    with batches(mixture, [Bucket(1, 2, 2, batch=ROUND)], fps=8, seed=0) as data:
        video, _ = next(data)
    assert video.x.shape == (ROUND, 1, 2, 2, 3)


def test_bad_mixtures():
    latent = Plain("z", 3)
    latent.time_factor = 4
    for sources, weights in (
        ([], None),
        ([Plain("a", 3)], [1, 2]),
        ([Plain("a", 3)], [0]),
        ([Plain("a", 0)], None),
        ([Plain("a", 3), latent], None),
    ):
        with pytest.raises(InputError):
            MixtureSource(sources, weights)
    with pytest.raises(IndexError):
        MixtureSource([latent]).clip(10**6, SHAPE)
