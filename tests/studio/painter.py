# SPDX-License-Identifier: Apache-2.0
"""Pipelines around a real one, which still checks and tells what is asked: two that pause, one that paints."""

import contextlib
import threading
import time

import numpy as np

from jaxvid.data.shapes import parse, render, story_scene
from jaxvid.run import Event

STEPS = 6


class Slow:
    """The same, with a pause after every event: time for a person, or a test, to step in."""

    def __init__(self, pipe, pause: float):
        self.pipe, self.pause = pipe, pause

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def events(self, run):
        with contextlib.closing(self.pipe.events(run)) as events:
            for event in events:
                time.sleep(self.pause)
                yield event


class Held:
    """The same, but it stands still after its first frames until ``go`` is set: a toy is done before a page has looked."""

    def __init__(self, pipe):
        self.pipe, self.go = pipe, threading.Event()

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def events(self, run):
        with contextlib.closing(self.pipe.events(run)) as events:
            for event in events:
                yield event
                if event.frames is not None:
                    self.go.wait(240)


class Painter:
    """Its videos show what their stories ask for, since the shapes world's own renderer draws them.

    ``hold``: while it is cleared, runs stand still between two steps; ``steps`` counts those of all runs.
    """

    def __init__(self, pipe):
        self.pipe, self.hold, self.steps, self.closed = pipe, threading.Event(), 0, 0
        self.hold.set()

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def events(self, run):
        request = run.request
        try:
            yield Event("text", 0, 1, "sentences", "compiling")
            for step in range(STEPS):
                self.hold.wait(60)
                self.steps += 1
                yield Event("sample", step + 1, STEPS, "steps")
            at = 0
            for frames in np.array_split(painted(request), 4):
                at += len(frames)
                yield Event("decode", at, request.frames, "frames", frames=frames)
        finally:
            self.closed += 1


def painted(request) -> np.ndarray:
    """uint8 [T, H, W, 3]: a story as the renderer of the shapes world draws it."""
    scene = story_scene([(at, parse(text)) for at, text in request.stories[0]], request.seeds[0])
    return render(scene, request.frames, request.fps, (request.height, request.width))
