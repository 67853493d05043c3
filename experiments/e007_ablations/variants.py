# SPDX-License-Identifier: Apache-2.0
"""One recipe, and networks that differ in one thing.

The recipe is that of `configs/shapes.py` at half the width and with one object a clip. Its rate is constant and its average
short, since a run ends when its time is over. Latents are made beforehand and are the same for all: the time of a run
goes into learning alone.
"""

from __future__ import annotations

from typing import Any

from configs.shapes import get_config
from jaxvid.config import call
from jaxvid.models.video_dit import VideoDiT, dit, lingen
from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.nn.mixers.mate import Mate
from jaxvid.nn.mixers.window import Window
from jaxvid.training.optimizer import adamw, constant

LAYERS = 4
CLIPS = 8192
SHAPE = dict(width=128, head=32, channels=16, text_width=64)
SCAN = dict(head=64, state=32, expand=1)
TESA = dict(window=(4, 4, 4), head=32)
MATE = dict(repeats=LAYERS // 4, window=TESA["window"], scan_head=SCAN["head"], state=SCAN["state"], expand=1)

NETWORKS = {
    "LinGen": call(lingen, **MATE, **SHAPE),
    "without review tokens": call(lingen, **{**MATE, "review": None}, **SHAPE),
    "without TESA": call(
        VideoDiT, mixers=tuple(call(Mamba, order=k, **SCAN) for k in range(LAYERS)), **SHAPE
    ),
    "one scan order": call(
        VideoDiT,
        mixers=tuple(
            call(Mate, far=call(Mamba, order=0, **SCAN), near=call(Window, shifted=k % 2 == 1, **TESA))
            for k in range(LAYERS)
        ),
        **SHAPE,
    ),
    "DiT of equal width": call(dit, layers=LAYERS, **SHAPE),
    "DiT of equal parameters": call(dit, layers=5, **SHAPE),  # a test holds them against each other
}


def recipe(name: str, minutes: float, latents: str = "", seed: int = 0) -> Any:
    """The config of a run with the network ``NETWORKS[name]`` that trains for so many minutes.

    latents: the directory of latents that runs share (default: each its own).
    """
    c = get_config()
    c.seed = seed
    stage = c.stages.backbone
    with stage.unlocked():
        for source in (stage.source, stage.held_out):
            source.objects = (1.0, 0.0)
        stage.source.size = CLIPS
        stage.latents.update(prefill=True, dir=latents)
        stage.task.model.dit = NETWORKS[name]
        stage.task.model.text_encoder.width = SHAPE["text_width"]
        stage.optimizer = call(adamw, rate=call(constant, peak=1.5e-3, warmup=50), decay=0.01, clip=1.0)
        stage.train.update(steps=1_000_000, minutes=float(minutes), ema=0.99, eval_every=0)
    return c
