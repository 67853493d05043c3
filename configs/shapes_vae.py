# SPDX-License-Identifier: Apache-2.0
"""The shipped autoencoder: 4x8x8, 16 channels, learnt in the shapes world.

    python -m experiments.run --config=configs/shapes_vae.py --workdir=runs/shapes_vae

It starts as the best linear codec of its first batch, learns on windows of 32x32 around objects (images, and clips of
9 frames), then its averaged parameters go on with whole frames of longer clips. On two free CPU cores: 6 steps a
second of windows, 2.4 of whole clips. What the shipped weights reach, and how far their own run was from this file,
is in the model card, `jaxvid/assets/shapes/README.md`.
"""

import ml_collections

from jaxvid.config import call
from jaxvid.data.crops import Crops
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.data.shapes import ShapesSource
from jaxvid.models.vae_start import LinearStart
from jaxvid.models.video_vae import shapes
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw, cosine
from jaxvid.training.task import AutoencoderTask

# Mean squares count small objects early, which L1 passes over; this much KL keeps noise of a few percent in the latents.
WEIGHTS = dict(l1=1.0, l2=2.0, haar=0.1, gradient=0.1, structure=0.1, kl=5e-4)


def stage(buckets, steps, peak, warmup, **more):
    """Both stages are this: the same model and losses, other clips."""
    s = ml_collections.ConfigDict(more)
    s.held_out = call(ShapesSource, split="heldout", size=64, seed=2)
    s.data = call(batches, buckets=buckets, fps=16.0, seed=0)
    s.task = call(AutoencoderTask, model=call(shapes), weights=WEIGHTS, start=call(LinearStart))
    s.optimizer = call(
        adamw, rate=call(cosine, peak=peak, steps=steps, warmup=warmup, end=0.03), b2=0.99, decay=0.0
    )
    s.train = call(
        Settings, steps=steps, ema=0.997, log_every=50, eval_every=500, save_every=500, save_minutes=4.0
    )
    s.evaluate = ml_collections.ConfigDict(dict(batches=2))
    s.statistics = 1024
    s.weigh = 1.5
    return s


def get_config():
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.order = ("windows", "whole")
    c.stages = ml_collections.ConfigDict()
    c.stages.windows = stage(
        (
            call(Bucket, frames=9, height=32, width=32, batch=8, weight=0.67),
            call(Bucket, frames=1, height=32, width=32, batch=16, weight=0.33),
        ),
        steps=4000,
        peak=2e-4,
        warmup=250,
        source=call(Crops, source=call(ShapesSource, split="train", seed=3)),
        init="",
    )
    c.stages.whole = stage(
        (
            call(Bucket, frames=17, height=64, width=64, batch=2, weight=0.75),
            call(Bucket, frames=1, height=64, width=64, batch=8, weight=0.25),
        ),
        steps=3000,
        peak=1e-4,
        warmup=100,
        source=call(ShapesSource, split="train", seed=4),
        init="windows",
    )
    return c
