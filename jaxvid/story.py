# SPDX-License-Identifier: Apache-2.0
"""Stories: which sentence speaks about which second of a video.

A story is ``((at, text), ...)``: times in seconds from the start of the video, strictly increasing, the first one 0. In a
file it is YAML, a list of ``{at: seconds, prompt: text}``. Networks see it as a table of caption spans and, per latent
frame, the number of the span that speaks about it.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from jaxvid.types import InputError

Story = tuple[tuple[float, str], ...]

LARGEST_FILE = 1 << 20  # bytes of a story file


def check_text(text, limit: int, what: str = "prompt") -> str:
    """``text`` stripped, if it is a string of 1 to ``limit`` UTF-8 bytes. Raises `InputError`."""
    if not isinstance(text, str):
        raise InputError(f"the {what} is of type {type(text).__name__}, but text was wanted")
    text = text.strip()
    if not text:
        hint = (
            "leave it out"
            if what.startswith("negative")
            else "say what the video shows, such as 'a large yellow circle slides up and down'"
        )
        raise InputError(f"the {what} is empty; {hint}")
    if "\x00" in text:
        raise InputError(f"the {what} contains a zero byte; give plain text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputError(f"the {what} is not valid Unicode text") from None
    if size > limit:
        raise InputError(
            f"the {what} has {size} bytes and this model reads at most {limit}; shorten it or tell it as a story"
        )
    return text


def check_story(value, limit: int, seconds: float | None = None) -> Story:
    """A story from pairs ``(at, text)`` or mappings ``{at, prompt}``.

    Args:
      limit: how many bytes of text a span may have.
      seconds: length of the video; no entry may start at or after its end.

    Raises `InputError`: empty, wrong types, not starting at 0, times that do not increase, text that is empty or too long.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InputError(
            f"a story is a list of (seconds, text), not {type(value).__name__}; load_story of jaxvid.story reads a file"
        )
    story = []
    for number, entry in enumerate(value, 1):
        at, text = _entry(entry, number)
        if number == 1 and at != 0:
            raise InputError(f"the story's first entry is at {at:g} s; the first one must be at 0")
        if story and at <= story[-1][0]:
            raise InputError(
                f"story entry {number} is at {at:g} s, not after the one before it ({story[-1][0]:g} s); order them by time"
            )
        if seconds is not None and at >= seconds:
            raise InputError(
                f"story entry {number} is at {at:g} s, but the video ends at {seconds:g} s; ask for more seconds or drop it"
            )
        story.append((at, check_text(text, limit, f"text of story entry {number}")))
    if not story:
        raise InputError("the story is empty; give at least one entry (0, text)")
    return tuple(story)


def _entry(entry, number: int):
    if isinstance(entry, Mapping):
        if set(entry) != {"at", "prompt"}:
            found = ", ".join(sorted(str(k) for k in entry)) or "nothing"
            raise InputError(
                f"story entry {number} has the fields {found}; it needs exactly 'at' and 'prompt'"
            )
        at, text = entry["at"], entry["prompt"]
    elif isinstance(entry, (tuple, list)) and len(entry) == 2:
        at, text = entry
    else:
        raise InputError(
            f"story entry {number} is {str(entry)[:60]!r}; it must be (seconds, text) or {{at: seconds, prompt: text}}"
        )
    if (
        isinstance(at, bool)
        or not isinstance(at, (int, float, np.integer, np.floating))
        or not math.isfinite(at)
    ):
        raise InputError(f"story entry {number} has at={str(at)[:40]!r}; it must be a number of seconds")
    if at < 0:
        raise InputError(f"story entry {number} is at {at:g} s; times start at 0")
    return float(at), text


def load_story(path) -> list:
    """The entries of a YAML story file, unchecked in content (`check_story` does that). Raises `InputError`.

    Text that begins with ``[`` is no path but the list itself.
    """
    import yaml

    if isinstance(path, str) and path.lstrip().startswith("["):
        try:
            return yaml.safe_load(path)
        except (yaml.YAMLError, RecursionError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"the story cannot be read as YAML: {reason}") from None
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST_FILE + 1)  # a pipe or a device does not tell its size
        if len(text) > LARGEST_FILE:
            raise InputError(f"story file {path} is too large; it may have {LARGEST_FILE} bytes")
        entries = yaml.safe_load(text.decode())
    except FileNotFoundError:
        raise InputError(f"story file {path} does not exist; check the path") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"story file {path} cannot be read as YAML: {reason}") from None
    if not isinstance(entries, list):
        raise InputError(f"story file {path} must be a YAML list of {{at: seconds, prompt: text}}")
    return entries


def text_at(story: Story, seconds: float) -> str:
    """The sentence that speaks about time ``seconds``."""
    return [text for at, text in story if at <= seconds][-1]
