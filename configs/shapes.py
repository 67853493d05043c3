# SPDX-License-Identifier: Apache-2.0
"""The shipped model: text to video in the shapes world, a LinGen backbone on the shipped autoencoder's latents.

    python -m experiments.run --config=configs/shapes.py --workdir=runs/shapes

Two batches of five are images, for a batch of them holds ten times as many scenes as a batch of clips, and what is slow
to learn is what the words look like. Noise leans upward because objects are few and large on plain ground: where an
object is gets decided at t > 0.8, what it is below. So that frames do not decide that each for itself, half of the noise
is common to neighbouring ones, and in half of the clips noise never falls along the clip (FoPP), as in the sampler: a
window slides along the video (`sliding`), and each frame is decided in sight of cleaner ones.

What to expect is in the model card, `jaxvid/assets/shapes/README.md`: hardware, time, losses, and what the reader of
the shapes world makes of the result.
"""

import ml_collections

from jaxvid.config import call
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.data.shapes import ShapesSource
from jaxvid.diffusion.common_noise import CommonNoise
from jaxvid.diffusion.given import Ends, First, Nothing, Prefix
from jaxvid.diffusion.levels import Density, FoPP, Mix, Vectorised
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import RectifiedFlow
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.text_to_video import TextToVideo
from jaxvid.models.video_dit import lingen
from jaxvid.nn.refine import Refine
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw, cosine
from jaxvid.training.task import DiffusionTask

STEPS = 12_000


def get_config():
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.order = ("backbone",)
    s = ml_collections.ConfigDict(dict(codec="shipped", init=""))
    c.stages = ml_collections.ConfigDict(dict(backbone=s))

    s.source = call(ShapesSource, split="train", size=24_576, seed=1, objects=(0.85, 0.15), events=0.0)
    s.held_out = call(ShapesSource, split="heldout", size=64, seed=2, objects=(0.85, 0.15), events=0.0)
    s.data = call(
        batches,
        buckets=(
            call(Bucket, frames=45, height=64, width=64, batch=8, weight=0.65, clips=8192),
            call(Bucket, frames=1, height=64, width=64, batch=96, weight=0.35),
        ),
        fps=16.0,
        seed=0,
        text_length=112,
        spans=(1,),
    )
    s.latents = ml_collections.ConfigDict(dict(batch=16, prefill=False, dir=""))
    density = call(Density, kind="logit_normal", mean=1.3, std=1.5)
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
                refine=call(Refine, width=96, blocks=2),
            ),
            text_encoder=call(ByteTextEncoder, width=128, layers=1, pool=4, runs=(3, 5, 8)),
        ),
        process=call(
            Process,
            schedule=call(RectifiedFlow),
            predicts="x0",
            loss_on="flow",
            common=call(CommonNoise, share=0.5, every=16),
        ),
        levels=call(
            Mix,
            samplers=(call(Vectorised, p=0.2, density=density), call(FoPP, density=density)),
            weights=(1.0, 1.0),
        ),
        given=call(
            Mix, samplers=(call(Nothing), call(First), call(Prefix), call(Ends)), weights=(6.0, 1.5, 2.0, 0.5)
        ),
        drop_text=0.1,
    )
    rate = call(cosine, peak=1.1e-3, steps=STEPS, warmup=100, end=0.02)
    s.optimizer = call(adamw, rate=rate, decay=0.01, clip=1.0)
    s.train = call(
        Settings, steps=STEPS, ema=0.998, log_every=50, eval_every=2000, save_every=500, save_minutes=4.0
    )
    s.evaluate = ml_collections.ConfigDict(dict(batches=2))
    s.serve = ml_collections.ConfigDict(
        dict(steps=30, guidance=2.5, solver="dpmpp_2m", shift=6.0, seconds=4.0, method="sliding", window=16)
    )
    return c
