# SPDX-License-Identifier: Apache-2.0
"""Batches for training: batch n is a function of (seed, n), whatever came before and however many processes
read.

The order is a formula, not a history. Buckets take turns in periods of `PERIOD` batches: in each period a
bucket has its share of places (by weight), shuffled by (seed, period), so the number of earlier batches of a
bucket is known without counting. Sample g of a bucket is item pi(g mod N) of epoch g // N, where pi is a
permutation of the bucket's N items drawn by (seed, bucket, epoch): no item returns before all had their turn. So an
iterator's state is one number, and a run may continue with another number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from jaxvid.data.clips import ClipShape
from jaxvid.data.collate import collate
from jaxvid.types import Cond, InputError, Video

PERIOD = 256  # batches in which every bucket has its exact share
# Up to here a permutation is a table: grain's index shuffle needs 2**16 steps to find one of a few items.
SMALL = 1 << 16


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A declared size of batches: one compilation each.

    frames, height, width: of the clips, in pixels (one frame is an image); batch: clips in the global batch;
    weight: how often, beside the other buckets' weights; clips: how many of the source's clips it uses, the first
    ones; None is all of them (long clips take long to encode, and few may do).
    """

    frames: int
    height: int
    width: int
    batch: int
    weight: float = 1.0
    clips: int | None = None

    def __post_init__(self):
        for name in ("frames", "height", "width", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"bucket {name}={getattr(self, name)} is not positive; give at least 1")
        if self.clips is not None and self.clips < 1:
            raise InputError(f"bucket clips={self.clips} is not positive; give at least 1, or None for all")
        if not 0 < self.weight < float("inf"):
            raise InputError(f"bucket weight={self.weight} is not positive; leave the bucket out instead")

    def shape(self, fps: float) -> ClipShape:
        return ClipShape(self.frames, self.height, self.width, float(fps))


def shares(weights: Sequence[float], places: int) -> list[int]:
    """Divide `places` by weight in whole numbers: largest remainders, and at least one each."""
    if len(weights) > places:
        raise InputError(f"{len(weights)} buckets are more than {places}; declare fewer")
    exact = np.asarray(weights, np.float64) / sum(weights) * places
    count = np.maximum(np.floor(exact).astype(int), 1)
    while count.sum() < places:
        count[np.argmax(exact - count)] += 1
    while count.sum() > places:
        count[np.argmax(np.where(count > 1, count - exact, -np.inf))] -= 1
    return count.tolist()


class Order:
    """Which bucket batch n belongs to and which items are in it: a function of (seed, n)."""

    def __init__(self, items: int, buckets: Sequence[Bucket], seed: int):
        if items < 1:
            raise InputError("the data source is empty; give it at least one clip")
        if not buckets:
            raise InputError("no buckets; declare at least one Bucket(frames, height, width, batch)")
        self.items, self.buckets, self.seed = items, tuple(buckets), seed
        self.counts = shares([bucket.weight for bucket in self.buckets], PERIOD)
        self.turns = functools.lru_cache(maxsize=8)(self._turns)
        self.permutation = functools.lru_cache(maxsize=2 * len(self.buckets) + 2)(self._permutation)

    def _turns(self, period: int) -> np.ndarray:
        turns = np.repeat(np.arange(len(self.buckets)), self.counts)
        return np.random.default_rng([self.seed & 0xFFFFFFFF, period]).permutation(turns)

    def __call__(self, n: int) -> tuple[int, list[int]]:
        """The bucket's place in the list, and the items of batch n in the global order."""
        period, place = divmod(n, PERIOD)
        turns = self.turns(period)
        bucket = int(turns[place])
        earlier = period * self.counts[bucket] + int((turns[:place] == bucket).sum())
        size = self.buckets[bucket].batch
        return bucket, [self.item(bucket, earlier * size + k) for k in range(size)]

    def item(self, bucket: int, g: int) -> int:
        clips = self.clips(bucket)
        epoch, place = divmod(g, clips)
        if clips <= SMALL:
            return int(self.permutation(bucket, epoch)[place])
        return index_shuffle(place, max_index=clips - 1, seed=self._key(bucket, epoch), rounds=4)

    def clips(self, bucket: int) -> int:
        """How many different clips a bucket uses."""
        return min(self.buckets[bucket].clips or self.items, self.items)

    def _key(self, bucket: int, epoch: int) -> int:
        digest = hashlib.blake2b(f"{self.seed} {bucket} {epoch}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little")

    def _permutation(self, bucket: int, epoch: int) -> np.ndarray:
        return np.random.default_rng(self._key(bucket, epoch)).permutation(self.clips(bucket))


class Batches(grain.DatasetIterator):
    """An endless iterator of `(Video, Cond)`. Its state is the number of the next batch and the recipe of the
    order.

    `get_state()` is a small JSON-able dict; `set_state` goes there at once and refuses a state of another
    order. Grain's Orbax handlers save and restore it. Close it (or use it in `with`) so that its threads end.
    """

    def __init__(self, parent: grain.DatasetIterator, recipe: dict[str, Any]):
        super().__init__(parent)
        self.recipe = json.loads(json.dumps(recipe))

    def __next__(self) -> tuple[Video, Cond]:
        return next(self._parent)

    def get_state(self) -> dict[str, Any]:
        return {"next_batch": self._parent.get_state()["next_index"], "recipe": self.recipe}

    def set_state(self, state: dict[str, Any]) -> None:
        theirs = state["recipe"]
        changed = [
            f"{name} was {theirs.get(name)}, is {self.recipe.get(name)}"
            for name in sorted(self.recipe.keys() | theirs.keys())
            if theirs.get(name) != self.recipe.get(name)
        ]
        if changed:
            raise InputError(
                f"the data order changed since the checkpoint ({'; '.join(changed)}); "
                "continue with the old values or start in a new directory"
            )
        self._parent.set_state({"next_index": int(state["next_batch"])})

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error) -> None:
        self.close()


def batches(
    source,
    buckets: Sequence[Bucket],
    *,
    fps: float,
    seed: int,
    text_length: int = 96,
    spans: Sequence[int] = (1, 2, 4, 8, 16),
    frames_multiple: int = 1,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 4,
    encode: Callable | None = None,
) -> Batches:
    """An endless, checkpointable iterator of `(Video, Cond)` with numpy leaves, drawn from a source.

    A bucket's batch is split among `process_count` processes, each of which reads its own rows only. Video.x
    is float32: pixels in [-1, 1], or latents as the source gives them. `cond` has `tokens` int32 ``[B, S,
    L]``, S being the smallest of `spans` that holds the batch's captions (the largest of them when several
    processes read, since they must agree), and `span` int32 ``[B, T]``. `frames_multiple` pads the frames
    with `ok` False. `threads` read ahead `prefetch` batches; 0 reads in the caller's thread. `encode` as for `collate`.
    """
    for bucket in buckets:
        if bucket.batch % process_count:
            raise InputError(
                f"bucket batch={bucket.batch} does not divide among {process_count} processes; use a multiple"
            )
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index={process_index} is not below process_count={process_count}")
    order = Order(len(source), buckets, seed)
    time_factor = getattr(source, "time_factor", 1)
    sizes = tuple(spans) if process_count == 1 else (max(spans),)

    def load(n: int) -> tuple[Video, Cond]:
        place, items = order(n)
        bucket = buckets[place]
        shape = bucket.shape(fps)
        rows = bucket.batch // process_count
        mine = items[process_index * rows : (process_index + 1) * rows]
        samples = [source.clip(item, shape) for item in mine]
        if process_count > 1 and max(len(sample.captions) for sample in samples) > sizes[0]:
            raise InputError(f"a clip has more than {sizes[0]} captions; give a larger number in spans")
        return collate(
            samples,
            shape,
            time_factor=time_factor,
            text_length=text_length,
            spans=sizes,
            frames_multiple=frames_multiple,
            encode=encode,
        )

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
    dataset = grain.MapDataset.range(sys.maxsize).map(load).to_iter_dataset(options)
    recipe = {
        "seed": seed,
        "items": len(source),
        "fps": fps,
        "buckets": [dataclasses.astuple(bucket) for bucket in buckets],
        "text_length": text_length,
        "spans": list(spans),
        "frames_multiple": frames_multiple,
        "time_factor": time_factor,
    }
    iterator = Batches(iter(dataset), recipe)
    if first_batch:
        iterator.set_state({"next_batch": first_batch, "recipe": iterator.recipe})
    return iterator


def fixed_batches(
    source,
    bucket: Bucket,
    count: int,
    *,
    fps: float,
    text_length: int = 96,
    spans: Sequence[int] = (1, 2, 4, 8, 16),
    frames_multiple: int = 1,
    encode: Callable | None = None,
) -> Iterator[tuple[Video, Cond]]:
    """The first `count` batches of a source in its own order, for a held-out loss that is the same every
    time."""
    shape = bucket.shape(fps)
    for n in range(count):
        items = [(n * bucket.batch + k) % len(source) for k in range(bucket.batch)]
        yield collate(
            [source.clip(item, shape) for item in items],
            shape,
            time_factor=getattr(source, "time_factor", 1),
            text_length=text_length,
            spans=spans,
            frames_multiple=frames_multiple,
            encode=encode,
        )
