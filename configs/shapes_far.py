# SPDX-License-Identifier: Apache-2.0
"""FAR in the shapes world: attention alone, near frames in full and far ones coarsely, taught by teacher forcing.

    python -m experiments.run --config=configs/shapes_far.py --workdir=runs/shapes_far

All else is as in `configs/shapes_causal.py`, whose model has a scan beside this attention. Here every block of a clip learns
at once, each behind its clean past, at the price of showing the clip twice; a block is a chunk of generation, eight latent
frames, for a noisy block never sees another noisy one. Not trained yet; no figures.
"""

from configs.shapes_causal import get_config as causal
from jaxvid.config import call
from jaxvid.data.pipeline import Bucket
from jaxvid.diffusion.given import Nothing
from jaxvid.nn.mixers.longshort import LongShort

BLOCK = 8


def get_config():
    c = causal()
    s = c.stages.backbone
    s.data.buckets = (  # of 2 blocks and of 4
        call(Bucket, frames=61, height=64, width=64, batch=4, weight=0.6, clips=1024),
        call(Bucket, frames=125, height=64, width=64, batch=2, weight=0.4, clips=512),
    )
    mixer = call(LongShort, head=64, window=8, past=24, pool=2, block=BLOCK)
    s.task.model.dit.mixers = (mixer,) * 4
    s.adopt = dict(mixer="mixer/window")
    s.task.given, s.task.teacher = call(Nothing), True
    s.serve.method, s.serve.window = "far", BLOCK
    return c
