# SPDX-License-Identifier: Apache-2.0
"""A causal student that makes videos of any length in four steps for each chunk, taught on roll-outs of its own.

    python -m experiments.run --config=configs/shapes_causal_student.py --workdir=runs/shapes_causal_student

Self-Forcing: it begins as the model of `configs/shapes_causal.py` (`--config.stages.matching.init=DIR` says where that
is), makes two chunks of eight latent frames, the second behind the first, and both are judged together by the shipped
model, which sees whole clips. Not trained yet; no figures.
"""

from configs.shapes_causal import get_config as causal
from configs.shapes_student import get_config as student
from jaxvid.config import call
from jaxvid.data.pipeline import Bucket
from jaxvid.training.distill import MatchingTask


def get_config():
    c = student()
    c.order = ("matching",)
    for other in ("progressive", "consistency"):
        del c.stages[other]
    s, old = c.stages.matching, c.stages.matching.task
    s.init = "runs/shapes_causal"
    s.data.buckets = (call(Bucket, frames=61, height=64, width=64, batch=8, weight=1.0, clips=512),)
    s.task = call(
        MatchingTask,
        model=causal().stages.backbone.task.model,
        score=old.model,
        process=old.process,
        steps=old.steps,
        shift=old.shift,
        block=8,
        guidance=old.guidance,
        levels=old.levels,
        every=old.every,
    )
    s.serve.window, s.serve.overlap = 8, 0
    return c
