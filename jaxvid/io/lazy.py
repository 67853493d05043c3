# SPDX-License-Identifier: Apache-2.0
"""Arrays that stay on disk until they are asked for: files larger than memory are read, changed and written leaf by leaf."""

from __future__ import annotations

import json
import mmap
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jaxvid.io.weights import load_layout, unflatten, write_flat
from jaxvid.types import InputError

_INDEX_BYTES = 64 << 20


class Stored(NamedTuple):
    """An array not yet read. ``read()`` gives it, on pages of the file where it can; read-only."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def from_array(array) -> Stored:
    """An array in memory, looked at like one on disk."""
    array = np.asarray(array)
    return Stored(array.shape, array.dtype, lambda: array)


def mapped(path) -> mmap.mmap:
    """The bytes of a file, read when touched."""
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}); fetch it again") from None


def open_safetensors(path) -> dict[str, Stored]:
    """The arrays of a safetensors file by name, its header checked. Raises InputError."""
    start, entries = load_layout(path)
    data = mapped(path)

    def stored(dtype, shape, begin, end):
        def read():
            return np.frombuffer(data, dtype, (end - begin) // dtype.itemsize, start + begin).reshape(shape)

        return Stored(shape, dtype, read)

    return {name: stored(*entry) for name, entry in entries.items()}


def open_index(path) -> dict[str, Stored]:
    """The arrays of the shards that an ``.index.json`` names, which must be the ones that it says. Raises InputError."""
    path = pathlib.Path(path)
    try:
        if path.stat().st_size > _INDEX_BYTES:
            raise ValueError("too large")
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(where.values()))
        if any(pathlib.PurePath(name).name != name for name in files):
            raise ValueError("it names files outside of its folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not an index of shards ({error}); fetch it again") from None
    found: dict[str, Stored] = {}
    for name in files:
        if not (path.parent / name).is_file():
            raise InputError(f"{path.name} names {name}, which is not there; fetch the missing shard")
        shard = open_safetensors(path.parent / name)
        wrong = sorted({key for key in where if where[key] == name} ^ set(shard))
        if wrong:
            raise InputError(
                f"{path.name} and {name} disagree about {len(wrong)} arrays, {wrong[0]} the first; fetch both again"
            )
        found |= shard
    return found


def load_mapped(path) -> dict:
    """The nested dict of a safetensors file whose arrays stay on its pages, for files that were checked when written."""
    return unflatten({name: array.read() for name, array in open_safetensors(path).items()})


def write_arrays(path, arrays: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of arrays that are read one by one while it is written; aside, then renamed."""
    write_flat(path, arrays, metadata, read=lambda stored: stored.read())


def shards_of(arrays: Mapping[str, Stored], largest: int) -> list[dict[str, Stored]]:
    """The arrays in the order of their names, in as few groups of at most ``largest`` bytes (or one array) as that takes."""
    groups: list[dict[str, Stored]] = [{}]
    size = 0
    for name in sorted(arrays):
        if groups[-1] and size + arrays[name].nbytes > largest:
            groups.append({})
            size = 0
        groups[-1][name] = arrays[name]
        size += arrays[name].nbytes
    return groups


def write_sharded(folder, stem: str, arrays: Mapping[str, Stored], largest: int) -> list[pathlib.Path]:
    """``stem.safetensors``, or shards of it with their index, as diffusers and transformers write them."""
    folder, groups = pathlib.Path(folder), shards_of(arrays, largest)
    if len(groups) == 1:
        write_arrays(folder / f"{stem}.safetensors", groups[0], {"format": "pt"})
        return [folder / f"{stem}.safetensors"]
    where, files = {}, []
    for number, group in enumerate(groups, 1):
        files.append(folder / f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors")
        write_arrays(files[-1], group, {"format": "pt"})
        where |= dict.fromkeys(group, files[-1].name)
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(
        json.dumps(index, indent=2) + "\n", encoding="utf-8"
    )
    return files


def check_finite(name: str, array: np.ndarray, source: str) -> np.ndarray:
    """The array itself, or an InputError when it holds NaN or infinity."""
    if array.dtype.kind not in "biu" and not np.isfinite(array).all():
        raise InputError(
            f"{source}: {name} holds NaN or infinity; fetch it again, or take an earlier checkpoint"
        )
    return array


def total_bytes(arrays: Iterable[Stored]) -> int:
    """What they take on disk."""
    return sum(array.nbytes for array in arrays)
