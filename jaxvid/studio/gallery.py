# SPDX-License-Identifier: Apache-2.0
"""The videos of a directory: what is in it is the gallery, and nothing else is kept."""

from __future__ import annotations

import datetime
import functools
import io
import json
import os
import pathlib
import re
import shlex
import threading
from typing import Any

from jaxvid.clip import aside
from jaxvid.recipe import check_line, check_recipe, command
from jaxvid.types import InputError

SHOWN = 500  # videos, the newest ones
LARGEST_VERDICT = 4 << 20  # bytes of a file beside a video


class Missing(LookupError):
    """Nothing is there under a name, or a number, that was asked for."""


class Gallery:
    """The .mp4 files in ``folder``; beside each, once it has been read, a .verdict.json with what the reader saw.

    Names that come from outside are looked up among those that are there, so no name leads out of the folder.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        self._reading = threading.Lock()

    def names(self) -> list[str]:
        """Of all videos, the newest first. Links, hidden files and names that cannot be shown are none of ours."""
        with os.scandir(self.folder) as found:
            files = [
                (one.stat(follow_symlinks=False).st_mtime_ns, one.name)
                for one in found
                if one.name.lower().endswith(".mp4")
                and not one.name.startswith(".")
                and one.name.isprintable()
                and one.is_file(follow_symlinks=False)
            ]
        return [name for _, name in sorted(files, reverse=True)][:SHOWN]

    def path(self, name: str) -> pathlib.Path:
        """Where a video lies. Raises `Missing`."""
        if name not in self.names():
            raise Missing(name)
        return self.folder / name

    def new_path(self, text: str, seed: int) -> pathlib.Path:
        """A name that is still free, with the time, the beginning of ``text`` and the seed in it."""
        words = re.sub(r"[^a-z0-9]+", "-", text.lower())[:40].strip("-") or "video"
        stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{words}-seed{seed}"
        path, number = self.folder / f"{stem}.mp4", 1
        while path.exists():
            path, number = self.folder / f"{stem}-{number + 1}.mp4", number + 1
        return path

    def entries(self) -> list[dict[str, Any]]:
        return [self.entry(name) for name in self.names()]

    def entry(self, name: str) -> dict[str, Any]:
        """What the page tells of a video: its file, its recipe where it has one, and the command of that."""
        path = self.path(name)
        stat = path.stat()
        made = datetime.datetime.fromtimestamp(stat.st_mtime, datetime.UTC)
        told = {"name": name, "bytes": stat.st_size, "made": made.isoformat(timespec="seconds")}
        return told | _told(path, stat.st_mtime_ns)

    def verdict(self, name: str) -> dict[str, Any]:
        """What the reader saw in a video and how that fits its story: read once, then kept beside it.

        ``{"why": text}`` where it cannot be judged.
        """
        path = self.path(name)
        kept, length = path.with_suffix(".verdict.json"), path.stat().st_size
        with self._reading:
            found = _kept(kept)
            if found.get("bytes") == length and isinstance(found.get("verdict"), dict):
                return found["verdict"]
            try:
                made = _judged(path)
            except InputError as error:
                return {"why": str(error)}
            with aside(kept) as part:
                text = json.dumps({"bytes": length, "verdict": made}, allow_nan=False)
                part.write_text(text, encoding="utf-8")
            return made

    def poster(self, name: str) -> bytes:
        """A JPEG from a video's middle. Raises `InputError` for what is no video."""
        path = self.path(name)
        return _poster(path, path.stat().st_mtime_ns)


@functools.lru_cache(2 * SHOWN)
def _told(path: pathlib.Path, _changed: int) -> dict[str, Any]:
    from jaxvid.io.video_file import read_metadata

    try:
        recipe = check_recipe(read_metadata(path), path.name)
    except InputError as error:
        return {"why": str(error)}
    told: dict[str, Any] = {"recipe": shown(recipe)}
    try:
        again = check_line(str(path.with_name(f"{path.stem}-again.mp4")))
        return told | {"command": shlex.join(command(recipe, again))}
    except InputError as error:
        return told | {"why": str(error)}


def shown(recipe) -> dict[str, Any]:
    """The part of a checked recipe that fills the page's form."""
    story = recipe.get("story") or [(0.0, recipe["prompt"])]
    names = ("seconds", "seed", "steps", "guidance", "method", "negative", "version", "fps")
    told = {name: recipe[name] for name in names if name in recipe}
    return told | {"story": [[at, text] for at, text in story], "options": recipe.get("options", {})}


@functools.lru_cache(2 * SHOWN)
def _poster(path: pathlib.Path, _changed: int) -> bytes:
    from jaxvid.data.decode import probe, read_video

    seconds = probe(path).seconds
    return jpeg(read_video(path, start=seconds / 2, frames=1)[0][0])


def jpeg(frame, side: int = 320) -> bytes:
    """A frame, uint8 [H, W, 3], as a JPEG of at most ``side`` pixels a side."""
    from PIL import Image

    image, file = Image.fromarray(frame), io.BytesIO()
    image.thumbnail((side, side))
    image.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def _kept(path: pathlib.Path) -> dict[str, Any]:
    """A verdict that lies beside a video; nothing where it cannot be read."""
    try:
        if path.is_symlink() or path.stat().st_size > LARGEST_VERDICT:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _judged(path: pathlib.Path) -> dict[str, Any]:
    from jaxvid.data.shapes import parse
    from jaxvid.eval.verdict import seen, verdict
    from jaxvid.io.video_file import read_metadata

    recipe = shown(check_recipe(read_metadata(path), path.name))
    story = [(at, text) for at, text in recipe["story"]]
    for _, text in story:
        try:
            parse(text)
        except InputError:
            raise InputError(
                "the reader reads the shapes world only, and the story speaks of another"
            ) from None
    found = verdict(path, story)
    seconds = [
        {"second": one["second"], "seen": seen(one), "right": found["right"].get(one["second"])}
        for one in found["seconds"]
    ]
    rows = found["accuracy"].items()
    return {"seconds": seconds, "accuracy": {name: row for name, row in rows if row["total"]}}
