# SPDX-License-Identifier: Apache-2.0
"""The one loop with state: batches go in, checkpoints, numbers and a trained model come out.

The device is never waited for more than needed: while step n runs, batch n + 1 is read and the metrics of step n - 1
are logged. Everything else (the step, the evaluations, the place in the data) is a value or a function handed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvid.io.checkpoint import Checkpoints
from jaxvid.sharding import put_batch
from jaxvid.training.processes import agreed
from jaxvid.training.step import TrainState, make_init, make_train_step, state_sharding
from jaxvid.types import InputError

Evaluate = Callable[[TrainState, int], Mapping[str, float]]
Progress = Callable[[int, int, str], None]
ASK = 16  # steps after which several processes ask each other whether to save or to stop


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long, how often, and what is kept.

    steps: of the optimizer; minutes: of training in all, resumed runs included, compiling not (whatever comes first).
    ema: decay of the average; accumulate: parts of a batch. log_every, eval_every, sample_every: steps (0: only at the
    start and the end, or never for samples). save_every: steps; save_minutes: minutes; keep: checkpoints.
    give_up: steps in a row that may be not finite.
    """

    steps: int
    minutes: float | None = None
    ema: float = 0.999
    accumulate: int = 1
    log_every: int = 20
    eval_every: int = 0
    sample_every: int = 0
    save_every: int = 1000
    save_minutes: float = 10.0
    keep: int = 2
    give_up: int = 20

    def __post_init__(self):
        if self.steps < 1 or (self.minutes is not None and not self.minutes > 0):
            raise InputError(
                f"train.steps={self.steps} train.minutes={self.minutes}: nothing to do; give more than 0"
            )
        for name in ("log_every", "save_every", "keep", "give_up", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name}={getattr(self, name)} is not positive; give 1 or more")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to. ``finished`` is False when it was interrupted and can be continued."""

    state: TrainState
    shardings: TrainState
    step: int
    finished: bool
    history: list[dict[str, Any]]  # {'step': n, name: value, ...} of every evaluation
    times: dict[str, dict[str, float]]  # bucket -> {'compile': s, 'step': s (median), 'steps': n}


class Interrupted:
    """Set by SIGTERM or Ctrl-C; the loop looks at it between steps. A second signal ends the process as usual."""

    def __init__(self):
        self.by: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupted:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _heard(self, number: int, frame: Any) -> None:
        self.by = signal.Signals(number).name
        self.__exit__()
        with contextlib.suppress(OSError):  # not through sys.stderr, which may be in the middle of a line
            os.write(2, f"\njaxvid: {self.by}: saving after this step; once more stops at once\n".encode())


def run(
    task: Any,
    optimizer: Any,
    data: Any,
    mesh: Mesh,
    settings: Settings,
    checkpoints: Checkpoints,
    *,
    seed: int = 0,
    meta: Mapping[str, Any] | None = None,
    evaluate: Callable[[TrainState], Evaluate] | None = None,
    sample: Callable[[TrainState, int], None] | None = None,
    tracker: Any = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    prepare: Callable[[TrainState], TrainState] | None = None,
) -> Result:
    """Trains until the steps or the minutes are over, or until it is interrupted; continues what ``checkpoints`` holds.

    data: an endless iterator of ``(Video, Cond)`` with numpy leaves, with `get_state` (JSON-able) and `set_state`.
    evaluate: makes, from the shardings of the state, a function ``(state, step) -> {name: number}``; called at the
    start, at the end and every `eval_every` steps. sample: ``(state, step)``, called every `sample_every` and at the end.
    meta: JSON that is stored with every checkpoint. prepare: a last touch to a fresh state (weights to start from).
    """
    with Interrupted() as interrupted:
        loop = _Loop(
            task, optimizer, data, mesh, settings, checkpoints, dict(meta or {}), tracker, progress, say
        )
        loop.start(seed, prepare)
        judge = evaluate(loop.shardings) if evaluate is not None else None
        return loop.go(interrupted, judge, sample)


class _Loop:
    def __init__(self, task, optimizer, data, mesh, settings, checkpoints, meta, tracker, progress, say):
        self.task, self.optimizer, self.data, self.mesh = task, optimizer, data, mesh
        self.settings, self.checkpoints, self.meta = settings, checkpoints, meta
        self.tracker, self.progress, self.say = tracker, progress, say
        self.compiled: dict[str, Callable[..., Any]] = {}
        self.times: dict[str, dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []
        self.before = 0.0  # seconds trained by earlier processes
        self.bad = (0, 0)  # steps skipped in all, and in a row
        self.late = self.stopped = self.due = False  # what `ends` found

    def start(self, seed: int, prepare: Callable[[TrainState], TrainState] | None) -> None:
        """The state of the newest checkpoint, or a fresh one."""
        here = self.data.get_state()
        batch = next(self.data)
        self.data.set_state(here)
        step = self.checkpoints.latest()
        for warning in self.checkpoints.warnings:
            self.say(warning)
        self.shapes, self.shardings = state_sharding(self.mesh, self.task, self.optimizer, batch)
        self.step_fn = make_train_step(
            self.task,
            self.optimizer,
            self.mesh,
            self.shardings,
            ema=self.settings.ema,
            accumulate=self.settings.accumulate,
        )
        if step is None:
            init = make_init(self.task, self.optimizer, self.mesh, self.shardings)
            self.state = init(jax.random.key(seed), put_batch(batch, self.mesh))
            self.step = 0
            if prepare is not None:
                self.state = jax.device_put(prepare(self.state), self.shardings)
        else:
            self.state, stored = self.checkpoints.restore(step, self.shapes, self.shardings)
            self.data.set_state(stored["data"])
            self.history = stored["history"]
            self.before = stored["seconds"]
            self.step = step
            self.say(f"continuing at step {step}")

    def go(self, interrupted: Interrupted, judge: Evaluate | None, sample: Any) -> Result:
        settings = self.settings
        if judge is not None and not self.history:
            self.evaluate(judge)
        self.began = self.saved = time.monotonic()
        self.batch, self.place = self.next_batch()
        waiting: tuple[int, str, Any] | None = None
        while not self.ends(interrupted):
            key = self.compile(self.batch)
            self.state, metrics = self.compiled[key](self.state, self.batch)
            self.step += 1
            self.batch, self.place = self.next_batch()  # while the device works
            if waiting is not None:
                self.log(*waiting)
            waiting = (self.step, key, metrics)
            pause = (
                (settings.eval_every and judge is not None and self.step % settings.eval_every == 0)
                or (settings.sample_every and sample is not None and self.step % settings.sample_every == 0)
                or self.step % settings.save_every == 0
                or self.due
            )
            if pause and not self.over():
                self.log(*waiting)
                waiting = None
                if settings.eval_every and judge is not None and self.step % settings.eval_every == 0:
                    self.evaluate(judge)
                if settings.sample_every and sample is not None and self.step % settings.sample_every == 0:
                    sample(self.state, self.step)
                if self.step % settings.save_every == 0 or self.due:
                    self.save()
                self.ticked = time.monotonic()
        if waiting is not None:
            self.log(*waiting)
        finished = self.over()
        if finished and judge is not None and self.history[-1]["step"] != self.step:
            self.evaluate(judge)
        self.save()
        self.checkpoints.wait()
        if finished and sample is not None:
            sample(self.state, self.step)
        if self.stopped and not finished:
            self.say(f"{interrupted.by or 'another process ended'}: saved at step {self.step}")
        times = {
            k: {**v, "step": statistics.median(v["step"]) if v["step"] else math.nan}
            for k, v in self.times.items()
        }
        return Result(self.state, self.shardings, self.step, finished, self.history, times)

    def ends(self, interrupted: Interrupted) -> bool:
        """Looks at the clock and at signals; several processes do it together, now and then: none stops or saves alone."""
        late = self.settings.minutes is not None and self.seconds() >= 60 * self.settings.minutes
        due = time.monotonic() - self.saved > 60 * self.settings.save_minutes
        found = (late, bool(interrupted.by), due)
        if jax.process_count() > 1:
            found = agreed(*found) if self.step % ASK == 0 else (self.late, self.stopped, False)
        self.late, self.stopped, self.due = found
        return self.over() or self.stopped

    def over(self) -> bool:
        return self.step >= self.settings.steps or self.late

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def next_batch(self) -> tuple[Any, Any]:
        """The next batch on the devices, and the place in the data from which it comes again."""
        place = self.data.get_state()
        return put_batch(next(self.data), self.mesh), place

    def compile(self, batch: Any) -> str:
        """Compiles the step for a bucket it has not met, and says how long that took."""
        key = bucket_name(batch)
        if key not in self.compiled:
            self.say(f"compiling the step for {key}")
            begun = time.monotonic()
            self.compiled[key] = self.step_fn.lower(self.state, batch).compile()
            seconds = time.monotonic() - begun
            self.times[key] = {"compile": seconds, "step": [], "steps": 0}
            self.began += seconds  # a limit on minutes is one on training
            self.say(f"compiled in {seconds:.1f} s")
            self.ticked = time.monotonic()
        return key

    def log(self, step: int, key: str, metrics: Any) -> None:
        """Waits for a step, checks that it was a number, and tells it."""
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        now = time.monotonic()
        took, self.ticked = now - self.ticked, now
        times = self.times[key]
        times["steps"] += 1
        if times["steps"] > 1:
            times["step"] = [*times["step"][-199:], took]
        skipped = int(values["skipped"])
        self.bad = (skipped, self.bad[1] + 1 if skipped > self.bad[0] else 0)
        if self.bad[1] >= self.settings.give_up:
            raise InputError(
                f"the loss or its gradient was not finite for {self.bad[1]} steps in a row, up to step {step}; "
                "lower the learning rate, the last good checkpoint is kept"
            )
        if step % self.settings.log_every == 0 or step == self.settings.steps:
            if self.tracker is not None:
                # a loss of no frames is not 0
                told = {k: v for k, v in values.items() if values.get(f"frames_{k.removeprefix('loss_')}", 1)}
                self.tracker.scalars(step, {**{f"train/{k}": v for k, v in told.items()}, "time/step": took})
        if self.progress is not None:
            self.progress(step, self.goal(step), f"loss {values['loss']:.4g}")

    def goal(self, step: int) -> int:
        """How many steps there will be: those asked for, or what the minutes are enough for at the pace so far."""
        if self.settings.minutes is None or self.over():
            return self.settings.steps if self.settings.minutes is None else step
        pace = self.seconds() / step
        return max(step + 1, min(self.settings.steps, round(60 * self.settings.minutes / pace)))

    def evaluate(self, judge: Evaluate) -> None:
        values = {k: float(v) for k, v in judge(self.state, self.step).items()}
        self.history.append({"step": self.step, **values})
        if self.tracker is not None:
            self.tracker.scalars(self.step, {f"held_out/{k}": v for k, v in values.items()})
        said = " ".join(f"{k} {v:.4g}" for k, v in values.items() if k in ("loss", "psnr", "mse"))
        self.say(f"held out at step {self.step}: {said}")

    def save(self) -> None:
        meta = {**self.meta, "data": self.place, "history": self.history, "seconds": self.seconds()}
        self.checkpoints.save(self.step, self.state, meta)
        self.saved = time.monotonic()


def bucket_name(batch: Any) -> str:
    """The shape of a batch of video and of its captions, in words: one compilation each."""
    video, cond = batch
    tokens = f" captions {np.shape(cond['tokens'])[1]}" if "tokens" in cond else ""
    return f"video {'x'.join(map(str, video.x.shape))}{tokens}"
