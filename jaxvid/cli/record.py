# SPDX-License-Identifier: Apache-2.0
"""Writes a run to files while it goes on, tells how far it is, and loses nothing when the writing fails."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence

import numpy as np

from jaxvid.cli.progress import Progress, clock_time
from jaxvid.io.video_file import VideoWriter, save_video, unwritable
from jaxvid.io.weights import load_metadata, load_weights, save_weights
from jaxvid.types import InputError

ENDINGS = (".mp4", ".gif", ".webp")


def outputs(out: str, count: int) -> list[pathlib.Path]:
    """Where ``count`` videos go: ``out``, or out-0, out-1, .... Raises `InputError` where nothing could be written."""
    path = pathlib.Path(out)
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"--out {out} ends in none of {', '.join(ENDINGS)}; name the file so")
    paths = [path]
    if count > 1:
        paths = [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(count)]
    for one in paths:
        if one.is_dir():
            raise InputError(f"--out {one} is a directory; name a file in it")
    check_writable(path)
    return paths


def spare(given: Iterable[str | None], written: Iterable[str | os.PathLike], option: str) -> None:
    """Raises `InputError` where a file that is given would be written over."""
    for path in written:
        for one in given:
            if (
                one is not None
                and os.path.exists(one)
                and os.path.exists(path)
                and os.path.samefile(one, path)
            ):
                raise InputError(
                    f"{option} {path} is the file {one} that is given, which would be lost; name another"
                )


def check_writable(path: pathlib.Path) -> None:
    """Raises `InputError` where no file could be made beside ``path``."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from None


class Writers:
    """One growing file per video. mp4 is written as frames come; gif and webp, which cannot, when all are there."""

    def __init__(
        self, paths: Sequence[pathlib.Path], fps: float, size: tuple[int, int], recipes: Sequence[dict]
    ):
        self.paths, self.fps, self.recipes = paths, fps, recipes
        self.stack = contextlib.ExitStack()
        self.held: list[list[np.ndarray]] = [[] for _ in paths]
        self.writers: list[VideoWriter | None] = []
        with self.stack:
            for path, recipe in zip(paths, recipes, strict=True):
                mp4 = path.suffix.lower() == ".mp4"
                self.writers.append(
                    self.stack.enter_context(VideoWriter(path, fps, *size, recipe)) if mp4 else None
                )
            self.stack = self.stack.pop_all()

    def append(self, number: int, frames):
        writer = self.writers[number]
        if writer is None:
            self.held[number].append(frames)
        else:
            writer.append(frames)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            for number, pieces in enumerate(self.held):
                if pieces:
                    save_video(self.paths[number], np.concatenate(pieces), self.fps, self.recipes[number])
        return self.stack.__exit__(kind, error, trace)


def record(pipe, run, paths: Sequence[pathlib.Path], progress: Progress) -> None:
    """Makes a run's videos and writes them to ``paths``. What is unfinished is removed; finished latents are kept."""
    request, start = run.request, time.perf_counter()
    recipes = [pipe.recipe(run, number) for number in range(request.batch)]
    events, rows = pipe.events(run), 0
    try:
        with (
            contextlib.closing(events),
            Writers(paths, request.fps, (request.height, request.width), recipes) as writers,
        ):
            for event in events:
                progress.update(event.stage, event.done, event.total, event.unit, event.note)
                rows = event.total if event.stage == "sample" else rows
                if event.frames is not None:
                    for number, frames in enumerate(event.frames[None] if request.single else event.frames):
                        writers.append(number, frames)
    except KeyboardInterrupt as stop:
        progress.close()
        stop.add_note(_keep(pipe, run, paths[0]) or "no video was written and nothing was kept")
        raise
    except Exception as error:
        progress.close()
        kept = _keep(pipe, run, paths[0])
        if kept:
            raise InputError(f"{error}; {kept}") from error
        raise
    progress.close()
    if request.cache is not None:
        progress.note(
            f"the network was asked in {pipe.engine.asked} of {rows} calls, cache {request.cache:g}"
        )
    progress.note(timings(pipe, time.perf_counter() - start))


def timings(pipe, took: float) -> str:
    """One line about where the time of a run went."""
    stages = pipe.seconds
    compiling = sum(stage["compile"] for stage in stages.values())
    said = ", ".join(
        f"{name} {stage['compile']:.1f}" for name, stage in stages.items() if stage["compile"] >= 0.05
    )
    unit = {"sample": "call", "decode": "latent frame", "encode": "latent frame"}
    steady = [f"{name} {stages[name]['steady']:.3g} s per {unit[name]}" for name in unit if name in stages]
    steady = ", ".join(text for text in steady if "nan" not in text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return (
        f"done in {clock_time(took)}; compiling took {compiling:.1f} s ({said or 'nothing new'})"
        f"{'; then ' + steady if steady else ''}; {peak:.2f} GiB at most"
    )


def _keep(pipe, run, out: pathlib.Path) -> str:
    """Saves the latents of a run that failed; says where and how to go on. Empty when there are none."""
    latents = pipe.latents
    if latents is None:
        return ""
    request, first = run.request, run.given.first
    meta = {
        "fps": request.fps,
        "frames": request.frames - first,
        "recipes": [pipe.recipe(run, i) for i in range(request.batch)],
    }
    name = f"{out.stem}.latents.safetensors"
    for folder in (out.parent, pathlib.Path(tempfile.gettempdir())):
        path = folder / name
        number = 1
        while path.exists():
            path, number = folder / f"{out.stem}-{number}.latents.safetensors", number + 1
        try:
            save_weights(path, {"latents": latents}, metadata={"jaxvid": json.dumps(meta)})
        except InputError:
            continue
        return f"the latents are kept in {path}: jaxvid decode {path} --out FILE.mp4 makes the video"
    return "the latents could not be saved either"


def load_latents(path) -> tuple[np.ndarray, dict]:
    """``(latents float32 [B, F, h, w, C], meta)`` as kept by `record`. Raises `InputError`."""
    tree = load_weights(path)
    try:
        meta = json.loads(load_metadata(path).get("jaxvid", "{}"))
    except ValueError:
        meta = None
    latents = tree.get("latents")
    if not isinstance(meta, dict) or not isinstance(latents, np.ndarray) or latents.ndim != 5:
        raise InputError(f"{path} holds no latents of a jaxvid run; give a file that jaxvid generate kept")
    return latents.astype(np.float32), meta
