# SPDX-License-Identifier: Apache-2.0
"""Trees of arrays as one safetensors file, read with suspicion.

The layout is: 8 bytes of header length (little endian), a JSON header ``{name: {dtype, shape, data_offsets}}``, the
bytes. Leaves are named by their path, ``params/encoder/kernel``. A file is believed only after its header fits its
size, names no byte twice and leaves none out, so a truncated or foreign file is one clear error and nothing is loaded.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import flax.core
import jax
import ml_dtypes
import numpy as np

from jaxvid.types import InputError

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(v): k for k, v in _DTYPES.items()}
_HEADER_BYTES = 16 << 20
_TENSORS = 20_000
_NAME = re.compile(r"[A-Za-z0-9_.\-]+(?:/[A-Za-z0-9_.\-]+)*")
_REMEDY = "fetch or save it again"


def flatten(tree: Any) -> dict[str, Any]:
    """``{'params': {'a': {'b': x}}}`` to ``{'params/a/b': x}``; boxes of logical axes are taken off."""
    return dict(_walk(flax.core.meta.unbox(tree), ()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, in plain dicts."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
            if not isinstance(at, dict):
                raise InputError(f"the name {name!r} goes through a leaf; {_REMEDY}")
        if leaf in at:
            raise InputError(f"the name {name!r} is both a leaf and a folder; {_REMEDY}")
        at[leaf] = value
    return tree


def save_weights(
    path: str | os.PathLike[str], tree: Any, dtype: Any = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a nested dict of arrays aside and renames it to ``path``.

    ``dtype`` (for example ``'bfloat16'``) is the type of floating leaves in the file; integers keep theirs.
    ``metadata`` is text beside the arrays.
    """
    wanted = None if dtype is None else np.dtype(jax.numpy.dtype(dtype))
    write_flat(
        path, {name: _to_disk(name, value, wanted) for name, value in sorted(flatten(tree).items())}, metadata
    )


def write_flat(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    read: Callable[[Any], np.ndarray] = np.asarray,
) -> None:
    """Writes what has ``dtype``, ``shape`` and ``nbytes``, each ``read`` when its turn comes, aside, then renamed."""
    path = os.fspath(path)
    header: dict[str, Any] = (
        {"__metadata__": {str(k): str(v) for k, v in metadata.items()}} if metadata else {}
    )
    at = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": dtype_name(array.dtype),
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    aside = f"{path}.{uuid.uuid4().hex[:8]}.part"
    try:
        with open(aside, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(read(array)).reshape(-1).view(np.uint8))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as e:
        raise InputError(
            f"cannot write {path} ({e.strerror}); give a writable place with room for {at} bytes"
        ) from e
    finally:
        if os.path.exists(aside):
            os.unlink(aside)


def load_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The nested dict of numpy arrays (bfloat16 through ml_dtypes) in a safetensors file, all of them finite."""
    return unflatten(load_flat(path))


def load_flat(path: str | os.PathLike[str], finite: bool = True) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name. ``finite=False`` lets NaN and infinities pass."""
    arrays: dict[str, np.ndarray] = {}
    with _open(path) as file:
        header, _ = _header(file, path)
        start = file.tell()
        for name, (dtype, shape, begin, end) in header.items():
            file.seek(start + begin)
            array = np.frombuffer(bytearray(file.read(end - begin)), dtype).reshape(shape)
            if finite and jax.numpy.issubdtype(dtype, jax.numpy.floating) and not np.isfinite(array).all():
                raise InputError(f"{path}: {name} holds NaN or infinity; take an earlier checkpoint")
            arrays[name] = array
    return arrays


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text beside the arrays of a safetensors file."""
    with _open(path) as file:
        return _header(file, path)[1]


def load_shapes(path: str | os.PathLike[str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Names, shapes and dtypes of a safetensors file, without reading its arrays."""
    with _open(path) as file:
        return {k: jax.ShapeDtypeStruct(s, d) for k, (d, s, _, _) in _header(file, path)[0].items()}


def load_layout(
    path: str | os.PathLike[str],
) -> tuple[int, dict[str, tuple[np.dtype, tuple[int, ...], int, int]]]:
    """Where the data of a safetensors file starts; of each array dtype, shape, first and last byte from there."""
    with _open(path) as file:
        entries, _ = _header(file, path)
        return file.tell(), entries


def dtype_name(dtype: Any) -> str:
    """What safetensors calls a dtype."""
    return _NAMES[np.dtype(dtype)]


def restore_into(
    abstract_tree: Any, flat: Mapping[str, Any], source: str = "the weights", keep: bool = False
) -> Any:
    """Puts loaded arrays (flat or nested) into a tree of this structure, cast to its floating dtypes unless ``keep``.

    Every leaf must find an array of its shape and every array a leaf: anything below 100 % is an InputError that
    counts what matched and lists what is missing, unused or of another shape, with the closest candidates.
    """
    flat = flatten(flat)
    wanted = flatten(abstract_tree)
    missing = sorted(set(wanted) - set(flat))
    unused = sorted(set(flat) - set(wanted))
    crooked = [
        f"{k} is {tuple(np.shape(flat[k]))} instead of {tuple(wanted[k].shape)}"
        for k in sorted(set(wanted) & set(flat))
        if tuple(np.shape(flat[k])) != tuple(wanted[k].shape)
    ]
    kinds = [
        f"{k} is {np.asarray(flat[k]).dtype} instead of {wanted[k].dtype}"
        for k in sorted(set(wanted) & set(flat))
        if _floating(flat[k].dtype) != _floating(wanted[k].dtype)
    ]
    if missing or unused or crooked or kinds:
        matched = len(set(wanted) & set(flat)) - len(crooked) - len(kinds)
        said = [f"{matched}/{len(wanted)} arrays of {source} matched", *(crooked + kinds)[:8]]
        for name in missing[:8]:
            near = difflib.get_close_matches(name, unused, 1, 0.6)
            said.append(f"missing {name}" + (f" (closest: {near[0]})" if near else ""))
        said += [f"unused {name}" for name in unused[:8]]
        left = sum(max(0, len(x) - 8) for x in (crooked + kinds, missing, unused))
        said += [f"and {left} more"] if left else []
        raise InputError("; ".join(said) + "; use the config that these weights were made with")
    cast = {
        k: np.asarray(flat[k]).astype(v.dtype) if flat[k].dtype != v.dtype and not keep else flat[k]
        for k, v in wanted.items()
    }
    leaves, structure = jax.tree_util.tree_flatten_with_path(flax.core.meta.unbox(abstract_tree))
    return jax.tree_util.tree_unflatten(structure, [cast[_path_name(p)] for p, _ in leaves])


def _path_name(path: tuple[Any, ...]) -> str:
    return "/".join(
        str(p.key if hasattr(p, "key") else p.name if hasattr(p, "name") else p.idx) for p in path
    )


def _floating(dtype: Any) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.floating))


def _walk(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        yield "/".join(path), tree
        return
    for key, value in tree.items():
        yield from _walk(value, (*path, str(key)))


def _to_disk(name: str, value: Any, wanted: np.dtype | None) -> np.ndarray:
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot name an array in a file; use letters, digits, and _ . -")
    array = np.asarray(value)
    if array.dtype not in _NAMES:
        raise InputError(f"{name} is {array.dtype}, which safetensors cannot hold; save numbers")
    if wanted is not None and _floating(array.dtype):
        array = array.astype(wanted)
    return np.ascontiguousarray(array).reshape(array.shape)


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    if not os.path.isfile(path):
        raise InputError(f"no weights at {path}; give a .safetensors file")
    try:
        return open(path, "rb")
    except OSError as e:
        raise InputError(f"cannot read {path} ({e.strerror}); give a readable .safetensors file") from e


def _header(
    file: BinaryIO, path: str | os.PathLike[str]
) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...], int, int]], dict[str, str]]:
    """Reads and doubts the header; leaves the file at the first byte of data."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 2 <= length <= size - 8 or length > _HEADER_BYTES:
        raise InputError(f"{path} is truncated or not a safetensors file; {_REMEDY}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not a safetensors file (its header is not JSON); {_REMEDY}") from None
    if not isinstance(header, dict) or len(header) > _TENSORS:
        raise InputError(f"{path} has no usable safetensors header; {_REMEDY}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{path} has metadata that is not text; {_REMEDY}")
    parsed = {name: _entry(path, name, entry) for name, entry in header.items()}
    at = 0
    for name, (_, _, begin, end) in sorted(parsed.items(), key=lambda item: (item[1][2], item[1][3])):
        if begin != at:
            raise InputError(f"{path}: the bytes of {name} overlap others or leave a hole; {_REMEDY}")
        at = end
    if 8 + length + at != size:
        raise InputError(
            f"{path} has {size} bytes instead of {8 + length + at}, it is truncated or padded; {_REMEDY}"
        )
    return parsed, metadata


def _entry(path: Any, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    usable = (
        _NAME.fullmatch(name)
        and not set(name.split("/")) & {".", ".."}
        and isinstance(entry, dict)
        and set(entry) == {"dtype", "shape", "data_offsets"}
        and entry["dtype"] in _DTYPES
        and isinstance(entry["shape"], list)
        and isinstance(entry["data_offsets"], list)
        and len(entry["data_offsets"]) == 2
        and all(type(n) is int and 0 <= n < 1 << 48 for n in entry["shape"] + entry["data_offsets"])
    )
    if not usable:
        raise InputError(f"{path}: the entry of {name[:60]!r} is not one of safetensors; {_REMEDY}")
    dtype, shape, (begin, end) = (
        np.dtype(_DTYPES[entry["dtype"]]),
        tuple(entry["shape"]),
        entry["data_offsets"],
    )
    wanted = dtype.itemsize
    for n in shape:
        wanted *= n
    if end - begin != wanted:
        raise InputError(
            f"{path}: {name} of shape {shape} needs {wanted} bytes, {end - begin} are given; {_REMEDY}"
        )
    return dtype, shape, begin, end


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name twice")
    return made
