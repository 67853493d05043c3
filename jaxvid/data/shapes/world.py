# SPDX-License-Identifier: Apache-2.0
"""The words of the shapes world: what may be seen, and what a scene is.

The world is a square of 64 units, x to the right and y down. On other frame sizes a unit is the shorter side
/ 64 and the square sits in the middle. Every movement is a closed formula of the second, so a scene has no end.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxvid.types import InputError

WORLD = 64.0
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
COLOURS = {
    "red": (230, 40, 40),
    "green": (50, 180, 75),
    "blue": (50, 90, 230),
    "yellow": (245, 225, 50),
    "magenta": (240, 70, 200),
    "cyan": (70, 220, 230),
    "orange": (245, 140, 30),
    "purple": (130, 50, 180),
}
BACKGROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128)}
SIZES = {"small": 6.0, "large": 11.0}  # radius of the circle around the shape, in units
MOTIONS = (
    "stays still",
    "slides left and right",
    "slides up and down",
    "circles clockwise",
    "circles counterclockwise",
    "bounces around",
    "pulses",
    "spins",
)
ROUND = ("circle", "ring")  # whose spinning nobody could see
PALETTE = tuple(COLOURS)

Said = Any  # a word of this world, or None where nothing is said


@dataclasses.dataclass(frozen=True)
class Look:
    """What can be said of one object; None where nothing is said (or nothing could be read)."""

    shape: Said = None
    colour: Said = None
    size: Said = None
    motion: Said = None


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What can be said of a scene at one moment: its background and its objects, in order of naming."""

    background: Said
    objects: tuple[Look, ...]


@dataclasses.dataclass(frozen=True)
class Path:
    """How an object moves: a wave per axis, a radius that may pulse, an angle that may turn.

    position = centre + amplitude * wave(2 pi (second - start) / period + phase), wave a sine or a triangle, in
    units. ``glide`` is what is left of an earlier place (dx, dy, log radius ratio) at ``glide_start``; it fades out
    within ``motion.GLIDE`` seconds, so that no change is ever a jump.
    """

    lane: tuple[float, float, float, float]  # x0 y0 x1 y1: the object never leaves it
    start: float
    centre: tuple[float, float]
    radius: float
    amplitude: tuple[float, float] = (0.0, 0.0)
    period: tuple[float, float] = (3.0, 3.0)
    phase: tuple[float, float] = (0.0, 0.0)
    triangle: bool = False
    pulse: float = 0.0  # relative to the radius
    angle: float = 0.0
    turn: float = 0.0  # radians per second, positive is clockwise on the screen
    glide: tuple[float, float, float] = (0.0, 0.0, 0.0)
    glide_start: float = 0.0


@dataclasses.dataclass(frozen=True)
class Part:
    """An object from second ``start`` on, until its next part or its end."""

    start: float
    look: Look
    path: Path


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene: its parts in order, and the second at which it leaves."""

    parts: tuple[Part, ...]
    end: float = math.inf

    def at(self, second: float) -> Part | None:
        """The part that is on the screen at ``second``; None before it appears and after it left."""
        if second >= self.end:
            return None
        found = [part for part in self.parts if part.start <= second + 1e-9]
        return found[-1] if found else None


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and at most two objects at a time, each with its whole life."""

    background: str
    things: tuple[Thing, ...]

    def at(self, second: float) -> Attributes:
        """What is true of the scene at ``second``."""
        parts = [thing.at(second + 1e-9) for thing in self.things]
        return Attributes(self.background, tuple(part.look for part in parts if part is not None))

    def borders(self) -> tuple[float, ...]:
        """The seconds at which something changes, in order, 0 first: a caption span begins at each."""
        seconds = {0.0} | {part.start for thing in self.things for part in thing.parts}
        seconds |= {thing.end for thing in self.things if math.isfinite(thing.end)}
        return tuple(sorted(seconds))


def held_out(colour: str, shape: str) -> bool:
    """True for the pairs of colour and shape that no training scene ever shows."""
    return (PALETTE.index(colour) + 2 * SHAPES.index(shape)) % 8 == 0


def check_look(look: Look) -> None:
    """InputError unless ``look`` is complete and can be drawn."""
    for name, value, known in (
        ("shape", look.shape, SHAPES),
        ("colour", look.colour, PALETTE),
        ("size", look.size, tuple(SIZES)),
        ("motion", look.motion, MOTIONS),
    ):
        if value not in known:
            raise InputError(f"{name} {value!r} is not of the shapes world; wanted one of {', '.join(known)}")
    if look.motion == "spins" and look.shape in ROUND:
        raise InputError(f"a {look.shape} that spins cannot be seen to spin; choose another shape or motion")
