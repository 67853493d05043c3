# SPDX-License-Identifier: Apache-2.0
"""LinGen at four billion parameters, 512x512 at 16 fps: a config to plan with before anything is rented.

    python -m experiments.run --config=configs/lingen_4b.py --workdir=runs/lingen_4b --config.data.path=DIR
    jaxvid plan --config configs/lingen_4b.py --topology v5p:4x4x8
    jaxvid plan --config configs/lingen_4b.py --lengths 17,34,68

An 8x8x8 autoencoder, then the backbone on clips of 249 frames (32 latent frames, 32 768 tokens), one clip a device on 256
devices. It has not been trained: expect the plan's numbers, not a model. On fewer devices lower ``batch``, or raise
``accumulate``, which takes a batch in so many parts.

By the plan a step needs 39 of a v5p's 95 GiB on 4x4x8, with two clips a device, and 22 GiB with one clip on each device of a
v5e:16x16, which has 16: there let the plan try to spread frames and to take the batch in parts (``--tries 3``).
"""

import ml_collections

from jaxvid.config import call
from jaxvid.data.folder import FolderSource
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.diffusion.given import First, Nothing, Prefix
from jaxvid.diffusion.levels import Density, Mix, Vectorised
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import RectifiedFlow
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.text_to_video import TextToVideo
from jaxvid.models.video_dit import lingen_4b
from jaxvid.models.video_vae import VideoVAE
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw, constant
from jaxvid.training.task import AutoencoderTask, DiffusionTask


def get_config():
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.order = ("autoencoder", "backbone")
    c.mesh = ml_collections.ConfigDict(dict(data=1, fsdp=-1, tensor=1, sequence=1))
    c.data = ml_collections.ConfigDict(dict(path="videos"))
    c.batch = 256
    c.accumulate = 1
    c.stages = ml_collections.ConfigDict(dict(autoencoder=autoencoder(c), backbone=backbone(c)))
    return c


def clips(c, frames, size):
    source = dict(path=c.data.get_ref("path"), held_out=0.05)
    return dict(
        source=call(FolderSource, split="train", **source),
        held_out=call(FolderSource, split="heldout", **source),
        data=call(
            batches,
            buckets=(call(Bucket, frames=frames, height=size, width=size, batch=c.get_ref("batch")),),
            fps=16.0,
            seed=0,
            text_length=256,
        ),
        evaluate=dict(batches=2),
    )


def autoencoder(c):
    return dict(
        task=call(
            AutoencoderTask,
            model=call(
                VideoVAE,
                base=96,
                mult=(1, 2, 4, 4),
                temporal=(True, True, True),
                z=16,
                dtype="bfloat16",
                remat=True,
            ),
            weights=dict(l1=1.0, l2=1.0, kl=1e-5),
        ),
        optimizer=call(adamw, rate=call(constant, peak=1e-4, warmup=1000), decay=0.0),
        train=call(Settings, steps=200_000, ema=0.9999),
        statistics=1024,
        **clips(c, frames=17, size=256),
    )


def backbone(c):
    return dict(
        codec="autoencoder",
        task=call(
            DiffusionTask,
            model=call(
                TextToVideo,
                dit=call(lingen_4b, text_width=1024, remat=True),
                text_encoder=call(ByteTextEncoder, width=1024, layers=12, head=64, pool=4, dtype="bfloat16"),
            ),
            process=call(Process, schedule=call(RectifiedFlow), predicts="flow", loss_on="flow"),
            levels=call(Vectorised, p=0.2, density=call(Density, kind="logit_normal", mean=1.0)),
            given=call(Mix, samplers=(call(Nothing), call(First), call(Prefix)), weights=(6.0, 1.0, 3.0)),
        ),
        optimizer=call(adamw, rate=call(constant, peak=1e-4, warmup=2000)),
        train=call(Settings, steps=300_000, ema=0.9999, accumulate=c.get_ref("accumulate")),
        serve=dict(steps=30, guidance=5.0, solver="unipc", shift=5.0, seconds=15.5),
        **clips(c, frames=249, size=512),
    )
