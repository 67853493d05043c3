# SPDX-License-Identifier: Apache-2.0
"""Adapters of rank 16 for Wan 2.1 T2V 1.3B on your own videos: `configs/wan_1_3b.py`, with the weights themselves frozen.

    python -m experiments.run --config=configs/wan_1_3b_lora.py --workdir=runs/lora --config.data.path=DIR

runs/lora/tune/lora.safetensors are the adapters in diffusers' key style, runs/lora/tune/bundle the weights with them merged.
"""

from configs.wan_1_3b import get_config as full
from jaxvid.config import call
from jaxvid.training.lora import LoraTask
from jaxvid.training.optimizer import adamw, constant


def get_config():
    c = full()
    s = c.stages.tune
    s.task = call(LoraTask, task=s.task, rank=16)
    s.optimizer = call(adamw, rate=call(constant, peak=1e-4, warmup=100), decay=0.0)
    return c
