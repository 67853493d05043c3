# SPDX-License-Identifier: Apache-2.0
"""The cost of a backbone against a DiT, by length: one forward pass at batch 1, guidance not counted.

A twin has full attention in place of the backbone's mixers: one with as many layers of the same width, and one with as
many layers of that width as make the parameters equal. Costs are products of matrices, by formula and counted on the
jaxpr; the ratio is of the counts. Latent frames are seconds * fps / time factor, neither padded nor rounded up.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvid.cli.plan_programs import codec_model, largest_bucket
from jaxvid.config import build, parameter
from jaxvid.eval.costs import Geometry, break_even, formula
from jaxvid.eval.flops import count_flops
from jaxvid.nn.mixers.attention import Attention
from jaxvid.ops import ssd
from jaxvid.ops.pick import tracing_for, use
from jaxvid.types import InputError

TEXT = 256  # text tokens, where the config's model has no text encoder that says so


def table(config: Any, stage: str, seconds: list[float]) -> list[str]:
    """Lines to print."""
    node = config.stages[stage]
    model, codec = build(node.task.model), codec_model(config, stage)
    backbone = getattr(model, "dit", model)
    if codec is None or not hasattr(backbone, "mixers"):
        raise InputError(f"stage {stage} has no video transformer on latents; choose one with --stage")
    bucket, fps = largest_bucket(node), float(node.data.fps)
    _, rows, columns, _ = codec.latent_shape(1, bucket.height, bucket.width)
    text = _text_tokens(node, model)
    backbone = backbone.clone(parent=None)
    networks = {"backbone": backbone, **twins(backbone)}
    sizes = {name: parameters(net, text) for name, net in networks.items()}
    lines = [
        f"{bucket.height}x{bucket.width} at {fps:g} fps, autoencoder "
        f"{codec.time_factor}x{codec.space_factor}x{codec.space_factor}, patch {'x'.join(map(str, backbone.patch))}, "
        f"{text} text tokens; one forward pass, batch 1, products of matrices",
    ]
    for name, net in networks.items():
        layers = len(net.mixers) * net.repeats
        lines.append(
            f"{name:<22} {sizes[name] / 1e6:>9,.1f} M parameters, {layers} layers of width {net.width}"
        )
    lines.append(
        f"{'seconds':>8} {'frames':>7} {'tokens':>9} {'N/d':>6}  {'network':<22} {'TFLOP formula':>14} "
        f"{'counted':>12} {'ratio':>7}"
    )
    for length in seconds:
        frames = max(1, round(length * fps / codec.time_factor)) // backbone.patch[0] * backbone.patch[0]
        geometry = Geometry(frames, rows, columns, text)
        tokens = geometry.tokens(backbone.patch)
        base = None
        for name, net in networks.items():
            written = formula(net, geometry, ssd.CHUNK["default"])
            counted = count(net, geometry)
            base = base or counted
            lines.append(
                f"{length:>8g} {frames:>7} {tokens:>9,.0f} {tokens / net.width:>6.1f}  {name:<22} "
                f"{written / 1e12:>14.4g} {counted / 1e12:>12.4g} {counted / base:>7.2f}"
            )
    geometry = Geometry(1, rows, columns, text)
    for name, net in networks.items():
        if net is not backbone:
            tokens = break_even(backbone, net, geometry, ssd.CHUNK["default"])
            said = (
                "never"
                if tokens is None
                else "at any length"
                if tokens == 0
                else _from(tokens, geometry, backbone, codec, fps)
            )
            lines.append(f"cheaper than {name}: {said}")
    return lines


def twins(backbone: Any) -> dict[str, Any]:
    """DiTs to hold a backbone against."""
    layers, attention = len(backbone.mixers) * backbone.repeats, (Attention(head=backbone.head),)
    same = backbone.clone(mixers=attention, repeats=layers)
    one, two = (parameters(same.clone(repeats=n), 1) for n in (1, 2))
    wanted = max(1, round((parameters(backbone, 1) - (2 * one - two)) / (two - one)))
    return {"DiT, equal width": same, "DiT, equal parameters": same.clone(repeats=wanted)}


def parameters(model: Any, text: int) -> int:
    """How many numbers a network holds."""
    small = _inputs(model, model.patch[0], model.patch[1], model.patch[2], text)
    made = jax.eval_shape(lambda *a: model.init(jax.random.key(0), a[0], a[1], {"text": a[2]}), *small)
    return sum(x.size for x in jax.tree.leaves(nn.unbox(made)))


def count(model: Any, geometry: Geometry) -> float:
    """Products of a forward pass on the jaxpr; attention in its plain form, so that tiles add no padding."""
    model = model.clone(remat=False)
    args = _inputs(model, int(geometry.frames), geometry.rows, geometry.columns, geometry.text)
    small = _inputs(model, *model.patch, geometry.text)
    params = jax.eval_shape(lambda *a: model.init(jax.random.key(0), a[0], a[1], {"text": a[2]}), *small)
    with (
        use(attention="reference"),
        tracing_for("accelerator"),
    ):  # chunks of the scan as accelerators have them
        return count_flops(
            lambda p, x, t, text: model.apply(p, x, t, {"text": text})[0], params, *args
        ).products


def _inputs(model: Any, frames: int, rows: int, columns: int, text: int):
    shapes = (1, frames, rows, columns, model.channels), (1, frames), (1, 1, text, model.text_width)
    return tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)


def _text_tokens(node: Any, model: Any) -> int:
    length = node.data["text_length"] if "text_length" in node.data else parameter(node.data, "text_length")
    encoder = getattr(model, "text_encoder", None)
    return TEXT if encoder is None else -(-length // getattr(encoder, "pool", 1))


def _from(tokens: float, geometry: Geometry, backbone: Any, codec: Any, fps: float) -> str:
    frames = tokens / geometry.tokens(backbone.patch)
    return f"from {tokens:,.0f} tokens on, {frames * codec.time_factor / fps:.1f} s"
