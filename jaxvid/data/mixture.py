# SPDX-License-Identifier: Apache-2.0
"""Several sources as one, in given shares."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import numpy as np

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.pipeline import shares
from jaxvid.types import InputError

ROUND = 64  # clips in which every source has its exact share


class MixtureSource:
    """Clips of several sources, each with its share by weight.

    Items come in rounds of `ROUND`, in which the sources have fixed places; a source whose clips are used up
    begins again. The mixture is as long as it takes for every clip of every source to come at least once. A
    mixture is a source like any other, so it may be shuffled, cached as latents and mixed again. All sources
    must give pixels, or latents of one time factor.
    """

    def __init__(self, sources: Sequence, weights: Sequence[float] | None = None):
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if (
            not sources
            or len(sources) != len(weights)
            or not all(0 < weight < math.inf for weight in weights)
        ):
            raise InputError(
                f"{len(sources)} sources with weights {weights}: wanted a positive weight for each"
            )
        if not all(len(source) for source in sources):
            raise InputError("one of the sources is empty; leave it out")
        factors = {getattr(source, "time_factor", 1) for source in sources}
        if len(factors) > 1:
            raise InputError(
                f"the sources have time factors {sorted(factors)}; mix pixels or latents of one kind"
            )
        (self.time_factor,) = factors
        self.sources, self.counts = list(sources), shares(weights, ROUND)
        turns = np.repeat(np.arange(len(sources)), self.counts)
        self.turns = np.random.default_rng(0).permutation(turns)
        self.rounds = max(
            math.ceil(len(s) / count) for s, count in zip(self.sources, self.counts, strict=True)
        )

    def __len__(self) -> int:
        return self.rounds * ROUND

    @property
    def bad(self) -> dict[str, str]:
        """What its sources could not read, and why."""
        return {name: why for source in self.sources for name, why in getattr(source, "bad", {}).items()}

    def place(self, index: int) -> tuple[int, int]:
        """Which source an item is of, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        round_, turn = divmod(index, ROUND)
        which = int(self.turns[turn])
        rank = int((self.turns[:turn] == which).sum())
        return which, (round_ * self.counts[which] + rank) % len(self.sources[which])

    def clip(self, index: int, shape: ClipShape) -> Sample:
        which, item = self.place(index)
        return self.sources[which].clip(item, shape)

    def key(self, index: int, shape: ClipShape) -> str:
        which, item = self.place(index)
        return json.dumps([self.sources[which].key(item, shape), dataclasses.astuple(shape)])
