# SPDX-License-Identifier: Apache-2.0
"""Latents of any source, encoded once and kept on disk.

An entry's key is a hash of everything that made it: the autoencoder, the storage type, the clip's own content
key, its shape, and the version of this file. When one of them changes, old entries are simply not found.
Captions are kept beside the latents, so reading a cached clip renders and decodes nothing.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.collate import latent_frames
from jaxvid.data.shards import Shards
from jaxvid.types import InputError

VERSION = 1  # of what happens between a clip and its stored latents
SHARD = 256  # clips in a shard


def digest(*parts: Any) -> str:
    """A hash of JSON-able values, 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class LatentSource:
    """A source of latents: the clips of another source through an encoder, cached by content.

    source: any source of uint8 clips. encode: ``x[B, T, H, W, 3]`` float32 in [-1, 1] -> ``z[B, t, h, w,
    C]``, jitted by the caller, t being ``ceil((T - 1) / time_factor) + 1``. codec_key: names the encoder and
    its weights, for example a hash of both. size: how many distinct clips there are, at most the source's own
    number (a small bank is encoded once and then read for ever). dtype: how latents are stored; they come out
    as float32.

    A clip that is not in the cache is encoded when it is asked for; `prefill` does it ahead in large batches.
    """

    def __init__(
        self,
        source,
        encode: Callable,
        codec_key: str,
        cache_dir: str | os.PathLike,
        *,
        time_factor: int = 4,
        size: int | None = None,
        dtype: str = "float16",
    ):
        if size is not None and not 1 <= size <= len(source):
            raise InputError(f"size={size} is not between 1 and the {len(source)} clips of the source")
        if dtype not in ("float16", "float32"):
            raise InputError(f"latents cannot be stored as {dtype}; use float16 or float32")
        self.source, self.encode, self.codec_key = source, encode, codec_key
        self.time_factor, self.size, self.dtype = time_factor, size, np.dtype(dtype)
        self.bank = digest("latents", VERSION, codec_key, dtype, time_factor)
        self.shards = Shards(pathlib.Path(cache_dir) / self.bank)
        self.fresh: dict[str, tuple[np.ndarray, str]] = {}  # encoded, not yet on disk
        self.lock = threading.Lock()  # guards `fresh`
        self.encoding = threading.Lock()  # one clip at a time goes through the encoder

    def __len__(self) -> int:
        return len(self.source) if self.size is None else self.size

    def key(self, index: int, shape: ClipShape) -> str:
        shape = dataclasses.replace(shape, fps=float(shape.fps))  # 16 and 16.0 are one rate
        return digest(self.bank, self.source.key(index, shape), dataclasses.astuple(shape))

    def clip(self, index: int, shape: ClipShape) -> Sample:
        key = self.key(index, shape)
        found = self._find(key)
        if found is None:
            with self.encoding:
                found = self._find(key)
                if found is None:
                    found = self._encode([self.source.clip(index, shape)], shape, 1)[0]
                    self._keep({key: found})
        z, captions = found
        return Sample(z.astype(np.float32), tuple((int(frame), text) for frame, text in json.loads(captions)))

    def missing(self, shapes: Iterable[ClipShape], indices: Sequence[int] | None = None) -> list:
        """The `(key, index, shape)` that are not in the cache yet, each key once."""
        indices = range(len(self)) if indices is None else indices
        wanted = {self.key(index, shape): (index, shape) for shape in shapes for index in indices}
        return [(key, *place) for key, place in wanted.items() if self._find(key) is None]

    def prefill(
        self,
        shapes: Iterable[ClipShape],
        indices: Sequence[int] | None = None,
        *,
        batch: int = 8,
        progress: Callable[[int, int], None] | None = None,
        threads: int = 2,
        process_index: int = 0,
        process_count: int = 1,
    ) -> int:
        """Encode what is missing of `indices` (all clips when None) in each of `shapes`; says how many that
        were.

        Batches have exactly `batch` clips of one shape (the last one is filled up), so the encoder compiles
        once per shape. `threads` read clips ahead of the encoder. What was encoded is kept when it is
        interrupted. `progress(done, total)` is called after every batch. Each of several processes encodes
        its own part; call `refresh` when all are done.
        """
        todo = self.missing(shapes, indices)[process_index::process_count]
        groups = collections.defaultdict(list)
        for key, index, shape in todo:
            groups[shape].append((key, index))
        work = [
            (shape, rows[i : i + batch]) for shape, rows in groups.items() for i in range(0, len(rows), batch)
        ]
        done = 0
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            read = lambda shape, rows: [pool.submit(self.source.clip, index, shape) for _, index in rows]
            ahead = read(*work[0]) if work else []
            try:
                for place, (shape, rows) in enumerate(work):
                    samples = [future.result() for future in ahead]
                    ahead = read(*work[place + 1]) if place + 1 < len(work) else []
                    with self.encoding:
                        encoded = self._encode(samples, shape, batch)
                    self._keep(dict(zip((key for key, _ in rows), encoded, strict=True)))
                    done += len(rows)
                    if progress is not None:
                        progress(done, len(todo))
            finally:
                for future in ahead:
                    future.cancel()
                self.flush()
        return len(todo)

    def refresh(self) -> None:
        """See what other processes wrote to the cache."""
        self.shards.refresh()

    def flush(self) -> None:
        """Write to disk what was encoded since the last shard."""
        with self.lock:
            fresh = dict(self.fresh)
            self.shards.put(fresh)
            for key in fresh:
                del self.fresh[key]

    def _find(self, key: str) -> tuple[np.ndarray, str] | None:
        return self.fresh.get(key) or self.shards.get(key)

    def _keep(self, items: dict[str, tuple[np.ndarray, str]]) -> None:
        with self.lock:
            self.fresh.update(items)
            full = len(self.fresh) >= SHARD
        if full:
            self.flush()

    def _encode(
        self, samples: Sequence[Sample], shape: ClipShape, batch: int
    ) -> list[tuple[np.ndarray, str]]:
        """Encode at most `batch` clips of one shape; short clips are extended by their last frame first."""
        x = np.empty((batch, shape.frames, *np.shape(samples[0].x)[1:]), np.float32)
        lengths = []
        for row in range(batch):
            clip = np.asarray(samples[min(row, len(samples) - 1)].x)
            lengths.append(len(clip))
            x[row, : len(clip)] = clip.astype(np.float32) / 127.5 - 1
            x[row, len(clip) :] = x[row, len(clip) - 1]
        z = np.asarray(self.encode(x), np.float32)
        want = latent_frames(shape.frames, self.time_factor)
        if z.shape[:2] != (batch, want):
            raise InputError(
                f"the encoder made {z.shape[:2]} of {shape.frames} frames, wanted {(batch, want)}; "
                f"check time_factor={self.time_factor}"
            )
        stored = z.astype(self.dtype)
        if not np.isfinite(stored).all():
            raise InputError(f"the encoder made values that {self.dtype} cannot hold; check the autoencoder")
        return [
            (stored[row, : latent_frames(lengths[row], self.time_factor)], json.dumps(sample.captions))
            for row, sample in enumerate(samples)
        ]
