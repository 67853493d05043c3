# SPDX-License-Identifier: Apache-2.0
"""A causal model of the shapes world, which makes videos of any length with keys and values as its memory.

    python -m experiments.run --config=configs/shapes_causal.py --workdir=runs/shapes_causal

Every frame learns behind its clean past (teacher forcing) and at a level of its own. It looks 24 latent frames back, six
seconds, and at the first frame. All else is as in `configs/shapes.py`. Not trained to its end yet; no figures.
"""

from configs.shapes import get_config as shapes
from jaxvid.config import call
from jaxvid.diffusion.levels import Density, Independent
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.text_to_video import TextToVideo
from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.attention import Attention
from jaxvid.training.task import DiffusionTask


def get_config():
    c = shapes()
    s = c.stages.backbone
    s.task = call(
        DiffusionTask,
        model=call(
            TextToVideo,
            dit=call(
                VideoDiT,
                mixers=(call(Attention, head=32, causal=True, window=24, sink=1),),
                repeats=8,
                width=160,
                channels=16,
                text_width=128,
            ),
            text_encoder=call(ByteTextEncoder, width=128, layers=2, pool=4),
        ),
        process=s.task.process,
        levels=call(Independent, density=call(Density, kind="logit_normal", mean=2.2, std=1.2)),
        drop_text=0.1,
        teacher=True,
    )
    s.serve.method, s.serve.window, s.serve.overlap = "causal-kv", 8, 0
    return c
