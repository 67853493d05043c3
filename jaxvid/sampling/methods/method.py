# SPDX-License-Identifier: Apache-2.0
"""What a way of generating is: values for the one loop, and what it asks of a model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxvid.diffusion.guidance import Scheme
from jaxvid.sampling.stream import Segment
from jaxvid.sampling.windows import WindowPlan
from jaxvid.types import InputError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a method is made for: latent frames wanted, solver steps, and the model's own window with its overlap.

    causal: whether the model remembers, and so needs no overlap.
    """

    frames: int
    steps: int
    window: int
    overlap: int = 0
    causal: bool = False


@dataclasses.dataclass(frozen=True)
class Method:
    """Values of the primitives; those left at their defaults are ordinary sampling.

    Attributes:
      segments: rows of level plans, window after window; the last may reach beyond the frames wanted
      window: latent frames in a window, the same in all segments
      numbers: int [F], whose noise each frame starts from; None: its own
      windows: windows inside a window, over which the network's predictions are blended
      cuts: whether the blend is one-hot and drawn anew for every row
      edit: what stands in the place of temporal attention (`jaxvid.sampling.edits`), in the first `edited` rows of
        each segment (None: all)
      scheme: levels at which given frames are shown, with weights (`guidance.history`); (): clean
      tail: whether a frame that enters takes the low frequencies of the one before it
      injects: (first, second) shares of the steps: before the first and from the second on, the early layers of the
        network are told the last caption of a story on all frames; None: never
      remembers: whether a causal model's memory goes from segment to segment
    """

    segments: tuple[Segment, ...]
    window: int
    numbers: Any = None
    windows: WindowPlan | None = None
    cuts: bool = False
    edit: Callable[..., Any] | None = None
    edited: int | None = None
    scheme: Scheme = ()
    tail: bool = False
    injects: tuple[float, float] | None = None
    remembers: bool = False

    @property
    def frames(self) -> int:
        """How many latent frames there are places for, wanted or not."""
        return self.segments[-1].start + self.window

    @property
    def calls(self) -> int:
        """Network calls on a window, without counting guidance."""
        rows = sum(segment.plan.rows for segment in self.segments)
        inner = 1 if self.windows is None else len(self.windows.start)
        return rows * inner * max(len(self.scheme), 1)

    def noise_numbers(self) -> np.ndarray:
        """int32 [frames]: whose noise each place starts from."""
        own = np.arange(self.frames, dtype=np.int32)
        if self.numbers is None:
            return own
        given = np.asarray(self.numbers, np.int32)[: self.frames]
        return np.concatenate([given, own[len(given) :]])


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the table of methods.

    make      `(setting, **options) -> Method`
    needs     traits that the model must have
    memory    'constant' or 'grows' with the length of the video
    calls     network calls for each latent frame, in words
    nearest   methods to use instead where the model lacks something, the nearest first
    reference the paper
    solver    the one solver that it works with, or None
    """

    make: Callable[..., Method]
    needs: tuple[str, ...]
    memory: str
    calls: str
    nearest: tuple[str, ...]
    reference: str
    solver: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options with their defaults."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def summary(self) -> str:
        """The first sentence of what it does."""
        return (inspect.getdoc(self.make) or "").split(".")[0].replace("\n", " ")


def check_options(name: str, entry: Entry, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options by their names, numbers as the defaults' types. Raises `InputError` for unknown or ill-typed ones."""
    known, checked = entry.options, {}
    for key, value in options.items():
        if key not in known:
            near = did_you_mean(key, known) or f"; its options: {', '.join(known) or 'none'}"
            raise InputError(f"method {name!r} has no option {key!r}{near}")
        checked[key] = _like(known[key], value, f"{name} {key}")
    return checked


def _like(default: Any, value: Any, what: str) -> Any:
    asked = value
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = (
                {"true": True, "false": False, "none": None}.get(value.lower())
                if not _digit(value)
                else float(value)
            )
        except ValueError:
            value = None
    kind = bool if isinstance(default, bool) else str if isinstance(default, str) else float
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if kind is float and number and np.isfinite(value):
        if default == -1 and value < -1:
            raise InputError(f"{what}={asked!r} is negative; give 0 or more, or -1 for the checkpoint's")
        if isinstance(default, float):
            return float(value)
        if float(value) == int(value):
            return int(value)
    word = {bool: "true or false", str: "a word"}.get(
        kind, "a number" if isinstance(default, float) else "a whole number"
    )
    raise InputError(f"{what}={asked!r} cannot be used; give {word}")


def _digit(text: str) -> bool:
    return any(c.isdigit() for c in text)
