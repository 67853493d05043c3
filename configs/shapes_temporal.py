# SPDX-License-Identifier: Apache-2.0
"""The twin with attention inside frames and along time, whose temporal attention FreeNoise, FreeLong and VSTAR edit.

    python -m experiments.run --config=configs/shapes_temporal.py --workdir=runs/shapes_temporal

All else is as in `configs/shapes.py`. Not trained to its end yet; no figures.
"""

from configs.shapes import get_config as shapes
from jaxvid.config import call
from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.temporal import Temporal
from jaxvid.nn.mixers.window import Window


def get_config():
    c = shapes()
    c.stages.backbone.task.model.dit = call(
        VideoDiT,
        mixers=(call(Window, window=(1, 64, 64), head=32), call(Temporal, head=32)),
        repeats=4,
        width=160,
        channels=16,
        text_width=128,
    )
    return c
