# SPDX-License-Identifier: Apache-2.0
"""What the page asks for, checked: from JSON to a run that is ready to be made."""

from __future__ import annotations

from typing import Any

from jaxvid.recipe import check_line
from jaxvid.request import choice, number, short, whole
from jaxvid.run import Run
from jaxvid.sampling.methods.table import METHODS
from jaxvid.types import InputError, did_you_mean

FIELDS = ("story", "seconds", "method", "seed", "steps", "guidance", "negative", "options")
MOST_SEGMENTS = 200


def prepare(pipe, body) -> Run:
    """The run that a page's JSON asks of a pipeline. Raises `InputError` with the words that the page shows.

    body: ``{"story": [[seconds, text], ...], "seconds": s, "method": name, "seed": n, "steps": n, "guidance": g,
    "negative": text, "options": {name: value}}``, of which only the story is needed.
    """
    if not isinstance(body, dict):
        raise InputError(f"what was asked is {type(body).__name__} and not an object with a story")
    if unknown := sorted(set(body) - set(FIELDS)):
        hint = did_you_mean(unknown[0], FIELDS) or f"; it may have {', '.join(FIELDS)}"
        raise InputError(f"{short(unknown[0])} cannot be asked for{hint}")
    said = {name: value for name, value in body.items() if value is not None}
    if "seed" in said:
        said["seed"] = whole(said["seed"], "seed", 0, 2**32 - 1)
    if "seconds" in said:
        said["seconds"] = number(said["seconds"], "seconds", above=0)
    options = said.pop("options", {})
    method = choice(said.get("method", pipe.defaults.get("method", "oneshot")), "method", METHODS)
    if not isinstance(options, dict) or set(options) - set(METHODS[method].options):
        listed = ", ".join(METHODS[method].options) or "none"
        raise InputError(f"options={short(options)} are not those of method {method!r}: {listed}")
    return pipe.prepare(story=_story(said.pop("story", None)), **said, **options)


def _story(value) -> list[tuple[Any, str]]:
    """Pairs of a time and a line of text; `jaxvid.story` checks what they say."""
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_SEGMENTS:
        raise InputError(f"story={short(value)} is not a list of 1 to {MOST_SEGMENTS} pairs [seconds, text]")
    story = []
    for place, entry in enumerate(value, 1):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
            raise InputError(f"story entry {place} is {short(entry)}; wanted [seconds, text]")
        try:  # so that its recipe can be printed
            story.append((entry[0], check_line(" ".join(entry[1].split()))))
        except InputError as error:
            raise InputError(f"the text of story entry {place} cannot be used: {error}") from None
    return story
