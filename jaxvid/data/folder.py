# SPDX-License-Identifier: Apache-2.0
"""Real videos as a source: clips from a file, a folder or a manifest, with a part of every file held out."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import hashlib
import itertools
import json
import math
import os
import threading

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.decode import Limits, read_video
from jaxvid.data.images import read_image
from jaxvid.data.replace import first_readable, hashed
from jaxvid.data.scan import Entry, scan
from jaxvid.types import InputError

VERSION = 1  # of how a clip is cut from a file; part of every content key


class FolderSource:
    """Clips of real videos and images: `clip(index, shape)` is the same whenever it is asked for.

    path: a video or image, a folder (searched to the bottom), or a .csv or .jsonl manifest (see
    `jaxvid.data.scan`). split: 'train', 'heldout' or 'all'. held_out: the last part of every video that
    'train' never shows; of images every fifth (for 0.2) is held out. stride: seconds of video for each clip
    that `len` counts; the clips of a file are spread evenly over it whatever their length. cache: a JSON file
    that remembers the scan.

    A clip shorter than asked for is all that its file has. Images are clips of one frame; they stand in for
    longer clips only where there is no video. Files that cannot be read at all are left out and named in
    `bad`; a clip that fails later is named there too and replaced by another one, always the same. `bad` maps
    names to reasons.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        split: str = "train",
        held_out: float = 0.2,
        stride: float = 0.5,
        limits: Limits = Limits(),
        cache: str | os.PathLike | None = None,
        memory: int = 256 << 20,
    ):
        if split not in ("train", "heldout", "all"):
            raise InputError(f"split={split!r} is unknown; use train, heldout or all")
        if not 0 < held_out < 1 or not stride > 0:
            raise InputError(
                f"held_out={held_out}, stride={stride}: wanted a part between 0 and 1, and seconds above 0"
            )
        self.limits = limits
        entries, self.bad = scan(path, limits=limits, cache=cache)
        self.entries = _split(entries, split, held_out)
        if not self.entries:
            raise InputError(
                f"{path} has too few files, or too short ones, for split={split!r} with held_out={held_out}; add some, raise"
                " held_out, or use another split"
            )
        counts = [1 if e.image else max(1, math.ceil((e.end - e.start) / stride)) for e in self.entries]
        self.ends = list(itertools.accumulate(counts))  # of each entry's clips in the numbering of all
        self.videos = [place for place, entry in enumerate(self.entries) if not entry.image]
        self.room, self.kept = memory, collections.OrderedDict()  # decoded samples, the latest used last
        self.lock = threading.Lock()  # guards `bad` and what is kept

    def __len__(self) -> int:
        return self.ends[-1]

    def summary(self) -> str:
        """What there is to learn from, in words: '2 videos of 83 s in all and 1 image'."""
        films, said = [self.entries[place] for place in self.videos], []
        if films:
            names = len({entry.path for entry in films})
            seconds = sum(entry.end - entry.start for entry in films)
            said.append(f"{names} video{'s' * (names != 1)} of {seconds:.1f} s in all")
        if images := len(self.entries) - len(films):
            said.append(f"{images} image{'s' * (images != 1)}")
        return " and ".join(said)

    def key(self, index: int, shape: ClipShape) -> str:
        entry, start = self._place(index, shape)
        parts = [VERSION, entry.content, entry.end, start, entry.captions, dataclasses.astuple(shape)]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def clip(self, index: int, shape: ClipShape) -> Sample:
        """uint8 ``[T, height, width, 3]``, T up to `shape.frames`, with the captions of its time."""
        place = index, shape
        with self.lock:
            if place in self.kept:
                self.kept.move_to_end(place)
                return self.kept[place]
        sample = first_readable(lambda other: self._clip(other, shape), index, len(self))
        with self.lock:
            if place not in self.kept:
                self.kept[place] = sample
                self.room -= sample.x.nbytes
            while self.room < 0:
                self.room += self.kept.popitem(last=False)[1].x.nbytes
        return sample

    def _clip(self, index: int, shape: ClipShape) -> Sample:
        entry, start = self._place(index, shape)
        try:
            return self._read(entry, start, shape)
        except (InputError, MemoryError) as error:
            with self.lock:
                self.bad[entry.path] = str(error) or "out of memory"
            raise

    def _place(self, index: int, shape: ClipShape) -> tuple[Entry, float]:
        """The entry of a clip and the second at which the clip starts in its file."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        place = bisect.bisect_right(self.ends, index)
        number = index - (self.ends[place - 1] if place else 0)
        if self.entries[place].image and shape.frames > 1 and self.videos:
            place = self.videos[hashed(index, "image") % len(self.videos)]
            number = hashed(index, "number") % self._count(place)
        entry, count = self.entries[place], self._count(place)
        room = max(0.0, entry.end - entry.start - shape.frames / shape.fps)
        return entry, entry.start + room * (number / (count - 1) if count > 1 else 0.5)

    def _count(self, place: int) -> int:
        return self.ends[place] - (self.ends[place - 1] if place else 0)

    def _read(self, entry: Entry, start: float, shape: ClipShape) -> Sample:
        size = shape.height, shape.width
        if entry.image:
            return Sample(read_image(entry.path, size)[None], ((0, entry.captions[0][1]),))
        frames = min(shape.frames, max(1, math.floor((entry.end - start) * shape.fps + 1e-3)))
        x, _ = read_video(
            entry.path, fps=shape.fps, start=start, frames=frames, size=size, limits=self.limits
        )
        return Sample(x, captions_of(entry.captions, start, len(x), shape.fps))


def captions_of(
    captions: tuple[tuple[float, str], ...], start: float, frames: int, fps: float
) -> tuple[tuple[int, str], ...]:
    """Captions `(second, text)` of a file as `(frame, text)` of a clip from `start` on; the first is at frame
    0."""
    placed: dict[int, str] = {}
    for second, text in captions:
        frame = math.ceil((second - start) * fps - 1e-6)
        if frame < frames:
            placed[max(frame, 0)] = text  # of those before the clip the last one counts
    placed.setdefault(0, "")
    return tuple(sorted(placed.items()))


def _split(entries: list[Entry], split: str, held_out: float) -> list[Entry]:
    if split == "all":
        return entries
    chosen, images, every = [], 0, round(1 / held_out)
    for entry in entries:
        if entry.image:
            images += 1
            if (images % every == 0) == (split == "heldout"):
                chosen.append(entry)
            continue
        border = entry.start + (entry.end - entry.start) * (1 - held_out)
        if split == "train":
            chosen.append(dataclasses.replace(entry, end=border))
        elif border + 1 / entry.fps < entry.end:  # the frame that is on at the border has been trained on
            chosen.append(dataclasses.replace(entry, start=border + 1 / entry.fps))
    return chosen
