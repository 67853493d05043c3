# SPDX-License-Identifier: Apache-2.0
"""Your own videos: an autoencoder, then a LinGen backbone on its latents, both small.

    python -m experiments.run --config=configs/folder.py --workdir=runs/folder --config.data.path=DIR

DIR is a video, a folder or a manifest (see `jaxvid.data.scan`); the last fifth of every file is held out. On two CPU
cores the run takes about ten minutes, both held-out losses fall, and `runs/folder/report.md` shows the reconstruction.
Then go on from a clip of yours:

    jaxvid generate "a video" --checkpoint runs/folder --video DIR/CLIP.mp4 --seconds 4 --out longer.mp4

For something worth looking at give it hours and an accelerator: --config.minutes.autoencoder=600
--config.minutes.backbone=2000, more videos, and larger widths.
"""

import ml_collections

from jaxvid.config import call
from jaxvid.data.folder import FolderSource
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.diffusion.given import First, Nothing, Prefix
from jaxvid.diffusion.levels import Density, Mix, Vectorised
from jaxvid.diffusion.process import Process
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.text_to_video import TextToVideo
from jaxvid.models.vae_start import LinearStart
from jaxvid.models.video_dit import lingen
from jaxvid.models.video_vae import shapes
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw, constant
from jaxvid.training.task import AutoencoderTask, DiffusionTask


def get_config():
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.order = ("autoencoder", "backbone")
    c.data = ml_collections.ConfigDict(dict(path="videos", fps=12.0, size=64))
    c.minutes = ml_collections.ConfigDict(dict(autoencoder=5.0, backbone=3.0))
    c.stages = ml_collections.ConfigDict(dict(autoencoder=autoencoder(c), backbone=backbone(c)))
    return c


def clips(c, frames, batch):
    """What is read: the same files for training and, their last fifth, for the held-out loss."""
    size = c.data.get_ref("size")
    source = dict(path=c.data.get_ref("path"), held_out=0.2, stride=0.25)
    return dict(
        source=call(FolderSource, split="train", **source),
        held_out=call(FolderSource, split="heldout", **source),
        data=call(
            batches,
            buckets=(call(Bucket, frames=frames, height=size, width=size, batch=batch),),
            fps=c.data.get_ref("fps"),
            seed=0,
        ),
        evaluate=dict(batches=2),
    )


def autoencoder(c):
    return dict(
        task=call(
            AutoencoderTask, model=call(shapes), weights=dict(l2=2.0, kl=5e-4), start=call(LinearStart)
        ),
        optimizer=call(adamw, rate=call(constant, peak=2e-4, warmup=100), decay=0.0),
        train=call(Settings, steps=1_000_000, minutes=c.minutes.get_ref("autoencoder"), ema=0.99),
        statistics=64,
        **clips(c, frames=9, batch=4),
    )


def backbone(c):
    return dict(
        codec="autoencoder",
        task=call(
            DiffusionTask,
            model=call(
                TextToVideo,
                dit=call(lingen, width=128, repeats=1, channels=16, text_width=64),
                text_encoder=call(ByteTextEncoder, width=64, layers=1),
            ),
            process=call(Process, predicts="x0", loss_on="flow"),
            levels=call(Vectorised, p=0.2, density=call(Density, kind="logit_normal", mean=0.5)),
            given=call(Mix, samplers=(call(Nothing), call(First), call(Prefix)), weights=(1.0, 1.0, 2.0)),
        ),
        optimizer=call(adamw, rate=call(constant, peak=1e-3, warmup=50)),
        train=call(Settings, steps=1_000_000, minutes=c.minutes.get_ref("backbone"), ema=0.995),
        samples=dict(prompts=("a video",), extend=17, seconds=4.0),
        serve=dict(steps=20, guidance=1.0, solver="dpmpp_2m", shift=2.0),
        **clips(c, frames=29, batch=8),
    )
