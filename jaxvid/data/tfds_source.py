# SPDX-License-Identifier: Apache-2.0
"""Any data set that TensorFlow Datasets prepared as ArrayRecord, as a source, without TensorFlow.

Reading needs only the prepared directory (`.../name/config/1.0.0`). The feature `Video` imports TensorFlow
merely to be constructed, and a sequence of images is decoded whole even if few frames are wanted; in the
records both are lists of encoded images. So we read through a copy of the data set's description in which the
frames are plain bytes, with links to the records, and decode the frames that are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.images import decode_image, fit
from jaxvid.data.replace import first_readable
from jaxvid.types import InputError

VERSION = 1  # of how a clip is cut from a record; part of every content key
CLASSES = "tensorflow_datasets.core.features."
BYTES = {"pythonClassName": f"{CLASSES}text_feature.Text", "text": {}}


class TfdsSource:
    """Clips of a prepared data set of videos (or images): records in order, `clips` from each, spread over
    it.

    directory: where `dataset_info.json` and the records are, prepared with `file_format='array_record'`.
    split: as in TFDS, slices such as 'train[:80%]' too. fps: the rate of the recorded frames, which TFDS does
    not keep. video: the feature with the frames (`Video`, `Sequence(Image)`, `Image` or a uint8 tensor ``[T,
    H, W, C]``); the first such one by default. caption: a feature with a text, or a class whose name is
    taken; none by default. Damaged records are named in `bad` and replaced by others, always the same.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str = "train",
        *,
        fps: float,
        video: str | None = None,
        caption: str | None = None,
        clips: int = 1,
    ):
        if not 0 < fps <= 1000 or clips < 1:
            raise InputError(
                f"fps={fps}, clips={clips}: wanted a rate of up to 1000 and at least one clip a record"
            )
        self.directory, self.fps, self.clips = pathlib.Path(directory), fps, clips
        features = _features(self.directory)
        self.video = _choose(features, video, self.directory)
        if caption is not None and caption not in features:
            raise InputError(f"{directory} has no feature {caption!r}; it has {', '.join(sorted(features))}")
        self.caption = caption
        self.names = _class_names(self.directory, features, caption)
        self.records = _records(self.directory, self.video, split)
        if not len(self.records):
            raise InputError(f"split {split!r} of {directory} is empty; use another one")
        facts = (self.directory / "dataset_info.json").read_bytes() + json.dumps(
            features, sort_keys=True
        ).encode()
        self.identity = hashlib.blake2b(facts, digest_size=16).hexdigest() + split
        self.bad: dict[str, str] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.records) * self.clips

    def key(self, index: int, shape: ClipShape) -> str:
        parts = [VERSION, self.identity, self.video, self.caption, self.fps, self.clips, index]
        text = json.dumps([*parts, dataclasses.astuple(shape)])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def clip(self, index: int, shape: ClipShape) -> Sample:
        """uint8 ``[T, height, width, 3]``, T up to `shape.frames`: a short record gives what it has."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return first_readable(lambda other: self._clip(other, shape), index, len(self))

    def _clip(self, index: int, shape: ClipShape) -> Sample:
        number, turn = divmod(index, self.clips)
        try:
            try:
                record = self.records[number]
            except (RuntimeError, ValueError) as error:
                raise InputError(f"record {number} of {self.directory} is damaged: {error}") from error
            return self._cut(record, f"record {number} of {self.directory}", turn, shape)
        except InputError as error:
            with self.lock:
                self.bad[f"record {number}"] = str(error)
            raise

    def _cut(self, record: Mapping[str, Any], name: str, turn: int, shape: ClipShape) -> Sample:
        found = record[self.video]
        frames = [found] if isinstance(found, bytes) or np.ndim(found) == 3 else found
        if not len(frames):
            raise InputError(f"{name} has no frames")
        room = max(0.0, len(frames) / self.fps - shape.frames / shape.fps)
        start = room * (turn / (self.clips - 1) if self.clips > 1 else 0.5)
        last = max(1, math.ceil((len(frames) / self.fps - start) * shape.fps - 1e-3))
        places = [
            min(math.floor((start + k / shape.fps) * self.fps + 1e-6), len(frames) - 1)
            for k in range(min(shape.frames, last))
        ]
        decoded = functools.lru_cache(maxsize=1)(lambda place: _pixels(frames[place], name, shape))
        return Sample(np.stack([decoded(place) for place in places]), ((0, self._text(record)),))

    def _text(self, record: Mapping[str, Any]) -> str:
        if self.caption is None:
            return ""
        value = record[self.caption]
        if self.names is not None:
            return self.names[int(value)]
        return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _pixels(frame: Any, name: str, shape: ClipShape) -> np.ndarray:
    if isinstance(frame, bytes):
        pixels = decode_image(io.BytesIO(frame), f"a frame of {name}")
    else:
        pixels = np.asarray(frame)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
            raise InputError(
                f"{name} has frames of {pixels.dtype} {pixels.shape}; wanted uint8 [H, W, 1 or 3]"
            )
        pixels = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    return fit(pixels, shape.height, shape.width)


def _features(directory: pathlib.Path) -> dict[str, Any]:
    try:
        described = json.loads((directory / "features.json").read_text(encoding="utf-8"))
        return described["featuresDict"]["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{directory} is not a prepared TFDS data set (no good features.json); give the directory of a version, "
            "such as .../name/1.0.0"
        ) from error


def _kind(feature: Mapping[str, Any]) -> str:
    return feature.get("pythonClassName", "").rsplit(".", 1)[-1]


def _is_video(feature: Mapping[str, Any]) -> bool:
    kind = _kind(feature)
    if kind == "Sequence":
        return _kind(feature["sequence"].get("feature", {})) == "Image"
    if kind == "Tensor":
        tensor = feature.get("tensor", {})
        return tensor.get("dtype") == "uint8" and len(tensor.get("shape", {}).get("dimensions", ())) == 4
    return kind in ("Video", "Image")


def _choose(features: Mapping[str, Any], video: str | None, directory: pathlib.Path) -> str:
    ranks = ("Video", "Sequence", "Tensor", "Image")
    found = sorted(
        (name for name, feature in features.items() if _is_video(feature)),
        key=lambda name: (ranks.index(_kind(features[name])), name),
    )
    if video is None and found:
        return found[0]
    if video not in found:
        raise InputError(
            f"{directory} has no frames in {video or 'any feature'}; "
            + (f"use video={found[0]!r}" if found else f"it has only {', '.join(sorted(features))}")
        )
    return video


def _class_names(
    directory: pathlib.Path, features: Mapping[str, Any], caption: str | None
) -> list[str] | None:
    if caption is None or _kind(features[caption]) != "ClassLabel":
        return None
    path = directory / f"{caption}.labels.txt"
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"cannot read the names of classes in {path}; use another feature as caption"
        ) from error


def _as_bytes(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of a feature with frames, its images being plain bytes."""
    kind = _kind(feature)
    if kind == "Image":
        return BYTES
    if kind in ("Video", "Sequence"):
        length = (feature.get("sequence") or {}).get("length", "-1")
        return {
            "pythonClassName": f"{CLASSES}sequence_feature.Sequence",
            "sequence": {"feature": BYTES, "length": length},
        }
    return feature


def _records(directory: pathlib.Path, video: str, split: str):
    """The records, read through a description with links to the files; features that are not frames stay."""
    import tensorflow_datasets as tfds  # late: it is slow, and only this source needs it

    described = json.loads((directory / "features.json").read_text(encoding="utf-8"))
    features = described["featuresDict"]["features"]
    described["featuresDict"]["features"] = {
        name: _as_bytes(feature) if name == video or _kind(feature) == "Video" else feature
        for name, feature in features.items()
    }
    with tempfile.TemporaryDirectory() as temporary:
        # The names of the last directories are those of the data set and its version.
        copy = pathlib.Path(temporary, *directory.resolve().parts[-3:])
        copy.mkdir(parents=True)
        for path in directory.iterdir():
            if path.name != "features.json":
                (copy / path.name).symlink_to(path.resolve())
        (copy / "features.json").write_text(json.dumps(described), encoding="utf-8")
        try:
            records = tfds.builder_from_directory(copy).as_data_source(split)
            if len(records):
                records[0]  # opens the files while the links are there
        except (NotImplementedError, ValueError, KeyError, FileNotFoundError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"cannot read split {split!r} of {directory}: {reason}; it must be prepared as array_record"
            ) from error
    return records
