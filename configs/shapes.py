# SPDX-License-Identifier: Apache-2.0
"""The shipped model: text to video in the shapes world, a LinGen backbone on the shipped autoencoder's latents.

    python -m experiments.run --config=configs/shapes.py --workdir=runs/shapes

Stage `backbone` learns looks from images and motions from clips of 3 s; stage `long` goes on with clips of 8 s in
which things change. What to expect is in the model card, `jaxvid/assets/shapes/README.md`: hardware, time, losses,
and what the reader of the shapes world makes of the result.
"""

import ml_collections

from jaxvid.config import call
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.data.shapes import ShapesSource
from jaxvid.diffusion.given import Ends, First, Nothing, Prefix
from jaxvid.diffusion.levels import Density, Mix, Vectorised
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import RectifiedFlow
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.text_to_video import TextToVideo
from jaxvid.models.video_dit import lingen
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw, wsd
from jaxvid.training.task import DiffusionTask


def stage(buckets, spans, steps, peak, warmup, clips, events, seed, **more):
    """Both stages are this: the same network and task, other clips."""
    s = ml_collections.ConfigDict(more)
    s.codec = "shipped"
    s.source = call(ShapesSource, split="train", size=clips, seed=seed, objects=(0.85, 0.15), events=events)
    s.held_out = call(ShapesSource, split="heldout", size=64, seed=2, objects=(0.85, 0.15), events=0.0)
    s.data = call(batches, buckets=buckets, fps=16.0, seed=0, text_length=144, spans=spans)
    s.latents = ml_collections.ConfigDict(dict(batch=16))
    s.task = call(
        DiffusionTask,
        model=call(
            TextToVideo,
            dit=call(
                lingen,
                width=160,
                repeats=2,
                window=(4, 4, 4),
                expand=1,
                scan_head=80,
                channels=16,
                text_width=128,
            ),
            text_encoder=call(ByteTextEncoder, width=128, layers=2, pool=4),
        ),
        process=call(Process, schedule=call(RectifiedFlow), predicts="x0", loss_on="flow"),
        levels=call(Vectorised, p=0.2, density=call(Density, kind="logit_normal", mean=0.8, std=1.0)),
        given=call(
            Mix, samplers=(call(Nothing), call(First), call(Prefix), call(Ends)), weights=(6.0, 1.5, 2.0, 0.5)
        ),
        drop_text=0.1,
    )
    s.optimizer = call(
        adamw, rate=call(wsd, peak=peak, steps=steps, warmup=warmup, decay=0.35), decay=0.01, clip=1.0
    )
    s.train = call(
        Settings, steps=steps, ema=0.998, log_every=20, eval_every=500, save_every=500, save_minutes=4.0
    )
    s.evaluate = ml_collections.ConfigDict(dict(batches=2))
    s.serve = ml_collections.ConfigDict(
        dict(steps=30, guidance=3.0, solver="dpmpp_2m", shift=3.0, seconds=4.0)
    )
    return s


def get_config():
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.order = ("backbone", "long")
    c.stages = ml_collections.ConfigDict()
    c.stages.backbone = stage(
        (
            call(Bucket, frames=45, height=64, width=64, batch=10, weight=0.6),
            call(Bucket, frames=1, height=64, width=64, batch=64, weight=0.4),
        ),
        spans=(1,),
        steps=2000,
        peak=1.5e-3,
        warmup=80,
        clips=1536,
        events=0.0,
        seed=1,
    )
    c.stages.long = stage(
        (call(Bucket, frames=125, height=64, width=64, batch=4),),
        spans=(4,),
        steps=300,
        peak=4e-4,
        warmup=20,
        clips=192,
        events=0.6,
        seed=3,
        init="backbone",
    )
    return c
