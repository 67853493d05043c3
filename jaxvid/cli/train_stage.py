# SPDX-License-Identifier: Apache-2.0
"""One stage of a training run: what its config says, made and run.

A stage has

    task       call(DiffusionTask | AutoencoderTask, ...)
    source     call(...) of a source of clips, and held_out, the same for clips that are not trained on (or None)
    data       call(batches, buckets=..., fps=..., seed=...): everything but the source
    optimizer  call(adamw, ...) or any optax transformation
    train      call(Settings, steps=..., ...)
    evaluate   dict(batches=4): how much of held_out is looked at

and, a stage that learns latents, also

    codec      'shipped', an earlier stage, or the directory of a codec, a bundle or a run
    latents    dict(size=None, batch=8, prefill=True, dir=None): the cache of latents
    samples    dict(prompts=(...), seconds=2.0, extend=0): videos made from the average while training
    serve      dict(...): defaults of the pipeline (steps, guidance, solver, shift, seconds)
    text       the directory of an imported bundle, whose frozen text encoder makes of captions what the network is
               told: then ``init`` may be that bundle too, and the result is one (`jaxvid.cli.tuned`)
    blank      dict(codec=call(...), text=4096): what codec and text are like before their directories are there, for
               jaxvid plan and --dry_run

while one that learns an autoencoder may have ``statistics``, over how many clips the latents' spread is measured (0: it
stays what it was at the start), and ``weigh``, the greatest spread of a channel where spreads follow what channels do
to pixels (0: all channels have unit variance). Any stage may have ``init``: an earlier stage, a .safetensors file, a
bundle, a run or 'shipped', whose weights it begins with; a stage that distils (`jaxvid.training.distill`) also
``teacher``, the same for the model that it learns from, with which the student begins where there is no ``init``. With
``adopt``, a dict {name here: name there} of parts that are called otherwise (it may be empty), only those weights of
``init`` are taken that fit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxvid.cli import train_samples
from jaxvid.cli.captions import Blank, Captions
from jaxvid.cli.codec import Codec, with_statistics, write_text
from jaxvid.cli.train_start import starter
from jaxvid.config import build, to_json
from jaxvid.data.latents import LatentSource
from jaxvid.data.pipeline import fixed_batches
from jaxvid.io.bundle import SPEC
from jaxvid.io.checkpoint import Checkpoints
from jaxvid.sharding import put_batch
from jaxvid.training.loop import Evaluate, Progress, Result, Settings, run
from jaxvid.training.processes import first, together, whole
from jaxvid.training.step import TrainState, make_eval_step
from jaxvid.training.trackers import TensorBoard, Trackers, Wandb
from jaxvid.types import InputError, did_you_mean

NEEDED = ("task", "source", "data", "optimizer", "train")
OPTIONAL = ("held_out", "evaluate", "codec", "latents", "samples", "serve", "statistics", "weigh", "init")
OPTIONAL += ("adopt", "teacher", "text", "blank")


@dataclasses.dataclass
class Stage:
    """A stage with everything built. ``data`` is an open iterator."""

    name: str
    node: Any
    task: Any
    optimizer: Any
    settings: Settings
    data: Any
    raw: Any  # a source of pixels
    source: Any  # what `data` reads: raw, or its latents
    held_out: Any  # the same for clips that are not trained on, or None
    raw_held_out: Any
    codec: Codec | None
    buckets: tuple[Any, ...]
    fps: float
    captions: Captions | Blank | None = None  # what captions go through before they come to the network

    def batches(self, source: Any, count: int) -> list[Any]:
        """So many batches from all over a source, in the first bucket, the same every time."""
        bucket = self.buckets[0]
        options = {
            k: self.node.data[k] for k in ("text_length", "spans", "frames_multiple") if k in self.node.data
        }
        return list(
            fixed_batches(
                Spread(source, count * bucket.batch),
                bucket,
                count,
                fps=self.fps,
                encode=self.captions,
                **options,
            )
        )


@dataclasses.dataclass(frozen=True)
class Spread:
    """``count`` clips at equal distances of a source: of every file of a folder, not of its first."""

    source: Any
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def place(self, index: int) -> int:
        return index * len(self.source) // len(self)

    def clip(self, index: int, shape: Any) -> Any:
        return self.source.clip(self.place(index), shape)

    @property
    def time_factor(self) -> int:
        return getattr(self.source, "time_factor", 1)


def check_stage(name: str, node: Any) -> None:
    """The keys of a stage's config, before anything is built."""
    for key in NEEDED:
        if key not in node:
            raise InputError(f"stages.{name} has no {key}; a stage has {', '.join(NEEDED)}")
    for key in node:
        if key not in NEEDED + OPTIONAL:
            hint = did_you_mean(key, NEEDED + OPTIONAL) or f"; it may have {', '.join(NEEDED + OPTIONAL)}"
            raise InputError(f"stages.{name} has no option {key!r}{hint}")


def make_stage(name: str, node: Any, codec: Codec | None, cache: str) -> Stage:
    """Builds a stage; ``cache`` is the directory of latents."""
    task, optimizer, settings = build(node.task), build(node.optimizer), build(node.train)
    if not isinstance(settings, Settings):
        raise InputError(f"stages.{name}.train is {type(settings).__name__}; write call(Settings, steps=...)")
    buckets, fps = build(node.data.buckets), float(node.data.fps)
    raw = build(node.source)
    raw_held_out = build(node.held_out) if node.get("held_out") else None
    for what, found in (("source", raw), ("held_out", raw_held_out)):
        if found is not None and len(found) == 0:
            raise InputError(f"stages.{name}.{what} has no clips; point it at a place with videos")
    source, held_out = raw, raw_held_out
    if codec is not None:
        options = dict(node.get("latents") or {})
        cache = options.get("dir") or cache
        held_size = None if raw_held_out is None else min(len(raw_held_out), 4096)

        def latents(source: Any, size: int | None) -> LatentSource:
            return LatentSource(
                source, codec.encode, codec.key, cache, time_factor=codec.model.time_factor, size=size
            )

        source = latents(raw, options.get("size"))
        held_out = None if raw_held_out is None else latents(raw_held_out, held_size)
    captions = make_captions(name, node, cache)
    more: dict[str, Any] = {} if captions is None else {"encode": captions}
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    data = build(node.data, None, source=source, buckets=buckets, **processes, **more)
    return Stage(
        name,
        node,
        task,
        optimizer,
        settings,
        data,
        raw,
        source,
        held_out,
        raw_held_out,
        codec,
        buckets,
        fps,
        captions,
    )


def bad_files(*sources: Any) -> dict[str, str]:
    """What sources could not read so far, and why."""
    return {name: why for source in sources for name, why in getattr(source, "bad", {}).items()}


def make_captions(name: str, node: Any, cache: str) -> Captions | Blank | None:
    """What captions go through; zeros before the directory is there, where the config says of which width."""
    where, length = node.get("text"), int(node.data.get("text_length", 96))
    if not where:
        return None
    if not os.path.exists(where) and node.get("blank"):
        return Blank(length, int(node.blank["text"]))
    options = dict(node.get("latents") or {})
    return Captions(where, options.get("dir") or cache, length)


def evaluator(stage: Stage, mesh: Any) -> Callable[[TrainState], Evaluate]:
    """The held-out loss of the averaged parameters: same clips, same noise, every time."""
    count = int((stage.node.get("evaluate") or {}).get("batches", 4))

    def made(shardings: TrainState) -> Evaluate:
        run = make_eval_step(stage.task, mesh, shardings)
        batches = stage.batches(stage.held_out, count)

        def evaluate(state: TrainState, step: int) -> dict[str, float]:
            rows = []
            for i, batch in enumerate(batches):
                metrics = run(state.ema, state.rest, put_batch(batch, mesh, same=True), jax.random.key(i))
                rows.append(jax.device_get(metrics))
            return averaged(rows)

        return evaluate

    return made


def averaged(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of every number over batches; of ``loss_q1`` over its ``frames_q1``, and nothing where no frame fell."""
    made = {}
    for name in rows[0]:
        counts = [float(row.get(f"frames_{name.removeprefix('loss_')}", 1)) for row in rows]
        if not name.startswith("frames_") and sum(counts):
            made[name] = float(np.average([row[name] for row in rows], weights=counts))
    return made


def train_stage(
    stage: Stage,
    workdir: str,
    mesh: Any,
    *,
    seed: int,
    meta: Mapping[str, Any],
    trackers: Mapping[str, Any],
    show: Progress,
    say: Callable[[str], None],
) -> tuple[Result, dict[str, Any]]:
    """Trains a stage in WORKDIR/NAME; returns the result and what there is to report of it."""
    folder = os.path.join(workdir, stage.name)
    with Checkpoints(os.path.join(folder, "checkpoints"), stage.settings.keep) as checkpoints:
        if stage.codec is not None and stage.captions is None and first():
            write_text(os.path.join(folder, SPEC), to_json(train_samples.pipeline_spec(stage)))
        if stage.codec is not None:
            prefill(stage, show)
        followers: list[Any] = [TensorBoard(os.path.join(folder, "tensorboard"))] if first() else []
        if trackers.get("wandb") and first():
            followers.append(Wandb(trackers["wandb"], folder, meta))
        tracker = Trackers(followers)
        try:
            result = run(
                stage.task,
                stage.optimizer,
                stage.data,
                mesh,
                stage.settings,
                checkpoints,
                seed=seed,
                meta=meta,
                evaluate=None if stage.held_out is None else evaluator(stage, mesh),
                sample=train_samples.sampler(stage, folder, tracker, say),
                tracker=tracker,
                progress=show,
                say=say,
                prepare=starter(stage, workdir, say),
            )
        finally:
            tracker.close()
    report = {"stage": stage.name, "step": result.step, "history": result.history, "times": result.times}
    return result, report


def prefill(stage: Stage, show: Progress) -> None:
    """Encodes what training and evaluation will read, where the config does not say otherwise."""
    options = dict(stage.node.get("latents") or {})
    shapes = [b.shape(stage.fps) for b in stage.buckets]
    how = {
        "batch": int(options.get("batch", 8)),
        "progress": lambda done, total: show(done, total, "latents"),
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    if options.get("prefill", True):
        stage.source.prefill(shapes, **how)
        gather(stage.source)
        keep_captions(stage, stage.source, range(len(stage.source)), shapes)
    if stage.held_out is not None:
        count = int((stage.node.get("evaluate") or {}).get("batches", 4)) * stage.buckets[0].batch
        spread = Spread(stage.held_out, count)
        indices = [spread.place(i) for i in range(len(spread))]
        stage.held_out.prefill(shapes[:1], indices, **how)
        gather(stage.held_out)
        keep_captions(stage, stage.held_out, indices, shapes[:1])
    if stage.captions is not None:
        stage.captions.release()


def gather(source: Any) -> None:
    """Waits for what the other processes encode, and sees it."""
    together("latents")
    source.refresh()


def keep_captions(stage: Stage, source: Any, indices: Iterable[int], shapes: Iterable[Any]) -> None:
    """Encodes the captions of clips that are in the cache of latents already."""
    for shape in shapes if stage.captions is not None else ():
        for index in indices:
            for _, text in source.clip(index, shape).captions:
                stage.captions(text)


def is_autoencoder(stage: Stage) -> bool:
    """Whether the stage's model can be the codec of a later one."""
    return stage.codec is None and hasattr(stage.task.model, "to_latents")


def finish_autoencoder(stage: Stage, state: TrainState, workdir: str) -> Codec:
    """The trained autoencoder with the statistics of its latents, written to WORKDIR/NAME."""
    variables = whole({"params": state.ema, **state.rest})
    codec = Codec(stage.node.task.model, stage.task.model, variables)
    clips = int(stage.node.get("statistics", 256))
    bucket = max(stage.buckets, key=lambda b: b.frames)
    if clips:
        most = float(stage.node.get("weigh", 0.0))
        codec = with_statistics(codec, stage.raw, bucket.shape(stage.fps), clips, most=most)
    if first():
        codec.save(os.path.join(workdir, stage.name))
    return codec
