# SPDX-License-Identifier: Apache-2.0
"""Full fine-tuning of Wan 2.1 T2V 1.3B on your own videos, at 480x832, 81 frames, 16 fps.

    jaxvid import hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers --to wan
    python -m experiments.run --config=configs/wan_1_3b.py --workdir=runs/wan --config.checkpoint=wan --config.data.path=DIR
    jaxvid generate "..." --checkpoint runs/wan/tune/bundle --out out.mp4
    jaxvid plan --config configs/wan_1_3b.py --topology h200:8

Clips go through the autoencoder and captions through UMT5 once, into caches by content; training sees neither network.
The plan and --dry_run need no checkpoint. Run at toy size; at this size the programs were traced, nothing was trained.
"""

import ml_collections

from jaxvid.config import call
from jaxvid.data.folder import FolderSource
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.diffusion.levels import Density, OnePerClip
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import RectifiedFlow
from jaxvid.models.video_vae import wan21
from jaxvid.models.wan_dit import wan21_1_3b
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw, constant
from jaxvid.training.task import DiffusionTask


def get_config():
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.order = ("tune",)
    c.checkpoint = "wan"  # the directory that jaxvid import made
    c.mesh = ml_collections.ConfigDict(dict(data=1, fsdp=-1, tensor=1, sequence=1))
    c.data = ml_collections.ConfigDict(dict(path="videos"))
    c.batch = 8
    c.accumulate = 1
    c.stages = ml_collections.ConfigDict(dict(tune=tune(c)))
    return c


def tune(c):
    source = dict(path=c.data.get_ref("path"), held_out=0.05)
    return dict(
        codec=c.get_ref("checkpoint"),
        text=c.get_ref("checkpoint"),
        init=c.get_ref("checkpoint"),
        blank=dict(codec=call(wan21), text=4096),
        latents=dict(batch=1, prefill=True),
        source=call(FolderSource, split="train", **source),
        held_out=call(FolderSource, split="heldout", **source),
        data=call(
            batches,
            buckets=(call(Bucket, frames=81, height=480, width=832, batch=c.get_ref("batch")),),
            fps=16.0,
            seed=0,
            text_length=512,
            spans=(1,),
        ),
        evaluate=dict(batches=2),
        task=call(
            DiffusionTask,
            model=call(wan21_1_3b, dtype="bfloat16", remat=True),
            process=call(Process, schedule=call(RectifiedFlow), predicts="flow", loss_on="flow"),
            levels=call(OnePerClip, density=call(Density, kind="logit_normal", shift=3.0)),
            drop_text=0.1,
        ),
        optimizer=call(adamw, rate=call(constant, peak=1e-5, warmup=200), decay=0.01),
        train=call(Settings, steps=2000, ema=0.999, accumulate=c.get_ref("accumulate"), save_every=500),
        serve=dict(steps=50, guidance=6.0, solver="unipc", shift=8.0),
    )
