# SPDX-License-Identifier: Apache-2.0
"""Finding videos and images with their captions: a file, a folder, or a manifest in CSV or JSONL.

Captions come from a manifest, or from a text file of the same name beside the video (`a.mp4`, `a.txt`). A
manifest has a row for each clip: `path` (relative to the manifest) and, as wanted, `caption`, `start` and
`end` in seconds; in JSONL also `captions`, a list of `{"at": seconds, "text": "..."}`. What cannot be used is
named with its reason and left out.
"""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import unicodedata
import uuid
from collections.abc import Mapping
from typing import Any

from jaxvid.data.decode import VIDEO_SUFFIXES, Limits, probe
from jaxvid.data.images import IMAGE_SUFFIXES, read_image
from jaxvid.types import InputError

SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES
MANIFESTS = (".csv", ".jsonl")
CAPTION = 8192  # characters of a caption that are kept
LINE = 1 << 16  # bytes of a manifest's line
VERSION = 1  # of what a scan remembers


@dataclasses.dataclass(frozen=True)
class Entry:
    """One usable file, or a part of it. Times are seconds of the file."""

    path: str
    content: str  # hash of what is in the file
    start: float
    end: float  # 0 for an image
    fps: float  # 0 for an image
    captions: tuple[tuple[float, str], ...]  # (second, text), the first at `start`

    @property
    def image(self) -> bool:
        return self.end == 0


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What a folder or manifest names, before it was looked at."""

    path: pathlib.Path
    start: float = 0.0
    end: float | None = None
    captions: tuple[tuple[float, str], ...] | None = None  # None: look beside the file


def scan(
    path: str | os.PathLike,
    *,
    limits: Limits = Limits(),
    cache: str | os.PathLike | None = None,
    threads: int = 4,
) -> tuple[list[Entry], dict[str, str]]:
    """The usable entries at `path`, in sorted order (a manifest's own order), and the bad ones with their
    reasons.

    `cache` is a JSON file that remembers what files are, by path, size and time of change; a large folder is
    probed only once. InputError when nothing is there, or nothing that can be used.
    """
    path = pathlib.Path(path)
    bad: dict[str, str] = {}
    wanted = _wanted(path, bad)
    known = _load(cache)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        looks = list(pool.map(lambda one: _look(one.path, known, limits), wanted))
    entries = []
    for one, look in zip(wanted, looks, strict=True):
        if "bad" in look:
            bad[str(one.path)] = look["bad"]
            continue
        try:
            entries.append(_entry(one, look))
        except InputError as error:
            bad[str(one.path)] = str(error)
    if cache is not None:
        _save(cache, {look["stamp"]: look for look in looks if "stamp" in look})
    if not entries:
        reasons = "; ".join(list(bad.values())[:3])
        raise InputError(
            f"nothing usable in {path}"
            + (f": {len(bad)} bad ({reasons})" if bad else f"; put {', '.join(SUFFIXES)} files there")
        )
    return entries, bad


def _wanted(path: pathlib.Path, bad: dict[str, str]) -> list[_Wanted]:
    if path.is_dir():
        found = []
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [
                pathlib.Path(folder, name)
                for name in files
                if not name.startswith(".") and name.lower().endswith(SUFFIXES)
            ]
        return [_Wanted(file) for file in sorted(found)]
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; give a video, a folder of videos, or a .csv or .jsonl manifest"
        )
    if path.suffix.lower() in MANIFESTS:
        return _manifest(path, bad)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} is neither a video, an image nor a manifest ({', '.join(SUFFIXES + MANIFESTS)})"
        )
    return [_Wanted(path)]


def _manifest(path: pathlib.Path, bad: dict[str, str]) -> list[_Wanted]:
    wanted = []
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        for number, row in enumerate(_rows(path, file), 1):
            try:
                wanted.append(_row(path, row))
            except (InputError, ValueError, TypeError, AttributeError) as error:
                bad[f"{path}, row {number}"] = f"row {number} of {path}: {error}"
    return wanted


def _rows(path: pathlib.Path, file):
    if path.suffix.lower() == ".jsonl":
        yield from (line for line in file if line.strip())
        return
    reader = csv.DictReader(file)
    if "path" not in (reader.fieldnames or ()):
        raise InputError(f'{path} has no column "path" in its first line; wanted path, caption[, start, end]')
    try:
        yield from reader
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file ({error})") from error


def _row(manifest: pathlib.Path, row: str | Mapping[str, Any]) -> _Wanted:
    if isinstance(row, str):
        if len(row) > LINE:
            raise InputError(f"longer than {LINE} characters")
        row = json.loads(row, parse_constant=_no_constant)
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
        raise InputError('wanted an object with a "path"')
    name = pathlib.PurePath(os.path.normpath(row["path"]))
    if name.is_absolute() or ".." in name.parts or "\0" in row["path"]:
        raise InputError(
            f"path {row['path']!r} leads out of the folder of the manifest; give a path inside of it"
        )
    start, end = (float(row[key]) if row.get(key) not in (None, "") else None for key in ("start", "end"))
    start = start or 0.0
    if not (math.isfinite(start) and start >= 0 and (end is None or start < end < math.inf)):
        raise InputError(f"start={start}, end={end} is not a stretch of time")
    captions = None
    if row.get("captions"):
        captions = tuple((float(one["at"]), _text(one["text"])) for one in row["captions"])
        if list(captions) != sorted(captions, key=lambda one: one[0]):
            raise InputError("captions are not in the order of their times")
    elif row.get("caption") is not None:
        captions = ((start, _text(row["caption"])),)
    return _Wanted(manifest.parent / name, start, end, captions)


def _no_constant(name: str):
    raise InputError(f"{name} is not a number")


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise InputError(f"caption {text!r} is not a text")
    return unicodedata.normalize("NFC", text.strip()[:CAPTION])


def _look(path: pathlib.Path, known: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """What a file is: {'seconds', 'fps', 'content', 'stamp'}, or {'bad': reason}."""
    try:
        status = path.stat()
        stamp = f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns} {limits}"
        if stamp in known:
            return known[stamp]
        if path.suffix.lower() in IMAGE_SUFFIXES:
            read_image(path)
            look = {"seconds": 0.0, "fps": 0.0}
        else:
            info = probe(path, limits)
            look = {"seconds": info.seconds, "fps": info.fps}
        return {**look, "content": _content(path, status.st_size), "stamp": stamp}
    except InputError as error:
        return {"bad": str(error)}
    except OSError as error:
        return {"bad": f"cannot read {path}: {error.strerror}"}


def _content(path: pathlib.Path, size: int, blocks: int = 16, block: int = 1 << 16) -> str:
    """A hash of a file's size and of blocks spread over it: of all of a small file, of a sample of a large
    one."""
    whole = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        if size <= blocks * block:
            whole.update(file.read())
        else:
            for n in range(blocks):
                file.seek(n * (size - block) // (blocks - 1))
                whole.update(file.read(block))
    return whole.hexdigest()


def _entry(one: _Wanted, look: Mapping[str, Any]) -> Entry:
    image = look["seconds"] == 0
    end = 0.0 if image else min(look["seconds"] if one.end is None else one.end, look["seconds"])
    if not image and one.start >= end:
        raise InputError(
            f"{one.path} is {look['seconds']:.2f} s long, start={one.start:g} is not before its end"
        )
    captions = one.captions
    if captions is None:
        beside = one.path.with_suffix(".txt")
        text = ""
        if beside.is_file():
            with open(beside, encoding="utf-8-sig", errors="replace") as file:
                text = file.read(4 * CAPTION)
        captions = ((one.start, _text(text)),)
    return Entry(str(one.path), look["content"], one.start, end, look["fps"], captions)


def _load(cache: str | os.PathLike | None) -> dict[str, Any]:
    try:
        with open(cache, encoding="utf-8") as file:
            saved = json.load(file)
        return saved["files"] if saved["version"] == VERSION else {}
    except (TypeError, KeyError, OSError, ValueError):  # no cache, none yet, or a broken one: look again
        return {}


def _save(cache: str | os.PathLike, files: Mapping[str, Any]) -> None:
    cache = pathlib.Path(cache)
    cache.parent.mkdir(parents=True, exist_ok=True)
    aside = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}.part")
    try:
        aside.write_text(json.dumps({"version": VERSION, "files": files}), encoding="utf-8")
        os.replace(aside, cache)
    finally:
        aside.unlink(missing_ok=True)
