# SPDX-License-Identifier: Apache-2.0
"""The twin with attention inside frames and along time, whose temporal attention FreeNoise, FreeLong and VSTAR edit.

    python -m experiments.run --config=configs/shapes_temporal.py --workdir=runs/shapes_temporal

It begins as the shipped model, with which it shares everything but the scans, where it has attention along time. Data and
objective are those of `configs/shapes.py`. What came of it is shipped: `jaxvid/assets/shapes_temporal/README.md`.
"""

from configs.shapes import get_config as shapes
from jaxvid.config import call
from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.mate import Mate
from jaxvid.nn.mixers.temporal import Temporal
from jaxvid.nn.mixers.window import Window
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import cosine

STEPS = 1600


def get_config():
    c = shapes()
    s = c.stages.backbone
    s.init, s.adopt = "shipped", dict()
    layer = call(Mate, far=call(Temporal, head=64), near=call(Window, window=(1, 64, 64), head=64))
    sizes = dict(width=256, head=64, channels=16, text_width=128)  # as `lingen` of the shipped model
    s.task.model.dit = call(VideoDiT, mixers=(layer,) * 4, **sizes)
    s.optimizer.rate = call(cosine, peak=7e-4, steps=STEPS, warmup=100, end=0.02)
    s.train = call(
        Settings, steps=STEPS, ema=0.995, log_every=50, eval_every=800, save_every=300, save_minutes=4.0
    )
    s.serve.window, s.serve.overlap = 16, 8  # not much more than the clips that it learns from
    return c
