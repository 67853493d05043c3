# SPDX-License-Identifier: Apache-2.0
"""A causal model of the shapes world with near and far memory: eight latent frames in full, two minutes' worth coarsely.

    python -m experiments.run --config=configs/shapes_far.py --workdir=runs/shapes_far

All else is as in `configs/shapes_causal.py`. It learns from clips of three seconds, in which there is little that is far:
longer ones, `--config.stages.backbone.data.buckets`, are worth their time. Not trained yet; no figures.
"""

from configs.shapes_causal import get_config as causal
from jaxvid.config import call
from jaxvid.nn.mixers.longshort import LongShort


def get_config():
    c = causal()
    s = c.stages.backbone
    s.task.model.dit.mixers = (call(LongShort, head=32, window=8, past=480, pool=4),)
    s.serve.method = "far"
    return c
