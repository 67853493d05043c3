# SPDX-License-Identifier: Apache-2.0
"""The shipped model: text to video in the shapes world, a LinGen backbone on the shipped autoencoder's latents.

    python -m experiments.run --config=configs/shapes.py --workdir=runs/shapes

First single scenes: most batches are images, for a batch of them holds ten times as many scenes as a batch of clips,
and what is slow to learn is what the words look like. Then longer clips in which things change, with a caption per time
span. Noise is shifted far upward because the latents of small objects on plain ground are large and few: where and
what an object is gets decided at t > 0.8. What to expect is in the model card, `jaxvid/assets/shapes/README.md`:
hardware, time, losses, and what the reader of the shapes world makes of the result.
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
from jaxvid.training.optimizer import adamw, cosine, wsd
from jaxvid.training.task import DiffusionTask


def stage(buckets, steps, rate, *, objects, events, spans, ema, **more):
    """Both stages are this: the same model and process, other clips."""
    s = ml_collections.ConfigDict(dict(codec="shipped", init="") | more)
    s.source = call(ShapesSource, split="train", size=24_576, seed=1, objects=objects, events=events)
    s.held_out = call(ShapesSource, split="heldout", size=64, seed=2, objects=objects, events=events)
    s.data = call(batches, buckets=buckets, fps=16.0, seed=0, text_length=112, spans=spans)
    s.latents = ml_collections.ConfigDict(dict(batch=16, prefill=False, dir=""))
    s.task = call(
        DiffusionTask,
        model=call(
            TextToVideo,
            dit=call(
                lingen,
                width=256,
                repeats=1,
                window=(4, 4, 4),
                expand=1,
                head=64,
                scan_head=128,
                channels=16,
                text_width=128,
            ),
            text_encoder=call(ByteTextEncoder, width=128, layers=1, pool=4, runs=(3, 5, 8)),
        ),
        process=call(Process, schedule=call(RectifiedFlow), predicts="x0", loss_on="flow"),
        levels=call(Vectorised, p=0.2, density=call(Density, kind="logit_normal", mean=2.2, std=1.2)),
        given=call(
            Mix, samplers=(call(Nothing), call(First), call(Prefix), call(Ends)), weights=(6.0, 1.5, 2.0, 0.5)
        ),
        drop_text=0.1,
    )
    s.optimizer = call(adamw, rate=rate, decay=0.01, clip=1.0)
    s.train = call(
        Settings, steps=steps, ema=ema, log_every=50, eval_every=2000, save_every=500, save_minutes=4.0
    )
    s.evaluate = ml_collections.ConfigDict(dict(batches=2))
    s.serve = ml_collections.ConfigDict(
        dict(steps=30, guidance=3.0, solver="dpmpp_2m", shift=6.0, seconds=4.0)
    )
    return s


def get_config():
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.order = ("scenes", "stories")
    c.stages = ml_collections.ConfigDict()
    c.stages.scenes = stage(
        (
            call(Bucket, frames=45, height=64, width=64, batch=8, weight=0.35, clips=4096),
            call(Bucket, frames=1, height=64, width=64, batch=96, weight=0.65),
        ),
        12_000,
        call(wsd, peak=1e-3, steps=12_000, warmup=200, decay=0.1),
        objects=(0.85, 0.15),
        events=0.0,
        spans=(1,),
        ema=0.999,
    )
    c.stages.stories = stage(
        (
            call(Bucket, frames=189, height=64, width=64, batch=2, weight=0.3, clips=512),
            call(Bucket, frames=45, height=64, width=64, batch=8, weight=0.3, clips=4096),
            call(Bucket, frames=1, height=64, width=64, batch=96, weight=0.4),
        ),
        3000,
        call(cosine, peak=6e-4, steps=3000, warmup=50, end=0.03),
        objects=(0.8, 0.2),
        events=0.5,
        spans=(1, 4),
        ema=0.998,
        init="scenes",
    )
    return c
