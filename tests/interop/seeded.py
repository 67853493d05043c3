# SPDX-License-Identifier: Apache-2.0
"""Weights of the tiny reference networks, made again from the seed by key name; and the references made with them.

`references/` is written once by `tests/interop/references.py` with the original implementations in torch.
"""

import json
import pathlib
import zlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxvid.config import SAFE, build
from jaxvid.imports import table_of
from jaxvid.io.interop import Weights, convert
from jaxvid.io.lazy import from_array
from jaxvid.io.wan_keys import foreign_keys, foreign_shape, rename
from jaxvid.io.weights import unflatten

REFERENCES = pathlib.Path(__file__).parent / "references"
KEYS = json.loads((REFERENCES / "keys.json").read_text())

WAN = "jaxvid.models.wan_dit:WanDiT"
DIT = {
    "kind": WAN,
    "width": 64,
    "layers": 3,
    "hidden": 160,
    "head": 32,
    "text_width": 48,
    "level_channels": 64,
}
VAE = {"kind": "jaxvid.models.video_vae:VideoVAE", "base": 8, "norm_floor": 1e-24, "residual": False}
# model of the references: (part, the call that makes ours)
NODES = {
    "wan": ("dit", DIT),
    "wan_i2v": ("dit", {**DIT, "layers": 2, "beside": 20, "image_width": 40}),
    "skyreels": ("dit", {**DIT, "rates": 2}),
    "vae": ("vae21", VAE),
    "vae22": ("vae22", {**VAE, "dec_base": 12, "z": 4, "patch": 2, "residual": True}),
    "umt5": (
        "umt5",
        {"kind": "jaxvid.models.umt5:UMT5Encoder", "vocabulary": 96, "width": 48, "layers": 3}
        | {"heads": 2, "head": 16, "hidden": 64},
    ),
    "clip": (
        "clip",
        {"kind": "jaxvid.models.clip_vision:ClipVision", "size": 28, "patch": 14, "width": 40}
        | {"layers": 3, "heads": 4, "hidden": 64, "act": "gelu"},
    ),
}
STATS = {"vae22": ([0.1, -0.2, 0.3, -0.4], [1.5, 0.7, 2.0, 1.1])}


def fill(key, shape, seed=0):
    """The array of diffusers' key ``key``: non-trivial everywhere, rounded to bfloat16 so that both dtypes hold the same."""
    x = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape).astype(np.float32)
    last = key.rsplit(".", 1)[-1]
    if last == "bias":
        x *= 0.1
    elif last == "gamma" or "norm" in key:
        x = 1.0 + 0.1 * x
    elif "scale_shift_table" in key:
        x *= 0.3
    elif key in ("shared.weight", "fps_embedding.weight") or "relative_attention_bias" in key:
        x *= 0.7
    elif x.ndim >= 2:
        x /= np.sqrt(np.prod(shape[1:]))
    x = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    return 0.25 * x if key == "decoder.conv_out.weight" else x


def room(name):
    """'dit', 'vae', 'umt5' or 'clip'."""
    part = NODES[name][0]
    return "vae" if part.startswith("vae") else part


def table(name):
    """``(leaves, shapes)`` of a reference network."""
    return table_of(room(name), NODES[name][1])


def foreign(name, layout="diffusers"):
    """``{key: array}`` as a file in ``layout`` holds it."""
    leaves, shapes = table(name)
    arrays = {}
    for leaf in leaves:
        shape = foreign_shape(leaf, shapes[leaf.name])
        arrays |= {key: fill(key, shape) for key in foreign_keys(leaf, shapes[leaf.name])}
    return {rename(NODES[name][0], k, layout) if layout == "original" else k: v for k, v in arrays.items()}


def stats(name):
    """Mean and std of the latents."""
    from jaxvid.io import wan_repo

    if name in STATS:
        return STATS[name]
    return tuple([float(n) for n in text.split()] for text in wan_repo.STATS[16])


def network(name, **changes):
    """``(part, model, variables)`` of a reference network; ``changes`` replace fields of the model."""
    leaves, shapes = table(name)
    part, node = NODES[name]
    arrays = {key: from_array(value) for key, value in foreign(name).items()}
    made = convert(leaves, shapes, Weights(part, "diffusers", arrays, name))
    variables = {"params": unflatten({n: jnp.asarray(a.read()) for n, a in made.items()})}
    if room(name) == "vae":
        mean, std = stats(name)
        variables["stats"] = {"mean": jnp.asarray(mean), "std": jnp.asarray(std)}
    return part, build(dict(node), SAFE).clone(**changes), variables
