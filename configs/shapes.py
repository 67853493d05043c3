# SPDX-License-Identifier: Apache-2.0
"""The shipped model: text to video in the shapes world, a LinGen backbone on the shipped autoencoder's latents.

    python -m experiments.run --config=configs/shapes.py --workdir=runs/shapes

Most batches are images: a batch of them holds ten times as many scenes as a batch of clips, and what is slow to learn is
what the words look like. Noise is shifted far upward because the latents of small objects on plain ground are large
and few: where and what an object is gets decided at t > 0.8. What to expect is in the model card,
`jaxvid/assets/shapes/README.md`: hardware, time, losses, and what the reader of the shapes world makes of the result.
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

STEPS = 20_000


def get_config():
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.order = ("backbone",)
    s = ml_collections.ConfigDict()
    c.stages = ml_collections.ConfigDict(dict(backbone=s))

    s.codec = "shipped"
    s.init = ""
    s.source = call(ShapesSource, split="train", size=6144, seed=1, objects=(0.85, 0.15), events=0.0)
    s.held_out = call(ShapesSource, split="heldout", size=64, seed=2, objects=(0.85, 0.15), events=0.0)
    s.data = call(
        batches,
        buckets=(
            call(Bucket, frames=45, height=64, width=64, batch=8, weight=0.25),
            call(Bucket, frames=1, height=64, width=64, batch=96, weight=0.75),
        ),
        fps=16.0,
        seed=0,
        text_length=112,
        spans=(1,),
    )
    s.latents = ml_collections.ConfigDict(dict(batch=16, prefill=False))
    s.task = call(
        DiffusionTask,
        model=call(
            TextToVideo,
            dit=call(
                lingen, width=160, repeats=2, window=(4, 4, 4), expand=1, scan_head=80, channels=16, text_width=128
            ),
            text_encoder=call(ByteTextEncoder, width=128, layers=2, pool=4),
        ),
        process=call(Process, schedule=call(RectifiedFlow), predicts="x0", loss_on="flow"),
        levels=call(Vectorised, p=0.2, density=call(Density, kind="logit_normal", mean=2.2, std=1.2)),
        given=call(Mix, samplers=(call(Nothing), call(First), call(Prefix), call(Ends)), weights=(6.0, 1.5, 2.0, 0.5)),
        drop_text=0.1,
    )
    s.optimizer = call(adamw, rate=call(wsd, peak=1.5e-3, steps=STEPS, warmup=50, decay=0.3), decay=0.01, clip=1.0)
    s.train = call(Settings, steps=STEPS, ema=0.998, log_every=20, eval_every=2000, save_every=500, save_minutes=4.0)
    s.evaluate = ml_collections.ConfigDict(dict(batches=2))
    s.serve = ml_collections.ConfigDict(dict(steps=30, guidance=3.0, solver="dpmpp_2m", shift=6.0, seconds=4.0))
    return c
