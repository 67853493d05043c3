# SPDX-License-Identifier: Apache-2.0
"""Prints the command that made a video; running it makes the same frames again."""

from __future__ import annotations

import hashlib
import pathlib
import shlex
from collections.abc import Iterator

import jaxvid
from jaxvid.cli.progress import Progress
from jaxvid.recipe import FILES, check_line, check_recipe, command
from jaxvid.types import InputError


def arguments(parser):
    add = parser.add_argument
    add("file", metavar="FILE.mp4", help="a video that jaxvid wrote (.mp4, .gif or .webp)")
    add("--out", metavar="FILE", help="what the command is to write (default: FILE-again beside it)")
    add("--checkpoint", metavar="DIR", help="where the checkpoint lies now")


def run(options) -> None:
    """One quoted command on standard output; on standard error, why it may not make the same frames here."""
    from jaxvid.io.video_file import read_metadata

    path = pathlib.Path(options.file)
    recipe = check_recipe(read_metadata(path), str(path))
    out = options.out or str(path.with_name(f"{path.stem}-again{path.suffix}"))
    for name, value in (("--out", out), ("--checkpoint", options.checkpoint or "")):
        try:
            check_line(value)
        except InputError as error:
            raise InputError(f"{name}: {error}; name it otherwise") from None
    words = command(recipe, out, options.checkpoint)
    note = Progress().note
    for said in doubts(recipe, options.checkpoint):
        note(f"warning: {said}")
    print(shlex.join(words))


def doubts(recipe, checkpoint: str | None = None) -> Iterator[str]:
    """Why the command of a checked recipe may make other frames here than it did there; nothing where it should not."""
    import jax

    if recipe["version"] != jaxvid.__version__:
        yield f"it was made by jaxvid {recipe['version']}, and this is {jaxvid.__version__}"
    there, here = recipe.get("made_on"), {"jax": jax.__version__, "device": jax.devices()[0].platform}
    if there is not None and there != here:
        was, now = (f"jax {one['jax']} on {one['device']}" for one in (there, here))
        yield f"it was made with {was}, and this is {now}; sums may be rounded otherwise"
    if recipe.get("beside"):
        yield f"it was made beside {recipe['beside']} more at once; alone, sums may be rounded otherwise"
    yield from _of_checkpoint(recipe.get("checkpoint"), checkpoint)
    given = recipe.get("given", {})
    for file in [given[name] for name in FILES if name in given] + [f for _, f in given.get("images", ())]:
        if not _same(file):
            yield f"{file['path']}, which was given to it, is not here or has changed"


def _of_checkpoint(told, elsewhere: str | None) -> Iterator[str]:
    from jaxvid.pipeline import Pipeline

    if told is None:
        yield "its recipe does not say which checkpoint made it; an older jaxvid wrote it"
        return
    path = elsewhere or told.get("path")
    if path is None:
        yield "its model was in memory only; give the checkpoint with --checkpoint DIR"
        return
    try:
        found = Pipeline.load(path).fingerprint
    except InputError as error:
        yield f"{error}; --checkpoint DIR says where it lies"
        return
    if found != told["fingerprint"]:
        yield f"checkpoint {path} is another one now (fingerprint {found}, the video's {told['fingerprint']})"


def _same(file) -> bool:
    """Whether a given file is what it was. Only a plain file of the same length is read at all."""
    path = pathlib.Path(file["path"])
    try:
        if not path.is_file() or path.stat().st_size != file.get("bytes"):
            return False
        with open(path, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file["sha256"]
    except (OSError, ValueError):
        return False
