# SPDX-License-Identifier: Apache-2.0
"""A pipeline of the shipped architecture at toy size, with random weights, for tests of what users touch."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jaxvid.config import build, call
from jaxvid.diffusion.process import Process
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.text_to_video import TextToVideo
from jaxvid.models.video_dit import VideoDiT, lingen
from jaxvid.models.video_vae import VideoVAE
from jaxvid.nn.mixers.mate import mate
from jaxvid.pipeline import Pipeline

SIZE, FPS = 16, 8


def spec(whole=False):
    """What a bundle's pipeline.json says. One layer instead of LinGen's four unless ``whole``: compiling is what costs."""
    layer = {"window": (4, 2, 2), "review": (2, 1, 1), "head": 16, "state": 8, "chunk": 16}
    common = {"width": 32, "head": 16, "channels": 4, "text_width": 16}
    dit = call(VideoDiT, mixers=(call(mate, layer=1, **layer),), **common)
    if whole:
        dit = call(lingen, repeats=1, **{**layer, **common})
    vae = call(VideoVAE, base=8, mult=(1, 1, 1), res=1, z=4, temporal=(True, True), patch=2, norm_floor=1e-6)
    return {
        "model": call(
            TextToVideo, dit=dit, text_encoder=call(ByteTextEncoder, width=16, layers=1, head=8)
        ).to_dict(),
        "vae": vae.to_dict(),
        "process": call(Process, predicts="x0", loss_on="flow").to_dict(),
        "serves": {
            "sizes": [[SIZE, SIZE], [16, 32]],
            "fps": [FPS, 16],
            "seconds": 100.0,
            "window": 16,
            "overlap": 8,
            "context": 8,
        },
        "defaults": {"steps": 3, "guidance": 2.0, "solver": "euler", "shift": 2.0, "seconds": 4.0},
        "text_length": 80,
    }


def weights(tree, seed=0):
    """Random weights of a good size everywhere, so that nothing hides behind zeros."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 25
        return (rng.standard_normal(leaf.shape) / np.sqrt(fan)).astype(np.float32)

    return structure.unflatten([draw(leaf) for leaf in leaves])


def toy_pipeline(seed=0, described=None):
    described = described or spec()
    model, vae = build(described["model"]), build(described["vae"])
    x, t = jnp.zeros((1, 8, 2, 2, vae.z)), jnp.zeros((1, 8))
    cond = {"tokens": jnp.zeros((1, 1, described["text_length"]), jnp.int32)}
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, t, cond)["params"])
    pixels = jnp.zeros((1, 1, vae.space_factor, vae.space_factor, 3))
    variables = jax.eval_shape(lambda: dict(vae.init(jax.random.key(0), pixels)))
    params, variables = weights(meta.unbox(params), seed), weights(meta.unbox(variables), seed + 1)
    variables["stats"] = {"mean": np.zeros(vae.z, np.float32), "std": np.ones(vae.z, np.float32)}
    return Pipeline(described, params, variables, card="# Toy\n")
