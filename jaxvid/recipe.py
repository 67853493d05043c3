# SPDX-License-Identifier: Apache-2.0
"""Recipes: what made a video, as plain data in its file, and back from there to a command line.

A recipe that is read from a file is a stranger's text. It is checked field by field, nothing in it is executed, and what a
terminal would obey (control characters, marks that turn the direction of text) is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvid.config import to_json
from jaxvid.io.weights import flatten
from jaxvid.types import InputError

FILES = ("image", "last_image", "video", "mask")  # what may be given once; `images` come with their times
SAMPLED = 1 << 16  # values of an array that go into a fingerprint
LONGEST_TEXT = 100_000  # characters of one argument; a shell takes 128 KiB
JOINERS = "\u200c\u200d"  # invisible, but some scripts and emoji are wrong without them
GIVEN_IN_MEMORY = "something that lay in memory was given to it, an image or a video, and no file has that"


# What goes into a file


def fingerprint(spec: Mapping[str, Any], params, variables) -> str:
    """16 hexadecimal digits that change with what a checkpoint computes, whatever file it came from.

    Of every array go in its name, shape and at most `SAMPLED` values at equal distances, so that weights larger than
    memory are told apart in a moment: it finds a model that was trained on or exchanged, not a single altered number.
    """
    said = {name: spec[name] for name in ("model", "vae", "process", "serves", "defaults", "text_length")}
    hashed = hashlib.sha256(to_json(said).encode())
    for tree in (params, variables):
        for name, leaf in sorted(flatten(tree).items()):
            flat = np.asarray(leaf).reshape(-1)  # of an array on disk, only the sampled values are read
            values = np.asarray(flat[:: -(-flat.size // SAMPLED) or 1], np.float32)
            hashed.update(f"{name} {list(leaf.shape)} ".encode() + values.astype("<f4").tobytes())
    return hashed.hexdigest()[:16]


def given_files(images=None, **files) -> dict[str, Any]:
    """What was given to a run, told by path, size and SHA-256; what lay in memory has a path of None."""
    told: dict[str, Any] = {name: _file(value) for name, value in files.items() if value is not None}
    if images is not None:
        told |= {"images": pairs} if (pairs := [[at, _file(value)] for at, value in _pairs(images)]) else {}
    return told


def _pairs(images) -> list[tuple[float, Any]]:
    try:
        return [(float(at), value) for at, value in images]
    except (TypeError, ValueError):
        raise InputError(
            f"images={images!r}: pairs of a second and a picture, such as [(2.5, 'x.png')]"
        ) from None


def _file(value) -> dict[str, Any]:
    if not isinstance(value, (str, os.PathLike)):
        return {"path": None}
    path = pathlib.Path(value)
    if not path.is_file():
        return {"path": path_text(path)}  # reading it will say what is wrong
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": path_text(path), "bytes": path.stat().st_size, "sha256": digest}


def path_text(path: str | os.PathLike) -> str:
    """A path as text that every file can hold, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "replace")


# And out of one


def check_recipe(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of a recipe that a command needs, if they are what they should be; others are dropped.

    found: as `jaxvid.io.video_file.read_metadata` gave it. name: of the file, for the message of the `InputError`.
    """
    if "version" not in found or "seed" not in found or not {"prompt", "story"} & found.keys():
        raise InputError(
            f"{name} has no recipe of jaxvid in it; only a file that jaxvid wrote, and no program wrote again, has one"
        )
    recipe: dict[str, Any] = {}
    for field, check in FIELDS.items():
        if found.get(field) is None:
            continue
        try:
            recipe[field] = check(found[field])
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            why = str(error) if isinstance(error, InputError) else "it is of another kind"
            raise InputError(
                f"the recipe in {name} is damaged or was tampered with, at {field!r}: {why}; it is not used"
            ) from None
    missing = [field for field in NEEDED if field not in recipe]
    if missing:
        raise InputError(f"the recipe in {name} lacks {', '.join(missing)}; an older jaxvid wrote it")
    return recipe


def check_line(value, longest: int = LONGEST_TEXT) -> str:
    """``value`` if it is text that a terminal shows as it is: no control characters, no marks of direction."""
    if not isinstance(value, str):
        raise InputError("text was wanted")
    if len(value) > longest:
        raise InputError(f"it has {len(value)} characters and {longest} are the most")
    for sign in value:
        strange = unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in JOINERS
        if strange or ord(sign) & 0xFFFE == 0xFFFE:
            raise InputError(f"it holds the control character U+{ord(sign):04X}")
    return value


def command(recipe: Mapping[str, Any], out: str, checkpoint: str | None = None) -> list[str]:
    """The words of the command line that makes a checked recipe's video again, as ``out``.

    ``checkpoint`` takes the place of the recipe's own. Raises `InputError` where a command cannot: what was given to
    the run lay in memory.
    """
    words, prompt = ["jaxvid", "generate"], recipe.get("prompt", "")
    if "story" in recipe:
        entries = (f"{{at: {_plain(at)}, prompt: {_quoted(text)}}}" for at, text in recipe["story"])
        words += ["--story", f"[{', '.join(entries)}]"]
    elif not prompt.startswith("-"):
        words.append(prompt)
    given = recipe.get("given", {})
    for name in FILES:
        if name in given:
            words += _option(name, _path(given[name]))
    for at, file in given.get("images", ()):
        words += ["--image-at", _plain(at), _path(file)]
    for name in OPTIONS:
        if name in recipe:
            words += _option(name, _word(recipe[name]))
    if recipe.get("guidance_interval", (0.0, 1.0)) != (0.0, 1.0):
        words += ["--guidance-interval", *map(_plain, recipe["guidance_interval"])]
    height, width = recipe["size"]
    words += ["--size", f"{height}x{width}"]
    for name, value in sorted(recipe.get("options", {}).items()):
        words += ["--set", f"{name}={_word(value)}"]
    checkpoint = checkpoint or recipe.get("checkpoint", {}).get("path")
    if checkpoint is not None:
        words += _option("checkpoint", checkpoint)
    words += _option("out", out)
    return [*words, "--", prompt] if "story" not in recipe and prompt.startswith("-") else words


def _option(name: str, value: str) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _path(file: Mapping[str, Any]) -> str:
    path = file.get("path")
    if path is None:
        raise InputError(f"this video has no command: {GIVEN_IN_MEMORY}")
    return f"./{path}" if path.startswith("-") else path


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # which is YAML as well


def _plain(value: float) -> str:
    """The shortest decimal that gives the same float, without an exponent, which YAML would take for text."""
    return np.format_float_positional(value, trim="-")


def _word(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _plain(value) if isinstance(value, float) else str(value)


# The fields: what each has to be. `InputError` says what is wrong, any other complaint that it is of another kind.


def _number(value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError("a finite number was wanted")
    return float(value)


def _whole(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise InputError("a whole number from 0 on was wanted")
    return value


def _name(value) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,64}", value):
        raise InputError("a name was wanted")
    return value


def _text(value) -> str:
    if not check_line(value).strip():
        raise InputError("it is empty")
    return value


def _story(value) -> list[tuple[float, str]]:
    story = [(_number(at), _text(text)) for at, text in value]
    if not story or sum(len(text) for _, text in story) > LONGEST_TEXT // 2:
        raise InputError("it is empty or longer than a command line")
    return story


def _setting(value):
    if isinstance(value, str):
        return _name(value)
    return value if isinstance(value, (bool, int)) else _number(value)


def _options(value) -> dict[str, Any]:
    return {_name(name): _setting(one) for name, one in value.items()}


def _told_file(value) -> dict[str, Any]:
    told: dict[str, Any] = {"path": None if value["path"] is None else check_line(value["path"], 4096)}
    if "sha256" in value:
        told |= {"sha256": _name(value["sha256"]), "bytes": int(value["bytes"])}
    return told


def _given(value) -> dict[str, Any]:
    told: dict[str, Any] = {name: _told_file(value[name]) for name in FILES if name in value}
    if "images" in value:
        told["images"] = [(_number(at), _told_file(file)) for at, file in value["images"]]
    return told


def _checkpoint(value) -> dict[str, str]:
    told = {"fingerprint": _name(value["fingerprint"])}
    if value.get("path") is not None:
        told["path"] = check_line(value["path"], 4096)
    return told


def _pair(kind):
    def check(value):
        first, second = value
        return kind(first), kind(second)

    return check


# fields that are options of `jaxvid generate` by the same name, in the order of the command
OPTIONS = (
    "seconds",
    "seed",
    "negative",
    "fps",
    "steps",
    "guidance",
    "guidance_kind",
    "solver",
    "cache",
    "strength",
    "fade",
    "method",
    "dtype",
    "mesh",
)
NUMBERS = ("seconds", "fps", "guidance", "cache", "strength", "fade")
NAMES = ("guidance_kind", "solver", "method", "dtype", "version")
NEEDED = ("seconds", "seed", "fps", "size", "steps", "guidance", "solver", "method", "dtype", "version")
FIELDS = {
    "prompt": _text,
    "story": _story,
    "negative": _text,
    "seed": _whole,
    "steps": _whole,
    "beside": _whole,  # videos of the same batch
    "size": _pair(_whole),
    "guidance_interval": _pair(_number),
    "options": _options,
    "given": _given,
    "checkpoint": _checkpoint,
    "mesh": lambda value: check_line(value, 200),
    "made_on": lambda value: {name: _name(value[name]) for name in ("jax", "device")},
    **dict.fromkeys(NUMBERS, _number),
    **dict.fromkeys(NAMES, _name),
}
