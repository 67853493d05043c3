# SPDX-License-Identifier: Apache-2.0
"""Scenes: drawn at random for training, or told as a story whose truth is then known.

Guaranteed of every scene: its two objects differ in colour or shape at every moment; each has a lane of its
own (half of the square, cut across the way that suits their motions), which it never leaves, so that nothing is
ever hidden by anything; what changes carries on from where it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxvid.data.shapes.motion import begin, resize
from jaxvid.data.shapes.world import (
    BACKGROUNDS,
    MOTIONS,
    PALETTE,
    ROUND,
    SHAPES,
    SIZES,
    WORLD,
    Attributes,
    Look,
    Part,
    Scene,
    Thing,
    check_look,
    held_out,
)
from jaxvid.types import InputError

SPLITS = ("train", "heldout", "all")
MARGIN = 1.0  # units between a lane and the border of the square, or another lane's margin
EDGE = 1.5  # seconds of a clip without a change at both of its ends
APART = 3.0  # seconds between two changes, so that a motion can be seen before it ends

Slots = tuple[Any, ...]  # for each lane a Look, or None while it is empty


def sample_scene(
    rng, split: str = "train", *, seconds: float = 0.0, two: float = 0.4, events: float = 0.4
) -> Scene:
    """A random scene.

    rng: numpy Generator, int seed, or JAX key.
    split: ``train`` never shows a held-out pair of colour and shape; ``heldout`` begins with one; ``all`` may.
    seconds: the length in which changes may fall. two: probability of two objects at the start.
    events: probability that the scene changes at all; if so there is a change about every six seconds.
    Raises InputError for an unknown split or a probability outside [0, 1].
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; wanted one of {', '.join(SPLITS)}")
    if not (0 <= two <= 1 and 0 <= events <= 1):
        raise InputError(f"two={two} events={events} are not probabilities; wanted numbers in [0, 1]")
    rng = generator(rng)
    background = _pick(rng, tuple(BACKGROUNDS))
    first = _new_look(rng, split, ())
    if split == "heldout":
        pairs = [(c, s) for c in PALETTE for s in SHAPES if held_out(c, s)]
        colour, shape = pairs[int(rng.integers(len(pairs)))]
        first = dataclasses.replace(first, colour=colour, shape=shape, motion=_pick(rng, _motions(shape)))
    slots: Slots = (first, _new_look(rng, split, (first,)) if rng.random() < two else None)
    if slots[1] is not None and rng.random() < 0.5:
        slots = slots[::-1]
    spans = [(0.0, slots)]
    for second in _event_seconds(rng, seconds) if rng.random() < events else ():
        slots = _change(rng, slots, split)
        spans.append((second, slots))
    return build_scene(background, spans, rng)


def story_scene(story: Sequence[tuple[float, Attributes]], rng=0) -> Scene:
    """The scene that a story tells, so that its pictures and its truth are known.

    story: ``[(second, attributes), ...]``, seconds growing from 0; an object goes on as the most similar one
    of the moment before; what is left unsaid (None) stays as it was, or is drawn at random when it is new.
    Raises InputError for unordered seconds, more than two objects, or changing backgrounds.
    """
    rng = generator(rng)
    if not story or story[0][0] != 0 or any(b[0] <= a[0] for a, b in zip(story, story[1:], strict=False)):
        raise InputError(f"story seconds {[s for s, _ in story]} are unordered; they must grow from 0")
    backgrounds = {a.background for _, a in story if a.background is not None}
    if len(backgrounds) > 1:
        raise InputError(f"{', '.join(sorted(backgrounds))} in one story; a scene has one background")
    background = backgrounds.pop() if backgrounds else _pick(rng, tuple(BACKGROUNDS))
    if background not in BACKGROUNDS:
        raise InputError(f"background {background!r} is unknown; wanted one of {', '.join(BACKGROUNDS)}")
    slots: Slots = (None, None)
    spans = []
    for second, told in story:
        if len(told.objects) > 2:
            raise InputError(f"{len(told.objects)} objects at second {second:g}; wanted one or two")
        slots = _continue(rng, slots, told.objects)
        spans.append((float(second), slots))
    return build_scene(background, spans, rng)


def build_scene(background: str, spans: Sequence[tuple[float, Slots]], rng: np.random.Generator) -> Scene:
    """Give places and paths to looks: ``spans`` lists (second, (look or None, look or None))."""
    looks = [[slots[i] for _, slots in spans if slots[i] is not None] for i in (0, 1)]
    for look in looks[0] + looks[1]:
        check_look(look)
    for second, (one, other) in spans:
        if one and other and (one.colour, one.shape) == (other.colour, other.shape):
            raise InputError(
                f"two {one.colour} {one.shape}s at second {second:g}; change one's colour or shape"
            )
    lanes = _lanes(rng, looks)
    things = []
    for slot in (0, 1):
        parts: list[Part] = []
        for second, slots in spans:
            look = slots[slot]
            if look is None:
                if parts:
                    things.append(Thing(tuple(parts), second))
                parts = []
            elif not parts:
                parts = [Part(second, look, begin(rng, look, second, lanes[slot]))]
            elif look != parts[-1].look:
                was, path = parts[-1].look, parts[-1].path
                if look.motion != was.motion:
                    path = begin(rng, look, second, lanes[slot], path)
                elif look.size != was.size:
                    path = resize(path, look.size, second)
                parts.append(Part(second, look, path))
        if parts:
            things.append(Thing(tuple(parts)))
    things.sort(key=lambda thing: thing.parts[0].start)
    return Scene(background, tuple(things))


def generator(rng) -> np.random.Generator:
    """A numpy Generator from one, from an int, or from a JAX key."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, (int, np.integer, list, tuple)):
        return np.random.default_rng(rng)
    import jax

    data = jax.random.key_data(rng) if jax.numpy.issubdtype(rng.dtype, jax.dtypes.prng_key) else rng
    return np.random.default_rng([int(word) for word in np.asarray(data).ravel()])


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _motions(shape: str) -> tuple[str, ...]:
    return tuple(m for m in MOTIONS if not (m == "spins" and shape in ROUND))


def _allowed(colour: str, shape: str, split: str, others: Sequence[Any]) -> bool:
    if split == "train" and held_out(colour, shape):
        return False
    return all(other.colour != colour or other.shape != shape for other in others)


def _new_look(rng: np.random.Generator, split: str, others: Sequence[Any]) -> Look:
    pairs = [(c, s) for c in PALETTE for s in SHAPES if _allowed(c, s, split, others)]
    colour, shape = pairs[int(rng.integers(len(pairs)))]
    return Look(shape, colour, _pick(rng, tuple(SIZES)), _pick(rng, _motions(shape)))


def _event_seconds(rng: np.random.Generator, seconds: float) -> list[float]:
    """When a scene changes: at least one change if there is room, then about one every six seconds."""
    out, last = [], seconds - EDGE
    second = EDGE + rng.uniform(0, min(3.0, max(last - EDGE, 0.0)))
    while second <= last:
        out.append(round(float(second), 3))
        second += APART + rng.exponential(3.0)
    return out


def _change(rng: np.random.Generator, slots: Slots, split: str) -> Slots:
    """One change, of a kind drawn among those that are possible now."""
    present = [i for i in (0, 1) if slots[i] is not None]
    kind = _pick(rng, ("colour", "shape", "motion", "size", "leaves" if len(present) == 2 else "appears"))
    if kind == "appears":
        i = slots.index(None)
        after = _new_look(rng, split, [slots[j] for j in present])
    else:
        i = present[int(rng.integers(len(present)))]
        was, others = slots[i], [slots[j] for j in present if j != i]
        if kind == "leaves":
            after = None
        elif kind == "colour":
            values = [c for c in PALETTE if c != was.colour and _allowed(c, was.shape, split, others)]
            after = dataclasses.replace(was, colour=_pick(rng, values))
        elif kind == "shape":
            values = [s for s in SHAPES if s != was.shape and _allowed(was.colour, s, split, others)]
            values = [s for s in values if was.motion in _motions(s)]
            # Rarely nothing is left: an orange thing that spins beside an orange cross, where pairs are held out.
            after = dataclasses.replace(was, shape=_pick(rng, values)) if values else _resized(was)
        elif kind == "motion":
            values = [m for m in _motions(was.shape) if m != was.motion]
            after = dataclasses.replace(was, motion=_pick(rng, values))
        else:
            after = _resized(was)
    return tuple(after if j == i else slots[j] for j in (0, 1))


def _resized(look: Look) -> Look:
    return dataclasses.replace(look, size="small" if look.size == "large" else "large")


def _continue(rng: np.random.Generator, slots: Slots, told: Sequence[Any]) -> Slots:
    """Who goes on as whom: the assignment to slots in which most attributes stay as they were."""
    told = list(told) + [None] * (2 - len(told))

    def alike(was: Look | None, now: Look | None) -> float:
        if was is None or now is None:
            return 0.5 if was is now else 0.0
        weights = {"shape": 2.0, "colour": 2.0, "size": 1.0, "motion": 1.0}
        return 0.25 + sum(w for k, w in weights.items() if getattr(now, k) in (None, getattr(was, k)))

    straight = alike(slots[0], told[0]) + alike(slots[1], told[1])
    crossed = alike(slots[0], told[1]) + alike(slots[1], told[0])
    now = told if straight >= crossed else told[::-1]
    out: list[Any] = []
    for was, look in zip(slots, now, strict=True):
        if look is not None:
            others = [other for other in out if other is not None]
            said = {k: v for k, v in dataclasses.asdict(look).items() if v is not None}
            look = dataclasses.replace(was or _new_look(rng, "all", others), **said)
            while not (look.colour in said.values() and look.shape in said.values()) and not _allowed(
                look.colour, look.shape, "all", others
            ):
                look = dataclasses.replace(_new_look(rng, "all", others), **said)
            if look.motion == "spins" and look.shape in ROUND and "motion" not in said:
                look = dataclasses.replace(look, motion="stays still")
            elif look.motion == "spins" and look.shape in ROUND and "shape" not in said:
                look = dataclasses.replace(look, shape="star")
        out.append(look)
    return tuple(out)


def _lanes(rng: np.random.Generator, looks: list[list[Look]]) -> list[tuple[float, float, float, float]]:
    """The whole square for one object; for two, halves whose widths follow what each of them needs."""
    low, high = MARGIN, WORLD - MARGIN
    if not looks[0] or not looks[1]:
        return [(low, low, high, high)] * 2
    sideways = sum(look.motion == "slides left and right" for look in looks[0] + looks[1])
    upright = sum(look.motion == "slides up and down" for look in looks[0] + looks[1])
    across = rng.random() < 0.5 if sideways == upright else upright > sideways
    # What is to spare is shared evenly; half of it is always enough for the largest object to pulse.
    needs = [max(2 * SIZES[look.size] for look in life) for life in looks]
    spare = (high - low - 2 * MARGIN) - sum(needs)
    cut = low + needs[0] + spare / 2
    if across:
        lanes = [(low, low, cut, high), (cut + 2 * MARGIN, low, high, high)]
    else:
        lanes = [(low, low, high, cut), (low, cut + 2 * MARGIN, high, high)]
    return lanes
