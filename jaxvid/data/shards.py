# SPDX-License-Identifier: Apache-2.0
"""A store of arrays on disk, found by content key: safetensors shards, written aside and renamed.

A shard holds many arrays, named by their keys, and a short text beside each. Opening the store reads only
headers; arrays are read from memory-mapped files. A shard that is truncated or foreign is left out, so that
its keys miss.
"""

from __future__ import annotations

import os
import pathlib
import threading
import uuid
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxvid.types import InputError


class Shards:
    """`get(key) -> (array, text)` or None; `put({key: (array, text)})` writes one shard. Threads may share
    it."""

    def __init__(self, directory: str | os.PathLike):
        self.directory = pathlib.Path(directory)
        self.lock = threading.Lock()
        self.files: dict[str, tuple] = {}  # file name -> (open file, {key: text})
        self.places: dict[str, str] = {}  # key -> file name
        self.bad: list[str] = []  # names of files that could not be read
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the directory {directory} ({error.strerror}); name another"
            ) from error
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that other processes wrote since."""
        with self.lock:
            for path in sorted(self.directory.glob("*.safetensors")):
                if path.name not in self.files and path.name not in self.bad:
                    self._open(path)

    def _open(self, path: pathlib.Path) -> None:
        try:
            file = safe_open(path, framework="numpy")
            texts = file.metadata() or {}
            keys = file.keys()
        except (SafetensorError, OSError):
            self.bad.append(path.name)
            return
        self.files[path.name] = file, texts
        self.places.update((key, path.name) for key in keys if key in texts)

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def __len__(self) -> int:
        return len(self.places)

    def get(self, key: str) -> tuple[np.ndarray, str] | None:
        name = self.places.get(key)
        if name is None:
            return None
        file, texts = self.files[name]
        return file.get_tensor(key), texts[key]

    def put(self, items: Mapping[str, tuple[np.ndarray, str]]) -> None:
        if not items:
            return
        path = self.directory / f"{uuid.uuid4().hex}.safetensors"
        aside = path.with_suffix(".part")
        try:
            save_file(
                {key: np.ascontiguousarray(array) for key, (array, _) in items.items()},
                aside,
                metadata={key: text for key, (_, text) in items.items()},
            )
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        with self.lock:
            self._open(path)
