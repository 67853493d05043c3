# SPDX-License-Identifier: Apache-2.0
"""The queue: one run at a time in a thread of its own, told step by step, and ended between two steps when asked."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxvid.io.video_file import VideoWriter
from jaxvid.recipe import check_recipe
from jaxvid.run import Event, Run
from jaxvid.studio.asked import prepare
from jaxvid.studio.gallery import Gallery, Missing, jpeg, shown
from jaxvid.types import InputError

WAITING = 20  # runs in the queue
REMEMBERED = 20  # runs that have ended, so that a page that was away learns how
PREVIEWS = 60  # pictures of one run, at most
EVERY = 0.1  # seconds between two tellings of one stage
OPEN = ("waiting", "running", "reading")


class Cancelled(Exception):
    """Somebody wanted a run to end."""


@dataclasses.dataclass
class Job:
    """A run and how far it is.

    status    'waiting', 'running', 'reading' (the file is there, the reader looks at it), 'done', 'cancelled', 'failed'
    asked     the part of its recipe that a page shows
    stages    {name: {'done', 'total', 'unit', 'note', 'left': seconds or None}}
    previews  {number: JPEG as base64}, each standing for `every` seconds
    """

    number: int
    run: Run
    recipe: dict[str, Any]
    asked: dict[str, Any]
    status: str = "waiting"
    stages: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    error: str = ""
    file: str | None = None
    previews: dict[int, str] = dataclasses.field(default_factory=dict)
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    begun: dict[str, tuple[float, int]] = dataclasses.field(default_factory=dict)

    @property
    def every(self) -> float:
        return max(1.0, self.run.request.frames / self.run.request.fps / PREVIEWS)

    def told(self) -> dict[str, Any]:
        """What a page is told of it, as plain data."""
        names = ("number", "asked", "status", "error", "file", "every")
        return {name: getattr(self, name) for name in names} | {
            "stages": dict(self.stages),  # others read while the worker writes
            "stopping": self.stop.is_set() and self.status in OPEN,
        }

    def note(self, event: Event, now: float) -> None:
        """Takes down how far a stage is; its pace is that of the units after the first, which was compiled for."""
        if event.note:
            self.begun.pop(event.stage, None)
        elif event.done > 0:
            self.begun.setdefault(event.stage, (now, event.done))
        since, first = self.begun.get(event.stage, (now, 0))
        moved = event.done - first
        left = (event.total - event.done) * (now - since) / moved if moved > 0 and now > since else None
        self.stages[event.stage] = {
            "done": event.done,
            "total": event.total,
            "unit": event.unit,
            "note": event.note,
            "left": None if left is None else round(left, 1),
        }


class Jobs:
    """Takes what pages ask for, makes one after the other, and says what happens by ``say(kind, data)``."""

    def __init__(self, pipe, gallery: Gallery, say: Callable[[str, Any], None]):
        self.pipe, self.gallery, self.say = pipe, gallery, say
        self._jobs: dict[int, Job] = {}
        self._numbers, self._lock = itertools.count(1), threading.Lock()
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._said = 0.0
        self._thread = threading.Thread(target=self._work, name="jaxvid studio", daemon=True)
        self._thread.start()

    def ask(self, body) -> Job:
        """Puts a run into the queue. Raises `InputError`."""
        run = prepare(self.pipe, body)
        recipe = self.pipe.recipe(run)
        asked = shown(check_recipe(recipe, "this run"))
        with self._lock:
            if sum(job.status in OPEN for job in self._jobs.values()) >= WAITING:
                raise InputError(f"{WAITING} videos are waiting already; wait for one, or cancel one")
            job = Job(next(self._numbers), run, recipe, asked)
            self._jobs[job.number] = job
            ended = [number for number, old in self._jobs.items() if old.status not in OPEN]
            for number in ended[:-REMEMBERED]:
                del self._jobs[number]
        self._waiting.put(job)
        self._tell()
        return job

    def cancel(self, number: int) -> Job:
        """Asks a run to end; a waiting one ends at once, a running one after its step. Raises `Missing`."""
        with self._lock:
            if number not in self._jobs:
                raise Missing(number)
            job = self._jobs[number]
            job.stop.set()
            if job.status == "waiting":
                job.status = "cancelled"
        self._tell()
        return job

    def snapshot(self) -> list[tuple[str, Any]]:
        """All that a page has to hear when it comes, or comes again."""
        with self._lock:
            jobs = list(self._jobs.values())
        pictures = [
            ("preview", _preview(job, number))
            for job in jobs
            if job.status in OPEN
            for number in list(job.previews)
        ]
        return [("jobs", [job.told() for job in jobs]), *pictures]

    def close(self) -> None:
        """Ends the run that is going on, after its step, and waits for that."""
        with self._lock:
            for job in self._jobs.values():
                job.stop.set()
        self._waiting.put(None)
        self._thread.join()

    def _tell(self) -> None:
        self._said = time.monotonic()
        with self._lock:
            told = [job.told() for job in self._jobs.values()]
        self.say("jobs", told)

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            with self._lock:
                if job.stop.is_set():
                    job.status = "cancelled"
                    continue
                job.status = "running"
            self._tell()
            try:
                self._make(job)
                job.status = "done"
            except Cancelled:
                job.status = "cancelled"
            except Exception as error:  # noqa: BLE001  the page is told, and the next run gets its turn
                job.status, job.error = "failed", _in_one_line(error)
            job.previews.clear()
            self._tell()

    def _make(self, job: Job) -> None:
        request = job.run.request
        path = self.gallery.new_path(request.stories[0][0][1], request.seeds[0])
        size, at = (request.height, request.width), 0
        with (
            contextlib.closing(self.pipe.events(job.run)) as events,
            VideoWriter(path, request.fps, *size, job.recipe) as writer,
        ):
            for event in events:
                if job.stop.is_set():
                    raise Cancelled
                job.note(event, time.monotonic())
                if event.frames is not None:
                    writer.append(event.frames)
                    self._preview(job, event.frames, at)
                    at += len(event.frames)
                if event.note or time.monotonic() - self._said >= EVERY:
                    self._tell()
        job.file, job.status = path.name, "reading"
        self._tell()
        self.gallery.verdict(path.name)

    def _preview(self, job: Job, frames, at: int) -> None:
        """Says the pictures whose times are among new frames, the first of which is frame ``at``."""
        fps = job.run.request.fps
        number = max(0, int(at / fps / job.every - 0.5))
        while (middle := round((number + 0.5) * job.every * fps)) < at + len(frames):
            if middle >= at and number not in job.previews:
                job.previews[number] = base64.b64encode(jpeg(frames[middle - at])).decode()
                self.say("preview", _preview(job, number))
            number += 1
        if not job.previews:  # shorter than half a picture's time
            job.previews[0] = base64.b64encode(jpeg(frames[-1])).decode()
            self.say("preview", _preview(job, 0))


def _preview(job: Job, number: int) -> dict[str, Any]:
    return {"job": job.number, "number": number, "every": job.every, "jpeg": job.previews.get(number, "")}


def _in_one_line(error: Exception) -> str:
    if isinstance(error, (InputError, FloatingPointError)):
        said = str(error)
    elif isinstance(error, MemoryError):
        said = "out of memory; ask for fewer seconds, or for the method rollout"
    else:
        said = f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:600]
