# SPDX-License-Identifier: Apache-2.0
"""Sentences about scenes, and back: ``parse`` undoes every way in which ``caption`` may say a thing."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np

from jaxvid.data.shapes.world import BACKGROUNDS, MOTIONS, PALETTE, SHAPES, SIZES, Attributes, Look, Scene
from jaxvid.types import InputError

# The first way of saying a motion is its name.
PHRASES = {
    "stays still": ("stays still", "does not move", "rests in place"),
    "slides left and right": ("slides left and right", "glides from side to side", "moves left and right"),
    "slides up and down": ("slides up and down", "glides up and down", "moves up and down"),
    "circles clockwise": ("circles clockwise", "goes around clockwise", "moves clockwise in a circle"),
    "circles counterclockwise": (
        "circles counterclockwise",
        "goes around counterclockwise",
        "moves counterclockwise in a circle",
    ),
    "bounces around": ("bounces around", "bounces off the walls", "keeps bouncing"),
    "pulses": ("pulses", "grows and shrinks", "pulses in place"),
    "spins": ("spins", "rotates in place", "spins around"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
BACKGROUND_WORDS = {"black": ("black",), "white": ("white",), "gray": ("gray", "grey")}
ANY_SHAPE = ("shape", "object", "thing")  # said of an object whose shape is left open
ANY_OBJECT = "something"
FRAMES = (
    "{objects} on a {background} background",
    "on a {background} background, {objects}",
    "{objects}, {background} background",
    "there is {objects} on a {background} background",
)
BARE_FRAMES = ("{objects}", "{objects}", "{objects}", "there is {objects}")
JOINTS = (" and ", " while ", ", ")

_MOTION = {phrase: name for name, phrases in PHRASES.items() for phrase in phrases}
_SIZE = {word: name for name, words in SIZE_WORDS.items() for word in words}
_BACKGROUND = {word: name for name, words in BACKGROUND_WORDS.items() for word in words}
_ANY = "|".join(_BACKGROUND)
_BEHIND = re.compile(
    rf"^(?:on|against|over) an? (?P<a>\w+) background[,:]? |^(?P<b>\w+) background[,:] "
    rf"|,? (?:on|against|over) an? (?P<c>\w+) background$|, (?P<d>{_ANY}) background$"
)
_JOINT = re.compile(r"(?:,? and|,? while|,)\s+(?=(?:an?|the|one) |something\b)")


def caption(scene: Scene | Attributes, second: float = 0.0, variant: Any = 0, *, motion: bool = True) -> str:
    """One sentence about what is true of a scene at a second.

    scene: a scene, or attributes (whose None are left unsaid). variant: 0 is the plain way; other ints, or a
    numpy Generator, choose among the paraphrases. motion: False leaves the motions unsaid, as for an image.
    """
    said = scene.at(second) if isinstance(scene, Scene) else scene
    rng = None
    if variant is not None and not (isinstance(variant, (int, np.integer)) and variant == 0):
        rng = variant if isinstance(variant, np.random.Generator) else np.random.default_rng(variant)

    def pick(options):
        return options[0] if rng is None else options[int(rng.integers(len(options)))]

    frame = pick(BARE_FRAMES if said.background is None else FRAMES)
    that = "that " if frame.startswith("there is") else ""
    clauses = [_clause(look, pick, that, motion) for look in said.objects]
    joint = pick(JOINTS) if motion and not that and all(look.motion for look in said.objects) else " and "
    background = said.background and pick(BACKGROUND_WORDS[said.background])
    return frame.format(objects=joint.join(clauses), background=background)


def captions(
    scene: Scene, frames: int, fps: float, variant: Any = 0, *, unsaid: float = 0.0
) -> tuple[tuple[int, str], ...]:
    """A caption per span: ``((frame, text), ...)``, a frame for each border of the scene inside the clip.

    A clip of one frame is an image and no motion is said. variant: as for ``caption``; an int is a seed.
    unsaid: probability with which a size or the background is left out of a sentence.
    """
    if unsaid or isinstance(variant, (int, np.integer)) and variant != 0:
        variant = np.random.default_rng(variant)
    out = {}
    for second in scene.borders():
        frame = int(np.ceil(second * fps - 1e-6))
        if frame < frames:
            said = scene.at(max(second, frame / fps))
            if unsaid:
                said = _leave_out(said, variant, unsaid)
            out[frame] = caption(said, variant=variant, motion=frames > 1)
    return tuple(sorted(out.items()))


def parse(text: str) -> Attributes:
    """What a caption says: the inverse of ``caption`` in all its variants; None where it says nothing.

    Raises InputError, naming the words that were not understood.
    """
    rest = " ".join(str(text).lower().split()).rstrip(".!").strip()
    background = None
    found = _BEHIND.search(rest)
    if found:
        word = next(group for group in found.groups() if group is not None)
        if word not in _BACKGROUND:
            raise InputError(f"background {word[:40]!r} is unknown; wanted one of {', '.join(BACKGROUNDS)}")
        background = _BACKGROUND[word]
        rest = (rest[: found.start()] + rest[found.end() :]).strip()
    rest = re.sub(r"^there (?:is|are) ", "", rest)
    if not rest:
        raise InputError(f"caption {str(text)[:80]!r} names no object; say for example 'a red star spins'")
    looks = tuple(_look(clause, text) for clause in _JOINT.split(rest))
    if len(looks) > 2:
        raise InputError(f"caption {str(text)[:80]!r} names {len(looks)} objects; wanted one or two")
    return Attributes(background, looks)


def _clause(look: Look, pick, that: str, motion: bool) -> str:
    noun = look.shape or pick(ANY_SHAPE)
    size = pick(SIZE_WORDS[look.size]) if look.size else None
    words = " ".join(word for word in (size, look.colour, noun) if word)
    article = "an" if words[0] in "aeiou" else "a"
    phrase = pick(PHRASES[look.motion]) if motion and look.motion else None
    return f"{article} {words}" + (f" {that}{phrase}" if phrase else "")


def _look(clause: str, text: str) -> Look:
    """The look that one clause such as 'a large red star spins' speaks of."""
    words = clause.split()
    size = colour = shape = None
    if words and words[0] in ("a", "an", "the", "one"):
        words.pop(0)
    noun = False
    while words and not noun:
        word = words.pop(0)
        if word in _SIZE and size is None:
            size = _SIZE[word]
        elif word in PALETTE and colour is None:
            colour = word
        elif word in SHAPES:
            shape, noun = word, True
        elif word in ANY_SHAPE or word == ANY_OBJECT:
            noun = True
        else:
            raise InputError(
                f"{word[:40]!r} in {str(text)[:80]!r} is not understood; say for example 'a large red star'"
            )
    if not noun:
        raise InputError(f"{clause[:80]!r} names no shape; wanted one of {', '.join(SHAPES)}")
    if words and words[0] == "that":
        words.pop(0)
    phrase = " ".join(words)
    if phrase and phrase not in _MOTION:
        raise InputError(f"motion {phrase[:80]!r} is not understood; wanted one of {', '.join(MOTIONS)}")
    return Look(shape, colour, size, _MOTION.get(phrase))


def _leave_out(said: Attributes, rng: np.random.Generator, unsaid: float) -> Attributes:
    """The same attributes with some sizes, or the background, kept back."""
    looks = tuple(
        Look(look.shape, look.colour, None if rng.random() < unsaid else look.size, look.motion)
        for look in said.objects
    )
    return Attributes(None if rng.random() < unsaid else said.background, looks)


def every_look():
    """All looks of the world (spinning circles and rings apart), for tests and for balanced evaluation."""
    for shape, colour, size, motion in itertools.product(SHAPES, PALETTE, SIZES, MOTIONS):
        if not (motion == "spins" and shape in ("circle", "ring")):
            yield Look(shape, colour, size, motion)
