# SPDX-License-Identifier: Apache-2.0
"""A student of the shipped model that makes videos in four steps and without guidance.

    python -m experiments.run --config=configs/shapes_student.py --workdir=runs/shapes_student

Each of its four steps learns to arrive where three guided steps of the teacher do, all frames at one level and in the
staircases of a sliding window, whose frames are a step apart. For another teacher than the shipped model:
`--config.stages.progressive.teacher=DIR`.

Two more stages are there to be put into `--config.order`: `consistency`, which learns to go to the end of the teacher's
trajectories from itself, and `matching`, which begins as `progressive` and matches what the student makes with what its
teacher would make (DMD on its own roll-outs). Consistency fell into a world of empty frames after some 300 steps at a
rate of 2e-4; matching has not been run.
"""

from configs.shapes import get_config as shapes
from jaxvid.config import call
from jaxvid.diffusion.given import First, Nothing, Prefix
from jaxvid.diffusion.levels import Density, Mix, OnePerClip
from jaxvid.training.distill import ConsistencyTask, MatchingTask
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw, cosine, parts
from jaxvid.training.progressive import ProgressiveTask

STEPS, SHIFT = 4, 5.0  # the student's ladder
PROGRESSIVE, CONSISTENCY, MATCHING = 500, 1200, 480  # steps of training


def get_config():
    c = shapes()
    backbone = c.stages.backbone
    del c.stages["backbone"]
    network = dict(model=backbone.task.model, process=backbone.task.process)
    serve = backbone.serve  # how the teacher is sampled
    given = call(Mix, samplers=(call(Nothing), call(First), call(Prefix)), weights=(6.0, 1.5, 2.5))
    c.order = ("progressive",)

    p = backbone.copy_and_resolve_references()
    p.teacher = "shipped"
    p.task = call(
        ProgressiveTask,
        **network,
        steps=STEPS,
        shift=SHIFT,
        inner=3,
        guidance=serve.guidance,
        corner=0.03,
        lags=(0, 1),
        given=given,
    )
    p.optimizer = call(adamw, rate=call(cosine, peak=3e-4, steps=PROGRESSIVE, warmup=30), decay=0.0, clip=1.0)
    p.train = call(Settings, steps=PROGRESSIVE, ema=0.98, log_every=25, save_every=100, save_minutes=4.0)
    p.serve = dict(
        steps=STEPS, shift=SHIFT, guidance=1.0, solver="euler", seconds=4.0, method="sliding", window=16
    )
    c.stages.progressive = p

    s = backbone.copy_and_resolve_references()
    s.teacher = "shipped"
    s.task = call(
        ConsistencyTask,
        **network,
        steps=serve.steps,
        shift=serve.shift,
        guidance=serve.guidance,
        corner=0.03,
        lags=(0, 4, 8),
        given=given,
    )
    s.optimizer = call(adamw, rate=call(cosine, peak=2e-4, steps=CONSISTENCY, warmup=50), decay=0.0, clip=1.0)
    s.train = call(Settings, steps=CONSISTENCY, ema=0.995, log_every=50, save_every=200, save_minutes=4.0)
    s.serve = dict(steps=STEPS, shift=SHIFT, guidance=1.0, solver="renoise", method="student", seconds=4.0)
    c.stages.consistency = s

    m = s.copy_and_resolve_references()
    m.init = "progressive"
    m.task = call(
        MatchingTask,
        **network,
        steps=STEPS,
        shift=SHIFT,
        guidance=serve.guidance,
        levels=call(OnePerClip, density=call(Density, shift=SHIFT)),
        given=given,
        every=4,
    )
    m.optimizer = call(
        parts,
        student=call(
            adamw, rate=call(cosine, peak=2e-5, steps=MATCHING // 4, warmup=10), b1=0.0, decay=0.0, clip=1.0
        ),
        critic=call(
            adamw, rate=call(cosine, peak=1e-4, steps=MATCHING, warmup=20), b1=0.0, decay=0.0, clip=1.0
        ),
    )
    m.train = call(Settings, steps=MATCHING, ema=0.98, log_every=50, save_every=200, save_minutes=4.0)
    c.stages.matching = m
    return c
