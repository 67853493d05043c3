# SPDX-License-Identifier: Apache-2.0
"""What a user asks of a pipeline, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from jaxvid.sampling.methods.table import METHODS, check_method
from jaxvid.story import Story, check_story, check_text
from jaxvid.types import InputError, did_you_mean

MOST_STEPS = 1000
MOST_VIDEOS = 64
LONGEST = 3600.0  # seconds, where a checkpoint does not say
GUIDES = ("cfg", "apg", "zero")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Request:
    """One run: a batch of videos of one length and size.

    stories   per video, what is said from when on (seconds)
    seeds     per video, 0 .. 2**32 - 1
    frames    how many frames the result has, exactly
    single    whether one prompt was given, not a list: then the answer is one clip, not a list
    options   the method's own, by name
    interval  levels t at which there is guidance, above the first and up to the second; guide is its kind
    cache     how much change goes without a call of the network, or None; strength: the level a given video begins at
    fade      seconds that a change from one caption to the next takes
    """

    stories: tuple[Story, ...]
    seeds: tuple[int, ...]
    frames: int
    fps: float
    height: int
    width: int
    steps: int
    guidance: float
    negative: str | None
    solver: str
    shift: float
    method: str
    dtype: str
    single: bool
    options: tuple[tuple[str, Any], ...] = ()
    interval: tuple[float, float] = (0.0, 1.0)
    guide: str = "cfg"
    cache: float | None = None
    strength: float = 1.0
    fade: float = 0.0

    @property
    def batch(self) -> int:
        return len(self.seeds)

    def recipe(self, number: int) -> dict[str, Any]:
        """Everything that is needed to make video ``number`` again, as plain data."""
        import jaxvid

        story = self.stories[number]
        said = {"prompt": story[0][1]} if len(story) == 1 else {"story": [[at, text] for at, text in story]}
        if self.negative is not None:
            said["negative"] = self.negative
        size = {"frames": self.frames, "fps": self.fps, "size": [self.height, self.width]}
        how = {"steps": self.steps, "guidance": self.guidance, "solver": self.solver, "shift": self.shift}
        how["guidance_interval"], how["guidance_kind"] = list(self.interval), self.guide
        extras = {"cache": self.cache, "strength": self.strength if self.strength != 1 else None}
        extras["fade"] = self.fade or None
        how |= {name: value for name, value in extras.items() if value is not None}
        return {
            **said,
            "seed": self.seeds[number],
            "seconds": self.frames / self.fps,
            **size,
            **how,
            "method": self.method,
            "options": dict(self.options),
            "dtype": self.dtype,
            "version": jaxvid.__version__,
        }


def make_request(
    prompt,
    *,
    story,
    seconds,
    fps,
    size,
    seed,
    num,
    steps,
    guidance,
    negative,
    solver,
    method,
    dtype,
    serves: Mapping[str, Any],
    defaults: Mapping[str, Any],
    text_length: int,
    solvers: Iterable[str],
    traits: Collection[str],
    options: Mapping[str, Any],
    guidance_interval,
    guidance_kind,
    cache,
    strength,
    fade,
) -> Request:
    """Checks a user's arguments against what a checkpoint ``serves`` and fills in its ``defaults``. Raises `InputError`.

    ``options`` are the method's own, ``traits`` what the model can do for methods.
    """
    fps = _served_fps(fps, serves)
    height, width = _served_size(size, serves)
    seconds = number(defaults.get("seconds", 4.0) if seconds is None else seconds, "seconds", above=0)
    longest = float(serves.get("seconds", LONGEST))
    if seconds > longest:
        raise InputError(
            f"seconds={seconds:g} is more than the {longest:g} that this checkpoint serves; ask for less"
        )
    frames = round(seconds * fps)
    if frames < 1:
        raise InputError(
            f"seconds={seconds:g} at {fps:g} frames per second is less than one frame; ask for {1 / fps:g} or more"
        )

    stories, single = _stories(prompt, story, frames / fps, text_length)
    num = whole(num, "num", 1, MOST_VIDEOS)
    if num > 1:
        stories, single = tuple(s for s in stories for _ in range(num)), False
    if len(stories) > MOST_VIDEOS:
        raise InputError(
            f"{len(stories)} videos at once are more than {MOST_VIDEOS}; ask for fewer at a time"
        )
    if method is None:
        method = defaults.get("method", "oneshot")
    negative = defaults.get("negative") if negative is None else negative
    options = check_method(choice(method, "method", METHODS), options, traits)
    solver = _solver(solver, METHODS[method].solver, method, defaults, solvers)
    if cache is not None:
        cache = number(cache, "cache", least=0)
        if solver == "heun":
            raise InputError(
                "solver 'heun' asks twice in a row and cannot be cached; use another solver or no cache"
            )
    return Request(
        stories=stories,
        seeds=_seeds(seed, len(stories)),
        frames=frames,
        fps=fps,
        height=height,
        width=width,
        steps=whole(defaults.get("steps", 20) if steps is None else steps, "steps", 1, MOST_STEPS),
        guidance=number(defaults.get("guidance", 1.0) if guidance is None else guidance, "guidance", least=0),
        negative=None if negative is None else check_text(negative, text_length, "negative prompt"),
        solver=solver,
        shift=number(defaults.get("shift", 1.0), "shift", above=0),
        method=method,
        dtype=choice(defaults.get("dtype", "float32") if dtype is None else dtype, "dtype", DTYPES),
        single=single,
        options=tuple(sorted(options.items())),
        interval=_interval(guidance_interval),
        guide=choice("cfg" if guidance_kind is None else guidance_kind, "guidance_kind", GUIDES),
        cache=cache,
        strength=1.0 if strength is None else _strength(strength),
        fade=0.0 if fade is None else _fade(fade, stories),
    )


def _solver(asked, only: str | None, method: str, defaults: Mapping[str, Any], among: Iterable[str]) -> str:
    """The solver that was asked for, the one that a method works with, or the checkpoint's."""
    if asked is not None and only not in (None, asked):
        raise InputError(
            f"solver={short(asked)} and method {method!r}, which works with {only!r} only; leave the solver out"
        )
    return choice(only or asked or defaults.get("solver", "euler"), "solver", among)


def _interval(value) -> tuple[float, float]:
    if value is None:
        return 0.0, 1.0
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise InputError(
            f"guidance_interval={short(value)} is not two noise levels; give (low, high), as (0.2, 0.9)"
        )
    low, high = (number(one, "guidance_interval", least=0) for one in value)
    if not low < high <= 1:
        raise InputError(f"guidance_interval={low:g}, {high:g}: wanted 0 <= low < high <= 1")
    return low, high


def _fade(value, stories: Iterable[Story]) -> float:
    value = number(value, "fade", least=0)
    for story in stories:
        for (before, _), (at, _) in itertools.pairwise(story):
            if value > at - before:
                raise InputError(
                    f"fade={value:g} is longer than the {at - before:g} s between two captions; use a shorter one"
                )
    return value


def _strength(value) -> float:
    value = number(value, "strength", above=0)
    if value > 1:
        raise InputError(
            f"strength={value:g} is more than 1, which makes all of a video anew; give 1 or less"
        )
    return value


def number(value, name: str, *, above: float | None = None, least: float | None = None) -> float:
    """A finite float, above or at least a bound. Raises `InputError`."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise InputError(f"{name}={short(value)} is of type {type(value).__name__}; give a number")
    value = float(value)
    bound = (
        f" greater than {above:g}"
        if above is not None
        else f" of at least {least:g}"
        if least is not None
        else ""
    )
    if (
        not math.isfinite(value)
        or (above is not None and value <= above)
        or (least is not None and value < least)
    ):
        raise InputError(f"{name}={value:g} cannot be used; give a finite number{bound}")
    return value


def whole(value, name: str, least: int, most: int) -> int:
    """An integer in ``least .. most``. Raises `InputError`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise InputError(
            f"{name}={short(value)} is of type {type(value).__name__}; give a whole number"
        ) from None
    if not least <= value <= most:
        raise InputError(
            f"{name}={short(value)} is not in {least}..{most}; give a whole number in that range"
        )
    return value


def choice(value, name: str, among: Iterable[str]) -> str:
    """One of some names. Raises `InputError` with the list."""
    among = tuple(among)
    if value not in among:
        near = did_you_mean(str(value), among) or f"; choose one of {', '.join(among)}"
        raise InputError(f"{name}={short(value)} is unknown{near}")
    return value


def short(value) -> str:
    """A value as an error can show it, in at most 50 characters."""
    text = repr(value)
    return text if len(text) <= 50 else text[:47] + "..."


def _served_fps(fps, serves) -> float:
    rates = [float(rate) for rate in serves["fps"]]
    if fps is None:
        return rates[0]
    fps = number(fps, "fps", above=0)
    if fps not in rates:
        raise InputError(
            f"fps={fps:g} is not served by this checkpoint; choose one of {', '.join(f'{r:g}' for r in rates)}"
        )
    return fps


def _served_size(size, serves) -> tuple[int, int]:
    sizes = [tuple(int(side) for side in served) for served in serves["sizes"]]
    if size is None:
        return sizes[0]
    if isinstance(size, (list, tuple)):
        if len(size) != 2:
            raise InputError(
                f"size={short(size)} is not a size; give (height, width), or one number for both"
            )
        size = tuple(whole(side, "size", 1, 1 << 16) for side in size)
    else:
        size = (whole(size, "size", 1, 1 << 16),) * 2
    if size not in sizes:
        listed = ", ".join(f"{height}x{width}" for height, width in sizes)
        raise InputError(
            f"size={size[0]}x{size[1]} (height x width) is not served by this checkpoint; choose one of {listed}"
        )
    return size


def _stories(prompt, story, seconds, limit) -> tuple[tuple[Story, ...], bool]:
    """One story per video. A prompt beside a story speaks until the story begins."""
    if story is not None:
        if prompt is not None and not isinstance(prompt, str):
            raise InputError(
                "a list of prompts and a story cannot be combined; give one prompt or none beside a story"
            )
        entries = (
            list(story)
            if isinstance(story, Iterable) and not isinstance(story, (str, bytes, Mapping))
            else story
        )
        if prompt is not None and isinstance(entries, list) and entries and _starts(entries[0]):
            entries = [(0, prompt), *entries]
        return (check_story(entries, limit, seconds),), True
    if prompt is None:
        raise InputError("nothing was asked for; give a prompt or a story")
    if isinstance(prompt, (list, tuple)):
        if not prompt:
            raise InputError("the list of prompts is empty; give at least one")
        return tuple(((0.0, check_text(text, limit)),) for text in prompt), False
    return (((0.0, check_text(prompt, limit)),),), True


def _starts(entry) -> bool:
    """Whether a story's first entry leaves room for a prompt before it."""
    at = (
        entry.get("at")
        if isinstance(entry, Mapping)
        else entry[0]
        if isinstance(entry, (tuple, list)) and entry
        else None
    )
    return isinstance(at, (int, float, np.number)) and at > 0


def _seeds(seed, count: int) -> tuple[int, ...]:
    """A seed per video: the given ones, or ``seed, seed + 1, ...`` from a single one."""
    most = 2**32 - 1
    if isinstance(seed, (list, tuple, np.ndarray)):
        seeds = tuple(whole(one, "seed", 0, most) for one in seed)
        if len(seeds) != count:
            raise InputError(
                f"{len(seeds)} seeds were given for {count} videos; give one number or one per video"
            )
        return seeds
    first = whole(seed, "seed", 0, most)
    return tuple((first + i) & most for i in range(count))
