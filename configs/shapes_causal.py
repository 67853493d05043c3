# SPDX-License-Identifier: Apache-2.0
"""A causal model of the shapes world, which makes videos of any length behind memories that do not grow.

    python -m experiments.run --config=configs/shapes_causal.py --workdir=runs/shapes_causal

It is LinGen's layer with both branches made causal: a scan whose state is carried on, and attention that sees eight latent
frames back, in every other layer also the 24 before them coarsely (FAR). It begins as the shipped model, whose parameters
it has but for the coarse keys and values, and learns in blocks of four latent frames, of which a chunk holds two, behind a
clean past as generation shows it. Clips of eight seconds are there for what is far.
What came of it is shipped: `jaxvid/assets/shapes_causal/README.md`.
"""

from configs.shapes import get_config as shapes
from jaxvid.config import call
from jaxvid.data.pipeline import Bucket
from jaxvid.diffusion.given import First, Nothing, Prefix
from jaxvid.diffusion.levels import Mix
from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.mixers.longshort import LongShort
from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.nn.mixers.mate import Mate
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import cosine

STEPS, BLOCK = 2400, 4


def get_config():
    c = shapes()
    s = c.stages.backbone
    s.init, s.adopt = "shipped", dict(attention="window", longshort="window")
    sizes = dict(width=256, head=64, channels=16, text_width=128)  # as `lingen` of the shipped model
    scan = dict(causal=True, review=None, block=BLOCK, head=128, expand=1)
    near = (
        call(Attention, head=64, causal=True, window=8, block=BLOCK),
        call(LongShort, head=64, window=8, past=24, pool=2, block=BLOCK),
    )
    mixers = tuple(call(Mate, far=call(Mamba, order=i, **scan), near=near[i]) for i in range(2))
    s.task.model.dit = call(VideoDiT, mixers=mixers * 2, **sizes)
    s.task.given = call(
        Mix,
        samplers=(call(Nothing), call(First), call(Prefix, shortest=BLOCK, share=0.75)),
        weights=(4.0, 1.0, 5.0),
    )
    s.data.buckets = (
        call(Bucket, frames=45, height=64, width=64, batch=8, weight=0.5, clips=4096),
        call(Bucket, frames=125, height=64, width=64, batch=3, weight=0.2, clips=512),
        call(Bucket, frames=1, height=64, width=64, batch=96, weight=0.3),
    )
    s.optimizer.rate = call(cosine, peak=5e-4, steps=STEPS, warmup=100, end=0.02)
    s.train = call(
        Settings, steps=STEPS, ema=0.995, log_every=50, eval_every=1200, save_every=300, save_minutes=4.0
    )
    s.serve.method, s.serve.window, s.serve.overlap = "causal-kv", 2 * BLOCK, 0
    return c
