# SPDX-License-Identifier: Apache-2.0
"""Holds imported networks against reference inputs and outputs of the originals, case by case and tap by tap.

A reference is an .npz with ``CASE/in/NAME``, ``CASE/out/NAME`` and ``CASE/tap/NAME`` in their layout [B, C, T, H, W];
taps are outputs of inner modules, there to say where a difference begins.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.types import InputError

TOLERANCE = 5e-5
_LOOSE = {"low_variance": 20}  # a case made to magnify rounding, and so many times its tolerance
# The one tap that has a tolerance: at a variance of 1e-6 another epsilon is off by more than 1 here, and hardly in outputs.
_BOUND = {("low_variance", "blocks.0.norm1"): 1e-2}


def load_reference(path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """``{case: {'in' | 'out' | 'tap': {name: array}}}``. Raises InputError."""
    cases: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                case, kind, name = key.split("/", 2)
                cases.setdefault(case, {"in": {}, "out": {}, "tap": {}})[kind][name] = file[key]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path} is no file of references ({' '.join(str(error).split())[:120]})") from None
    return cases


def differences(
    part: str, model, variables, cases: Mapping[str, Any]
) -> Iterator[tuple[str, str, float, float]]:
    """``(case, what, largest difference, tolerance)`` for all outputs and for the taps that have a counterpart here.

    part: 'dit', 'vae21', 'vae22', 'umt5' or 'clip'. variables: the model's, {'params': ..., 'stats': ...}.
    Computed in float32 at the highest matmul precision. The tolerance of a tap is infinite but for one: taps tell where.
    """
    run = {"dit": _dit, "umt5": _umt5, "clip": _clip}.get(part, _vae)
    for case, told in cases.items():
        with jax.default_matmul_precision("highest"):
            outputs, taps = run(model, variables, case, told["in"])
        for name, value in told["out"].items():
            if name in outputs:
                limit = TOLERANCE * _LOOSE.get(case, 1)
                yield case, f"out/{name}", _largest(outputs[name], value, told["in"].get("mask")), limit
            for streamed in (f"{name} streamed",):
                if streamed in outputs:
                    yield case, f"out/{streamed}", _largest(outputs[streamed], value), TOLERANCE
        for name, value in told["tap"].items():
            found = _like(_tap(part, name, taps, model), value)
            if found is not None:
                yield case, f"tap/{name}", _largest(found, value), _BOUND.get((case, name), float("inf"))


def _largest(ours, theirs, mask=None) -> float:
    difference = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    if mask is not None:  # what stands on padding is nobody's business
        difference = difference * np.asarray(mask, bool).reshape(
            mask.shape + (1,) * (difference.ndim - mask.ndim)
        )
    return float(difference.max(initial=0))


def _first(x):
    """[B, T, H, W, C] to [B, C, T, H, W]."""
    return np.moveaxis(np.asarray(x), -1, 1)


def _last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def _apply(model, variables, *args, method=None):
    def run(variables, *args):
        return model.apply(
            variables, *args, method=method, capture_intermediates=True, mutable=["intermediates"]
        )

    out, kept = jax.jit(run)(variables, *args)
    return out, kept["intermediates"]


def _dit(model, variables, case, given):
    x, t = _last(given["x"]), np.asarray(given["t"], np.float64) / 1000
    frames = x.shape[1]
    if t.ndim == 1:
        t = np.repeat(t[:, None], frames, 1)
    elif t.shape[1] != frames:
        t = t.reshape(len(t), frames, x.shape[2] // model.patch[1], -1)
    cond = {"text": jnp.asarray(given["context"])[:, None]}
    if model.beside:
        cond["beside"], x = x[..., model.channels :], x[..., : model.channels]
    if "image" in given:
        cond["image"] = jnp.asarray(given["image"])
    if "fps" in given:
        cond["rate"] = jnp.asarray(given["fps"], jnp.int32)
    block = int(given.get("block", 0))
    model = model.clone(block=block if block > 1 or case == "df_frame_causal" else 0, whole_levels=False)
    (y, _), taps = _apply(model, {"params": variables["params"]}, x, jnp.asarray(t, jnp.float32), cond)
    return {"y": _first(y)}, taps


def _umt5(model, variables, case, given):
    if "relative_position" in given:
        from jaxvid.models.umt5 import buckets

        return {"bucket": buckets(given["relative_position"])}, {}
    ids = jnp.asarray(given["ids"], jnp.int32)
    (y, _), taps = _apply(model, {"params": variables["params"]}, ids)
    short = 512 - ids.shape[1]
    return {"y": y, "context512": np.pad(np.asarray(y), ((0, 0), (0, max(short, 0)), (0, 0)))[:, :512]}, taps


def _clip(model, variables, case, given):
    features, taps = _apply(model, {"params": variables["params"]}, _last(given["picture"]))
    return {"features": features}, taps


def _vae(model, variables, case, given):
    x = _last(given["x"])
    posterior, encoder = _apply(model, variables, x, method="encode")
    rebuilt, decoder = _apply(model, variables, posterior.mean, method="decode")
    decode = jax.jit(lambda v, z: model.apply(v, z, method="from_latents"))
    mean, std = (np.asarray(variables["stats"][name]) for name in ("mean", "std"))
    z = (np.asarray(posterior.mean) - mean) / std
    outputs = {"mean": posterior.mean, "logvar": posterior.logvar, "z": z, "recon": rebuilt}
    z2 = _last(given["z2"])
    outputs["decoded_z2"] = decode(variables, z2)
    if z2.shape[1] > 1:
        outputs["mean streamed"] = _streamed(model, variables, "encode_chunk", x, 1, model.time_factor).mean
        outputs["decoded_z2 streamed"] = _streamed(model, variables, "from_latents_chunk", z2, 1, 1)
    return {name: _first(value) for name, value in outputs.items()}, {
        **encoder,
        "decoder": decoder.get("decoder"),
    }


def _streamed(model, variables, method, x, first, step):
    """The result in chunks, joined: the first chunk, then steps."""
    run = jax.jit(
        lambda v, piece, memory, first: model.apply(v, piece, memory, first, method=method), static_argnums=3
    )
    pieces, memory, at = [], None, 0
    while at < x.shape[1]:
        size = first if at == 0 else step
        out, memory = run(variables, x[:, at : at + size], memory, at == 0)
        pieces.append(out)
        at += size
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *pieces)


# tap: where it is here; N is the number of a block
_DIT_TAPS = {
    "patch_embedding": "patch_in",
    "condition_embedder.time_embedder": "level",
    "condition_embedder.time_proj": "modulation",
    "condition_embedder.text_embedder": "text_in",
    "condition_embedder.image_embedder": "image_out_norm",
    "fps_projection": "rate_in",
    "proj_out": "patch_out",
    "blocks.N.norm1": "blocks/self_norm",
    "blocks.N.attn1": "blocks/self",
    "blocks.N.attn2": "blocks/cross",
    "blocks.N.attn1.norm_q": "blocks/self/q_norm",
    "blocks.N.ffn": "blocks/feed",
    "blocks.N": "blocks",
}
_UMT5_TAPS = {"encoder.block.N.layer.0.SelfAttention": "blocks/out", "encoder.final_layer_norm": "norm"}


def _tap(part: str, name: str, taps, model):
    """The output of our module that stands for another one's, or None."""
    if part == "clip":
        return None
    if part in ("dit", "umt5"):
        number = re.search(r"(?<=block)s?\.(\d+)", name)
        known = _DIT_TAPS if part == "dit" else _UMT5_TAPS
        place = known.get(name if number is None else name.replace(f".{number[1]}", ".N", 1))
        found = None if place is None else _output(taps, place)
        return found if found is None or number is None else found[int(number[1])]
    place = name.replace(".", "/").replace("mid_block", "mid")
    if flat := re.fullmatch(r"encoder\.down_blocks\.(\d+)", name):
        level, j = divmod(int(flat[1]), model.res + 1)
        last = "time_conv" if level < len(model.temporal) and model.temporal[level] else "resample"
        place = f"encoder/down_{level}_" + (f"resnets_{j}" if j < model.res else last)
        place = None if model.residual else place
    elif up := re.fullmatch(r"decoder\.up_blocks\.(\d+)", name):
        level, inner = int(up[1]), len(model.mult) - 1
        place = f"decoder/up_{level}_" + ("resample" if level < inner else f"resnets_{model.res}")
        place = None if model.residual and level < inner else place
    found = None if place is None else _output(taps, place)
    return None if found is None else _first(found)


def _output(taps, place: str):
    at: Any = flax.core.unfreeze(taps)
    for folder in place.split("/"):
        at = at.get(folder) if isinstance(at, Mapping) else None
    if not isinstance(at, Mapping) or "__call__" not in at:
        return None
    out = at["__call__"][0]
    return np.asarray(out[0] if isinstance(out, tuple) else out)


def _like(ours, theirs):
    """Ours in the shape of theirs: channels first, tokens flat, one frame for all; None where no such view fits."""
    if ours is None:
        return None
    views = [ours, _first(ours), ours[:, 0], ours[:1]] if ours.ndim > 1 else [ours]
    for view in views:
        if view.shape == theirs.shape:
            return view
    for view in views:
        if view.size == theirs.size and (view.shape[-1] == theirs.shape[-1]):
            return view.reshape(theirs.shape)
    return None
