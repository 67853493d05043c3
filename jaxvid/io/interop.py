# SPDX-License-Identifier: Apache-2.0
"""Foreign arrays to ours and back, by a table of leaves: all of them or an account of what does not fit.

Nothing is read before names and shapes agree, and then one of our arrays at a time.
"""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jaxvid.io.lazy import Stored, check_finite, open_index, open_safetensors
from jaxvid.io.pth import open_pth
from jaxvid.io.wan_keys import FOREIGN, Leaf, foreign_keys, foreign_shape, layout_of, part_of, plain, rename
from jaxvid.types import InputError

_SHOWN = 8


class Weights(NamedTuple):
    """What a file or a folder of shards holds, under the names of diffusers."""

    part: str  # one of `wan_keys.PARTS`
    layout: str  # whose names the files have: 'diffusers' or 'original'
    arrays: dict[str, Stored]
    source: str


class Report(NamedTuple):
    """How names and shapes fit. ``missing`` and ``unused`` come with the closest name on the other side, or ''."""

    matched: int
    wanted: int
    missing: list[tuple[str, str]]
    unused: list[tuple[str, str]]
    crooked: list[str]

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unused or self.crooked)

    def lines(self) -> list[str]:
        """The account, a line each."""
        said = [
            f"{self.matched}/{self.wanted} keys matched, {len(self.unused)} unused",
            *self.crooked[:_SHOWN],
        ]
        for word, names in (("missing", self.missing), ("unused", self.unused)):
            said += [
                f"{word} {name}" + (f" (closest: {near})" if near else "") for name, near in names[:_SHOWN]
            ]
            said += [f"and {len(names) - _SHOWN} more {word}"] if len(names) > _SHOWN else []
        return said


def closest(name: str, among: Iterable[str]) -> str:
    """' (closest: ...)', or nothing."""
    near = difflib.get_close_matches(name, list(among), 1, 0.6)
    return f" (closest: {near[0]})" if near else ""


def open_weights(path) -> Weights:
    """The arrays of a .safetensors file, an .index.json with its shards, or a .pth. Raises InputError."""
    path = pathlib.Path(path)
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raw = open_pth(path)
    elif path.name.endswith(".index.json"):
        raw = open_index(path)
    else:
        raw = open_safetensors(path)
    named: dict[str, Stored] = {}
    for key, array in raw.items():
        if plain(key) in named:
            raise InputError(f"{path}: {key} is there twice, with a prefix and without; keep one")
        named[plain(key)] = array
    if "embeddings.class_embedding" in named:  # newer files of an image tower leave its name out
        named = {f"vision_model.{key}": array for key, array in named.items()}
    part = part_of(named)
    layout = layout_of(part, named)
    arrays = {rename(part, key, "diffusers") if layout == "original" else key: a for key, a in named.items()}
    if len(arrays) != len(named):
        raise InputError(f"{path} mixes the names of two layouts; keep one")
    if part == "umt5":
        arrays = _one_table(arrays, path)
    return Weights(part, layout, arrays, str(path))


def _one_table(arrays: dict[str, Stored], path) -> dict[str, Stored]:
    """The token table goes by two names; both may be there when they are equal."""
    twin = arrays.pop("encoder.embed_tokens.weight", None)
    if (
        twin is not None
        and "shared.weight" in arrays
        and not np.array_equal(twin.read(), arrays["shared.weight"].read())
    ):
        raise InputError(
            f"{path} has two token tables that differ (shared, encoder.embed_tokens); keep the right one"
        )
    return arrays if twin is None or "shared.weight" in arrays else {**arrays, "shared.weight": twin}


def compare(
    leaves: Iterable[Leaf],
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, Stored],
    unread: re.Pattern | None = None,
) -> Report:
    """How ``arrays`` fit our arrays of ``shapes``; keys that match ``unread`` are expected to be useless."""
    wanted = {}
    for leaf in leaves:
        wanted |= dict.fromkeys(foreign_keys(leaf, shapes[leaf.name]), foreign_shape(leaf, shapes[leaf.name]))
    there = {key for key in arrays if not (unread and unread.fullmatch(key))}
    missing, unused = sorted(set(wanted) - there), sorted(there - set(wanted))
    crooked = [
        f"{key} is {arrays[key].shape} instead of {wanted[key]}"
        for key in sorted(there & set(wanted))
        if tuple(arrays[key].shape) != tuple(wanted[key])
    ]

    def near(names, others):
        return [(n, *(difflib.get_close_matches(n, others, 1, 0.6) or [""])) for n in names[:_SHOWN]] + [
            (n, "") for n in names[_SHOWN:]
        ]

    matched = len(there & set(wanted)) - len(crooked)
    return Report(matched, len(wanted), near(missing, unused), near(unused, missing), crooked)


def check(report: Report, source: str, partial: bool = False) -> Report:
    """The report, or an InputError below 100 %. ``partial`` lets missing and unused keys pass, never wrong shapes."""
    if report.crooked or not (report.whole or partial):
        raise InputError(
            f"{source}: {'; '.join(report.lines())}; give the config that belongs to these weights"
        )
    return report


def ours(leaf: Leaf, shape: tuple[int, ...], arrays: Mapping[str, Stored], source: str = "weights") -> Stored:
    """One of our arrays, made when read: axes turned, layers stacked, in the dtype of the file."""
    parts = [arrays[key] for key in foreign_keys(leaf, shape)]
    turn = FOREIGN[leaf.lies][1]
    dtype = max((part.dtype for part in parts), key=lambda d: d.itemsize)

    def read():
        if not leaf.layered:
            return np.ascontiguousarray(check_finite(leaf.key, turn(parts[0].read()), source))
        made = np.empty(shape, dtype)
        for i, part in enumerate(parts):
            made[i] = check_finite(leaf.key.format(i), turn(part.read()), source)
        return made

    return Stored(tuple(shape), dtype, read)


def theirs(leaf: Leaf, array: Stored) -> dict[str, Stored]:
    """The foreign arrays of one of ours, by their diffusers' keys."""
    shape, turn = foreign_shape(leaf, array.shape), FOREIGN[leaf.lies][2]

    def one(index):
        def read():
            value = array.read() if index is None else array.read()[index]
            return np.ascontiguousarray(turn(value, shape))

        return Stored(shape, array.dtype, read)

    keys = foreign_keys(leaf, array.shape)
    return {key: one(i if leaf.layered else None) for i, key in enumerate(keys)}


def convert(
    leaves: Iterable[Leaf], shapes: Mapping[str, tuple[int, ...]], weights: Weights
) -> dict[str, Stored]:
    """All of our arrays whose keys are there, by name. Ask `compare` and `check` first."""
    ready = [
        leaf for leaf in leaves if all(key in weights.arrays for key in foreign_keys(leaf, shapes[leaf.name]))
    ]
    return {leaf.name: ours(leaf, shapes[leaf.name], weights.arrays, weights.source) for leaf in ready}


def convert_back(
    leaves: Iterable[Leaf], arrays: Mapping[str, Stored], part: str, layout: str
) -> dict[str, Stored]:
    """Foreign arrays of all of ours, under the names of ``layout``."""
    made: dict[str, Stored] = {}
    for leaf in leaves:
        made |= theirs(leaf, arrays[leaf.name])
    return (
        made if layout == "diffusers" else {rename(part, key, layout): array for key, array in made.items()}
    )
