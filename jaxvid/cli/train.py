# SPDX-License-Identifier: Apache-2.0
"""Trains stage after stage, and continues a run that was interrupted. The command line is in `train_options`, what a stage
is in `train_stage`. A run's directory holds

    config.json command.txt env.json report.md
    STAGE/checkpoints STAGE/tensorboard STAGE/samples
    codec/            the autoencoder that its backbone was trained on
    latents/          the cache of latents
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxvid.cli import tuned
from jaxvid.cli.codec import Codec, load_codec, make_codec, write_text
from jaxvid.cli.join import join_if_many
from jaxvid.cli.main import use_compilation_cache
from jaxvid.cli.progress import Progress
from jaxvid.cli.train_options import config_changes, parse
from jaxvid.cli.train_report import write_report
from jaxvid.cli.train_stage import (
    bad_files,
    finish_autoencoder,
    is_autoencoder,
    make_stage,
    train_stage,
)
from jaxvid.config import from_json, to_json
from jaxvid.sharding import make_mesh, put_batch
from jaxvid.training.loop import bucket_name
from jaxvid.training.processes import first, on_host, together
from jaxvid.training.step import make_train_step, state_sharding
from jaxvid.types import InputError

PACKAGES = ("jaxvid", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")


def main(argv: Sequence[str]) -> None:
    """Runs the command; ``argv[0]`` is its name. Raises InputError, or KeyboardInterrupt when it was interrupted."""
    options, config = parse(argv)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # experiments.* and configs.* are named from the checkout
    use_compilation_cache()
    many = join_if_many()
    progress = Progress() if first() else Progress(io.StringIO())  # one voice is enough
    if many:
        progress.note(f"{jax.process_count()} processes, {jax.device_count()} devices")
    try:
        if options.dry_run:
            dry_run(config, options.workdir, print)
        else:
            train(config, options.workdir, list(argv), options.allow_config_change, progress)
    finally:
        progress.close()


def train(config: Any, workdir: str, command: list[str], allow_change: bool, progress: Progress) -> None:
    """Trains every stage that is not done yet, and writes the report."""
    workdir = os.path.abspath(workdir)
    say = progress.note
    text = to_json(config)
    if first():
        _begin(workdir, text, command, allow_change, say)
    together("begin")
    try:
        _train(config, text, workdir, command, progress)
    except KeyboardInterrupt as stop:
        if not hasattr(stop, "__notes__"):
            stop.add_note(f"the same command continues: {_spell(command)}")
        raise
    progress.close()
    if first():
        print(os.path.join(workdir, "report.md"), flush=True)


def _train(config: Any, text: str, workdir: str, command: list[str], progress: Progress) -> None:
    say = progress.note
    mesh = make_mesh(**dict(config.get("mesh") or {}))
    order = list(config.order)
    for place, name in enumerate(order):
        node, done = config.stages[name], os.path.join(workdir, name, "done.json")
        this = json.loads(to_json(node))
        if os.path.isfile(done) and _read(done).get("config") == this:
            say(f"stage {name} is done")
            continue
        say(f"stage {name} ({place + 1} of {len(order)})")
        codec = None
        if node.get("text") and not os.path.exists(node.text):
            raise InputError(f"{node.text} is not there; make it with jaxvid import ... --to {node.text}")
        if node.get("codec"):
            codec = load_codec(node.codec, workdir, order[:place])
            if first():
                codec.save(os.path.join(workdir, "codec"))
        begun = time.monotonic()
        with open_stage(name, node, codec, os.path.join(workdir, "latents")) as stage:
            tell_data(stage, say)
            bad = bad_files(stage.raw, stage.raw_held_out)
            tell_bad(bad, "cannot be used and is left out", say)
            result, report = train_stage(
                stage,
                workdir,
                mesh,
                seed=int(config.get("seed", 0)) + place,
                meta={"config": text, "env": environment(), "stage": name},
                trackers=dict(config.get("trackers") or {}),
                show=_shower(progress, name),
                say=say,
            )
            if not result.finished:
                stop = KeyboardInterrupt()
                stop.add_note(f"saved at step {result.step}; the same command continues: {_spell(command)}")
                raise stop
            if stage.captions is not None:
                state = on_host(result.state)
                if first():
                    tuned.finish(stage, state, workdir)
            if is_autoencoder(stage):
                made = finish_autoencoder(stage, result.state, workdir)
                if first():
                    made.save(os.path.join(workdir, "codec"))
            late = {
                path: why for path, why in bad_files(stage.raw, stage.raw_held_out).items() if path not in bad
            }
            tell_bad(late, "could not be read on the way", say)
        report = {**report, "bad": {**bad, **late}, "config": this, "seconds": time.monotonic() - begun}
        if first():
            write_text(done, json.dumps(report, indent=1))
            write_report(workdir, [_read(os.path.join(workdir, s, "done.json")) for s in order[: place + 1]])
        together(f"stage {name}")


@contextlib.contextmanager
def open_stage(name: str, node: Any, codec: Codec | None, cache: str):
    """A stage whose reading threads end with it."""
    stage = make_stage(name, node, codec, cache)
    try:
        yield stage
    finally:
        stage.data.close()


def dry_run(config: Any, workdir: str | None, say: Callable[[str], None]) -> None:
    """Builds every stage, shows its parameters and a batch, and compiles its step; writes nothing that stays."""
    import tempfile

    mesh = make_mesh(**dict(config.get("mesh") or {}))
    order, known = list(config.order), {}
    for place, name in enumerate(order):
        node, codec = config.stages[name], None
        if node.get("codec") in order[:place]:
            codec = untrained(config.stages[node.codec].task.model)
        elif node.get("codec") and node.get("blank") and not os.path.exists(node.codec):
            codec = untrained(node.blank.codec)
        elif node.get("codec"):
            codec = load_codec(node.codec, workdir or ".", ())
        with tempfile.TemporaryDirectory() as cache, open_stage(name, node, codec, cache) as stage:
            batch = next(stage.data)
            say(f"stage {name}: {bucket_name(batch)}")
            tell_data(stage, say)
            bad = bad_files(stage.raw, stage.raw_held_out)
            new = {path: why for path, why in bad.items() if path not in known}
            known.update(new)
            tell_bad(new, "cannot be used and is left out", say)
            shapes, shardings = state_sharding(mesh, stage.task, stage.optimizer, batch)
            say(table(shapes.params))
            step = make_train_step(
                stage.task,
                stage.optimizer,
                mesh,
                shardings,
                ema=stage.settings.ema,
                accumulate=stage.settings.accumulate,
            )
            for key, leaf in _leaves(batch):
                say(f"  {key:<16} {leaf.dtype} {list(leaf.shape)}")
            begun = time.monotonic()
            compiled = step.lower(shapes, jax.eval_shape(lambda b: b, put_batch(batch, mesh))).compile()
            said = f"compiled the step in {time.monotonic() - begun:.1f} s"
            memory = compiled.memory_analysis()
            if memory is not None:
                said += f", which needs {(memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20:.0f} MB"
            say(f"{said}\n")
    say(f"the config:\n{to_json(config).rstrip()}")


def tell_data(stage: Any, say: Callable[[str], None]) -> None:
    """What a stage learns from, and what it is held against."""
    for what, source in (("learns from", stage.raw), ("held out", stage.raw_held_out)):
        if source is not None:
            summary = getattr(source, "summary", None)
            say(f"{what}: {f'{len(source)} clips' if summary is None else summary()}")


def tell_bad(bad: dict[str, str], how: str, say: Callable[[str], None]) -> None:
    """Names files that were of no use: how many, and the first ten with their reasons."""
    for number, why in enumerate(list(bad.values())[:10], 1):
        say(f"file {number} of {len(bad)} that {how}: {why}")


def table(params: Any) -> str:
    """Parameters counted by the names at the top of the tree."""
    rows = {}
    for top, below in params.items():
        for name, leaf in below.items() if hasattr(below, "items") else [("", below)]:
            rows[f"{top}/{name}".rstrip("/")] = sum(math.prod(x.shape) for x in jax.tree.leaves(leaf))
    width = max(map(len, rows))
    lines = [f"  {name:<{width}} {count:>14,}" for name, count in rows.items()]
    return "\n".join([*lines, f"  {'parameters':<{width}} {sum(rows.values()):>14,}"])


def environment() -> dict[str, Any]:
    """Versions and devices, as they are stored beside a run."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    devices = [d.device_kind for d in jax.devices()]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "devices": devices,
    }


def _begin(
    workdir: str, text: str, command: list[str], allow_change: bool, say: Callable[[str], None]
) -> None:
    """Makes the run's directory, or holds the config against that of the run that is there."""
    path = os.path.join(workdir, "config.json")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            before = to_json(from_json(file.read()))
        changed = config_changes(before, text)
        # what a run learns does not depend on the devices among which it is shared
        other = [line for line in changed if not line.startswith("mesh")]
        if other and not allow_change and _trained(workdir, json.loads(before)):
            raise InputError(
                f"{workdir} holds a run with another config: {'; '.join(other[:8])}; "
                "give --allow_config_change to continue it so, or another --workdir"
            )
        for line in changed:
            say(f"config changed: {line}")
    elif os.path.isdir(workdir) and any(not n.startswith(".") for n in os.listdir(workdir)):
        raise InputError(f"{workdir} is not empty and holds no run (no config.json); give another --workdir")
    try:
        os.makedirs(workdir, exist_ok=True)
        write_text(path, text)
        write_text(os.path.join(workdir, "env.json"), json.dumps(environment(), indent=1) + "\n")
        with open(os.path.join(workdir, "command.txt"), "a", encoding="utf-8") as file:
            file.write(f"{_spell(command)}\n")
    except OSError as e:
        raise InputError(f"cannot write to {workdir} ({e.strerror}); give a writable --workdir") from None


def _trained(workdir: str, config: dict[str, Any]) -> bool:
    """Whether there is anything in a run that another config could spoil: a checkpoint."""
    folders = [os.path.join(workdir, name, "checkpoints") for name in config.get("order") or ()]
    return any(os.path.isdir(folder) and os.listdir(folder) for folder in folders)


def _spell(command: list[str]) -> str:
    """A command line as it is typed; its first word may be two."""
    return " ".join([command[0], shlex.join(command[1:])])


def untrained(node: Any) -> Codec:
    """A codec of the right shape with random weights, for a dry run."""
    from jaxvid.cli.codec import fresh_variables
    from jaxvid.config import build

    shapes = fresh_variables(build(node))
    rng = np.random.default_rng(0)  # of numpy: nothing is compiled
    leaves, tree = jax.tree.flatten(shapes)
    values = [(0.02 * rng.standard_normal(s.shape)).astype(s.dtype) for s in leaves]
    variables = tree.unflatten(values)
    variables["stats"] = {"mean": 0 * variables["stats"]["mean"], "std": 1 + 0 * variables["stats"]["std"]}
    return make_codec(node, variables)


def _leaves(batch: Any) -> list[tuple[str, Any]]:
    video, cond = batch
    return [
        *((f"video.{k}", getattr(video, k)) for k in ("x", "sec", "ok")),
        *((f"cond.{k}", v) for k, v in cond.items()),
    ]


def _shower(progress: Progress, stage: str) -> Callable[[int, int, str], None]:
    """Progress of the loop to a bar; beside it a line with the loss every half minute."""
    said = [time.monotonic()]

    def show(done: int, total: int, note: str) -> None:
        if note.startswith("loss") and time.monotonic() - said[0] > 30:
            said[0] = time.monotonic()
            progress.note(f"step {done}: {note}")
        if note.startswith("loss"):
            progress.update(stage, done, total)
        else:
            progress.update(note, done, total, "clips")

    return show


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        return json.load(file)
