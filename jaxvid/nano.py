# SPDX-License-Identifier: Apache-2.0
"""From nothing to a model of one's own in minutes: ``jaxvid.quickstart(minutes=3)``.

`get_config` is the recipe, written like those of `configs/`, so that the same run can be had on the command line:

    jaxvid train --config=jaxvid/nano.py --workdir=runs/quickstart

Its world is one object with a plain caption, its autoencoder the shipped one, so that all the time goes into the backbone,
which begins from chance. (The module is not called like its function: the one would hide the other in ``jaxvid``.)
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from typing import Any

from jaxvid.cli.main import use_compilation_cache
from jaxvid.cli.progress import Progress, clock_time
from jaxvid.cli.train import train
from jaxvid.cli.train_options import config_changes
from jaxvid.clip import Clip
from jaxvid.config import call, from_json, to_json
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.data.shapes import ShapesSource
from jaxvid.diffusion.common_noise import CommonNoise
from jaxvid.diffusion.levels import Density, Vectorised
from jaxvid.diffusion.process import Process
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.text_to_video import TextToVideo
from jaxvid.models.video_dit import lingen
from jaxvid.pipeline import Pipeline
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw, constant
from jaxvid.training.task import DiffusionTask
from jaxvid.types import InputError

PROMPT = "a large yellow circle slides left and right on a black background"
FPS, FRAMES = 16.0, 29  # 8 latent frames, which the network sees at once
MAY_DIFFER = "stages.backbone.train.minutes"  # between a run and the call that continues it


def get_config(minutes: float = 3.0, seed: int = 0) -> Any:
    """The recipe: a LinGen backbone of four layers and width 128; half of the batches are images, which show more scenes."""
    world = dict(objects=(1.0, 0.0), events=0.0, paraphrase=False)
    stage = dict(
        codec="shipped",
        source=call(ShapesSource, split="train", size=4096, seed=1, **world),
        held_out=call(ShapesSource, split="heldout", size=64, seed=2, **world),
        data=call(
            batches,
            buckets=(
                call(Bucket, frames=1, height=64, width=64, batch=64),
                call(Bucket, frames=FRAMES, height=64, width=64, batch=8, clips=512),
            ),
            fps=FPS,
            seed=0,
            text_length=80,
            spans=(1,),
        ),
        # clips are encoded when they are first needed: how many that will be, nobody knows before
        latents=dict(batch=16, prefill=False),
        task=call(
            DiffusionTask,
            model=call(
                TextToVideo,
                dit=call(
                    lingen,
                    width=128,
                    repeats=1,
                    window=(4, 4, 4),
                    expand=1,
                    channels=16,
                    text_width=64,
                ),
                text_encoder=call(ByteTextEncoder, width=64, layers=1, pool=4, runs=(3, 5, 8)),
            ),
            process=call(
                Process, predicts="x0", loss_on="flow", common=call(CommonNoise, share=0.5, every=16)
            ),
            levels=call(Vectorised, p=0.2, density=call(Density, kind="logit_normal", mean=1.3, std=1.5)),
        ),
        # a constant rate and a short average: the run must be able to end at any step
        optimizer=call(adamw, rate=call(constant, peak=2e-3, warmup=20), decay=0.01),
        train=call(Settings, steps=1_000_000, minutes=float(minutes), ema=0.98, log_every=10),
        evaluate=dict(batches=1),
        samples=dict(never=True),
        serve=dict(steps=20, guidance=2.0, solver="dpmpp_2m", shift=3.0),
    )
    tree = dict(seed=seed, order=("backbone",), stages=dict(backbone=stage))
    return from_json(to_json(tree))


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """What came of it.

    pipeline: the trained model, ready to be called. video: what it made of the prompt, saved beside the run.
    workdir: the run's directory, for `Pipeline.load`. report: of the training (``step``, held-out ``history``, ``times``).
    """

    pipeline: Pipeline
    video: Clip
    workdir: pathlib.Path
    report: dict[str, Any]

    def show(self):
        """The video, playing: the last expression of a notebook cell."""
        return self.video.show()

    def __repr__(self) -> str:
        return f"Quickstart({self.report['step']} steps in {self.workdir}; {self.video!r})"


def quickstart(
    minutes: float = 3.0,
    *,
    prompt: str = PROMPT,
    workdir: str | os.PathLike[str] = "runs/quickstart",
    seed: int = 0,
) -> Quickstart:
    """Trains a nano text-to-video model on the shapes world and makes a video with it.

    minutes: of training. Compiling, and at the end sampling, come on top and are told apart; compiled programs are kept for
    the next time. prompt: what the video shows. workdir: where the run goes; called once more with more minutes,
    it goes on from there, also after it was interrupted. seed: of the weights and of everything drawn in training.

    Progress goes to standard error, and at the end where everything is. Raises `InputError`, for a directory that
    holds something else among other things.
    """
    if not isinstance(minutes, (int, float)) or not 0 < minutes < float("inf"):
        raise InputError(f"minutes={minutes!r} is no time to train in; give a positive number, such as 3")
    folder, config, progress = pathlib.Path(workdir), get_config(minutes, seed), Progress()
    _same_recipe(folder, to_json(config))
    use_compilation_cache()
    begun = time.monotonic()
    try:
        progress.note(
            f"training a nano model for {clock_time(60 * minutes)} in {folder}; compiling comes on top"
        )
        train(config, os.fspath(folder), [f"jaxvid.quickstart(minutes={minutes:g})"], True, progress)
        report = json.loads((folder / "backbone" / "done.json").read_text(encoding="utf-8"))
        pipeline = Pipeline.load(folder)
        progress.note(f"sampling: {prompt}")
        video = pipeline(prompt, seconds=FRAMES / FPS, seed=seed)  # of the length that it was trained on
        path = video.save(folder / "quickstart.mp4")
        progress.note(
            f"{report['step']} steps, {clock_time(time.monotonic() - begun)} in all; the video is {path},"
            f" the model jaxvid.Pipeline.load({str(folder)!r})"
        )
    finally:
        progress.close()
    return Quickstart(pipeline, video, folder, report)


def _same_recipe(folder: pathlib.Path, text: str) -> None:
    """Raises InputError when the directory's run is not one that these minutes could go on with."""
    path = folder / "config.json"
    if not path.is_file():
        return
    before = to_json(from_json(path.read_text(encoding="utf-8")))
    changed = [line for line in config_changes(before, text) if not line.startswith(f"{MAY_DIFFER}:")]
    if changed:
        raise InputError(
            f"{folder} holds another run ({'; '.join(changed[:3])}); give another workdir, or remove it"
        )
