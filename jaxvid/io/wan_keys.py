# SPDX-License-Identifier: Apache-2.0
"""What the weights of Wan and SkyReels-V2 are called: here, in diffusers' files, and in the authors'.

A `Leaf` is one of our arrays with the key that it has in diffusers' layout (``{}`` stands for the number of a layer) and how
its axes lie there. Authors' keys are renamed to and from that layout, key by key, by tables of patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jaxvid.types import InputError


class Leaf(NamedTuple):
    """One array of ours.

    name   its path in our tree, ``blocks/self/q/kernel``
    key    its key in diffusers' layout; with ``{}`` in it the array has a leading axis of layers
    lies   how the foreign array lies, one of `FOREIGN`
    """

    name: str
    key: str
    lies: str = "same"

    @property
    def layered(self) -> bool:
        return "{}" in self.key


# how it lies: (our shape -> foreign shape, foreign array -> ours, ours -> foreign with its shape)
FOREIGN: dict[str, tuple[Callable, Callable, Callable]] = {
    "same": (lambda s: s, lambda a: a, lambda a, s: a),
    "linear": (lambda s: s[::-1], lambda a: a.T, lambda a, s: a.T),
    "conv": (
        lambda s: (s[-1], s[-2], *s[:-2]),
        lambda a: np.moveaxis(a, (0, 1), (-1, -2)),
        lambda a, s: np.moveaxis(a, (-1, -2), (0, 1)),
    ),
    "conv1x1": (lambda s: (*s[::-1], 1, 1), lambda a: a[:, :, 0, 0].T, lambda a, s: a.T.reshape(s)),
    "conv1x1x1": (lambda s: (*s[::-1], 1, 1, 1), lambda a: a[:, :, 0, 0, 0].T, lambda a, s: a.T.reshape(s)),
    "image_norm": (lambda s: (*s, 1, 1), lambda a: a.reshape(-1), lambda a, s: a.reshape(s)),
    "video_norm": (lambda s: (*s, 1, 1, 1), lambda a: a.reshape(-1), lambda a, s: a.reshape(s)),
    "table": (lambda s: (1, *s), lambda a: a[0], lambda a, s: a[None]),
    # a convolution over patches of 1x2x2, which here is a matrix on patches whose channels are fastest
    "patch": (
        lambda s: (s[1], s[0] // 4, 1, 2, 2),
        lambda a: a.transpose(2, 3, 4, 1, 0).reshape(-1, a.shape[0]),
        lambda a, s: a.reshape(1, 2, 2, -1, a.shape[1]).transpose(4, 3, 0, 1, 2),
    ),
}


def foreign_shape(leaf: Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of each foreign array that makes our array of ``shape``."""
    return tuple(FOREIGN[leaf.lies][0](shape[1:] if leaf.layered else shape))


def foreign_keys(leaf: Leaf, shape: tuple[int, ...]) -> list[str]:
    """The key, or the keys of all layers."""
    return [leaf.key.format(i) for i in range(shape[0])] if leaf.layered else [leaf.key]


def _dense(name: str, key: str, bias: bool = True) -> list[Leaf]:
    leaves = [Leaf(f"{name}/kernel", f"{key}.weight", "linear")]
    return leaves + ([Leaf(f"{name}/bias", f"{key}.bias")] if bias else [])


def _norm(name: str, key: str) -> list[Leaf]:
    return [Leaf(f"{name}/scale", f"{key}.weight"), Leaf(f"{name}/bias", f"{key}.bias")]


def dit_leaves(image: bool = False, rates: bool = False) -> list[Leaf]:
    """Those of `jaxvid.models.wan_dit.WanDiT`, with features of an image and told rates or without."""
    about, block = "condition_embedder.", "blocks.{}."
    leaves = [
        Leaf("patch_in/kernel", "patch_embedding.weight", "patch"),
        Leaf("patch_in/bias", "patch_embedding.bias"),
        *_dense("level/up", f"{about}time_embedder.linear_1"),
        *_dense("level/down", f"{about}time_embedder.linear_2"),
        *_dense("modulation", f"{about}time_proj"),
        *_dense("text_in/up", f"{about}text_embedder.linear_1"),
        *_dense("text_in/down", f"{about}text_embedder.linear_2"),
        Leaf("table", "scale_shift_table", "table"),
        *_dense("patch_out", "proj_out"),
        Leaf("blocks/table", f"{block}scale_shift_table", "table"),
        *_norm("blocks/cross_norm", f"{block}norm2"),
        *_dense("blocks/feed/up", f"{block}ffn.net.0.proj"),
        *_dense("blocks/feed/down", f"{block}ffn.net.2"),
    ]
    for ours, theirs in (("self", "attn1"), ("cross", "attn2")):
        for part, key in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
            leaves += _dense(f"blocks/{ours}/{part}", f"{block}{theirs}.{key}")
        for part in "qk":
            leaves.append(Leaf(f"blocks/{ours}/{part}_norm/scale", f"{block}{theirs}.norm_{part}.weight"))
    if image:
        at = f"{about}image_embedder."
        leaves += _norm("image_norm", f"{at}norm1") + _norm("image_out_norm", f"{at}norm2")
        leaves += _dense("image_in/up", f"{at}ff.net.0.proj") + _dense("image_in/down", f"{at}ff.net.2")
        leaves += _dense("blocks/cross/k_image", f"{block}attn2.add_k_proj")
        leaves += _dense("blocks/cross/v_image", f"{block}attn2.add_v_proj")
        leaves.append(Leaf("blocks/cross/k_image_norm/scale", f"{block}attn2.norm_added_k.weight"))
    if rates:
        leaves.append(Leaf("rate_table", "fps_embedding.weight"))
        leaves += _dense("rate_in/up", "fps_projection.net.0.proj") + _dense(
            "rate_in/down", "fps_projection.net.2"
        )
    return leaves


# Keys that real files hold and no forward pass reads.
DIT_UNUSED = re.compile(r"blocks\.\d+\.attn2\.norm_added_q\.weight")


def umt5_leaves() -> list[Leaf]:
    """Those of `jaxvid.models.umt5.UMT5Encoder`."""
    attend, feed = "encoder.block.{}.layer.0.", "encoder.block.{}.layer.1."
    leaves = [Leaf("embed", "shared.weight"), Leaf("norm/scale", "encoder.final_layer_norm.weight")]
    for part in "qkv":
        leaves += _dense(f"blocks/{part}", f"{attend}SelfAttention.{part}", False)
    return [
        *leaves,
        *_dense("blocks/out", f"{attend}SelfAttention.o", False),
        Leaf("blocks/places", f"{attend}SelfAttention.relative_attention_bias.weight"),
        Leaf("blocks/norm/scale", f"{attend}layer_norm.weight"),
        *_dense("blocks/gate", f"{feed}DenseReluDense.wi_0", False),
        *_dense("blocks/up", f"{feed}DenseReluDense.wi_1", False),
        *_dense("blocks/down", f"{feed}DenseReluDense.wo", False),
        Leaf("blocks/feed_norm/scale", f"{feed}layer_norm.weight"),
    ]


def clip_leaves(layers: int) -> list[Leaf]:
    """Those of `jaxvid.models.clip_vision.ClipVision` with so many layers, the last of which stands apart."""
    at = "vision_model."
    leaves = [
        Leaf("whole", f"{at}embeddings.class_embedding"),
        Leaf("patch_in", f"{at}embeddings.patch_embedding.weight", "conv"),
        Leaf("places", f"{at}embeddings.position_embedding.weight"),
        *_norm("norm", f"{at}pre_layrnorm"),
        *_norm("last_norm", f"{at}post_layernorm"),
    ]
    for ours, number in (("blocks", "{}"), ("last", layers - 1)):
        layer = f"{at}encoder.layers.{number}."
        leaves += _norm(f"{ours}/norm", f"{layer}layer_norm1") + _norm(
            f"{ours}/feed_norm", f"{layer}layer_norm2"
        )
        for part in ("q", "k", "v", "out"):
            leaves += _dense(f"{ours}/{part}", f"{layer}self_attn.{part}_proj")
        leaves += _dense(f"{ours}/up", f"{layer}mlp.fc1") + _dense(f"{ours}/down", f"{layer}mlp.fc2")
    return leaves


def vae_leaves(names: Iterable[str], residual: bool = False) -> list[Leaf]:
    """Those of a `jaxvid.models.video_vae.VideoVAE` of Wan's topology, for the names that its parameters have.

    ``residual`` is that of Wan 2.2, whose levels are folders; in Wan 2.1 the encoder's are one list.
    """
    names = sorted(names)
    count = 1 + max(
        int(n.split("_resnets_")[1].split("/")[0]) for n in names if "encoder/down_0_resnets_" in n
    )
    return [Leaf(name, *_vae_key(name, residual, count)) for name in names]


def _vae_key(name: str, residual: bool, blocks: int) -> tuple[str, str]:
    *folders, leaf = name.split("/")
    lies = {"kernel": "conv", "gamma": "video_norm", "bias": "same"}[leaf]
    if folders[-1] in ("quant_conv", "post_quant_conv", "conv_shortcut"):
        lies = "conv1x1x1" if leaf == "kernel" else lies
    if "attentions_0" in folders:
        lies = {"kernel": "conv1x1", "gamma": "image_norm"}.get(leaf, lies)
    path = []
    for folder in folders:
        level = re.fullmatch(r"(down|up)_(\d+)_(resnets_(\d+)|resample|time_conv)", folder)
        if folder == "mid":
            path.append("mid_block")
        elif folder in ("resnets_0", "resnets_1", "attentions_0"):
            path.append(folder.replace("_", "."))
        elif level is None:
            path.append(folder)
        else:
            path.append(_level(level[1], int(level[2]), level[3], level[4], residual, blocks))
    return ".".join([*path, {"kernel": "weight"}.get(leaf, leaf)]), lies


def _level(way: str, level: int, what: str, number: str | None, residual: bool, blocks: int) -> str:
    inside = {"resample": "resample.1", "time_conv": "time_conv"}.get(what, "")
    if way == "up":
        resampler = "upsampler" if residual else "upsamplers.0"
        return f"up_blocks.{level}." + (f"resnets.{number}" if number else f"{resampler}.{inside}")
    if residual:
        return f"down_blocks.{level}." + (f"resnets.{number}" if number else f"downsampler.{inside}")
    at = level * (blocks + 1) + (int(number) if number else blocks)
    return f"down_blocks.{at}" + ("" if number else f".{inside}")


# Renaming: pairs of (authors', diffusers') patterns with the same groups, tried in order. A leading "^" is understood.
_DIT = [
    (r"time_embedding\.0\.(.*)", r"condition_embedder.time_embedder.linear_1.\1"),
    (r"time_embedding\.2\.(.*)", r"condition_embedder.time_embedder.linear_2.\1"),
    (r"time_projection\.1\.(.*)", r"condition_embedder.time_proj.\1"),
    (r"text_embedding\.0\.(.*)", r"condition_embedder.text_embedder.linear_1.\1"),
    (r"text_embedding\.2\.(.*)", r"condition_embedder.text_embedder.linear_2.\1"),
    (r"img_emb\.proj\.0\.(.*)", r"condition_embedder.image_embedder.norm1.\1"),
    (r"img_emb\.proj\.1\.(.*)", r"condition_embedder.image_embedder.ff.net.0.proj.\1"),
    (r"img_emb\.proj\.3\.(.*)", r"condition_embedder.image_embedder.ff.net.2.\1"),
    (r"img_emb\.emb_pos", r"condition_embedder.image_embedder.pos_embed"),
    (r"img_emb\.proj\.4\.(.*)", r"condition_embedder.image_embedder.norm2.\1"),
    (r"fps_projection\.0\.(.*)", r"fps_projection.net.0.proj.\1"),
    (r"fps_projection\.2\.(.*)", r"fps_projection.net.2.\1"),
    (r"head\.modulation", r"scale_shift_table"),
    (r"head\.head\.(.*)", r"proj_out.\1"),
    (r"blocks\.(\d+)\.modulation", r"blocks.\1.scale_shift_table"),
    (r"blocks\.(\d+)\.norm3\.(.*)", r"blocks.\1.norm2.\2"),
    (r"blocks\.(\d+)\.ffn\.0\.(.*)", r"blocks.\1.ffn.net.0.proj.\2"),
    (r"blocks\.(\d+)\.ffn\.2\.(.*)", r"blocks.\1.ffn.net.2.\2"),
    *(
        (rf"blocks\.(\d+)\.{one}\.{a}\.(.*)", rf"blocks.\1.{two}.{b}.\2")
        for one, two in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for a, b in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
            ("k_img", "add_k_proj"),
            ("v_img", "add_v_proj"),
            ("norm_k_img", "norm_added_k"),
            ("norm_q_img", "norm_added_q"),
        )
    ),
]
_UMT5 = [
    (r"token_embedding\.weight", r"shared.weight"),
    (r"norm\.weight", r"encoder.final_layer_norm.weight"),
    (r"blocks\.(\d+)\.norm1\.(.*)", r"encoder.block.\1.layer.0.layer_norm.\2"),
    (r"blocks\.(\d+)\.norm2\.(.*)", r"encoder.block.\1.layer.1.layer_norm.\2"),
    (
        r"blocks\.(\d+)\.pos_embedding\.embedding\.(.*)",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.\2",
    ),
    (r"blocks\.(\d+)\.attn\.([qkvo])\.(.*)", r"encoder.block.\1.layer.0.SelfAttention.\2.\3"),
    (r"blocks\.(\d+)\.ffn\.gate\.0\.(.*)", r"encoder.block.\1.layer.1.DenseReluDense.wi_0.\2"),
    (r"blocks\.(\d+)\.ffn\.fc1\.(.*)", r"encoder.block.\1.layer.1.DenseReluDense.wi_1.\2"),
    (r"blocks\.(\d+)\.ffn\.fc2\.(.*)", r"encoder.block.\1.layer.1.DenseReluDense.wo.\2"),
]
_VAE_PARTS = [
    ("residual.0", "norm1"),
    ("residual.2", "conv1"),
    ("residual.3", "norm2"),
    ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
]
_VAE_ENDS = [
    (r"conv1\.(weight|bias)", r"quant_conv.\1"),
    (r"conv2\.(weight|bias)", r"post_quant_conv.\1"),
    (r"(encoder|decoder)\.conv1\.(.*)", r"\1.conv_in.\2"),
    (r"(encoder|decoder)\.head\.0\.(.*)", r"\1.norm_out.\2"),
    (r"(encoder|decoder)\.head\.2\.(.*)", r"\1.conv_out.\2"),
    (r"(encoder|decoder)\.middle\.1\.(.*)", r"\1.mid_block.attentions.0.\2"),
    *(
        (rf"(encoder|decoder)\.middle\.{2 * n}\.{a}\.(.*)", rf"\1.mid_block.resnets.{n}.{b}.\2")
        for n in (0, 1)
        for a, b in _VAE_PARTS
    ),
]
_VAE21 = [
    *_VAE_ENDS,
    *(
        (rf"encoder\.downsamples\.(\d+)\.{a}\.(.*)", rf"encoder.down_blocks.\1.{b}.\2")
        for a, b in [*_VAE_PARTS, ("resample.1", "resample.1"), ("time_conv", "time_conv")]
    ),
    *(
        (rf"decoder\.upsamples\.{4 * i + j}\.{a}\.(.*)", rf"decoder.up_blocks.{i}.resnets.{j}.{b}.\1")
        for i in range(4)
        for j in range(3)
        for a, b in _VAE_PARTS
    ),
    *(
        (
            rf"decoder\.upsamples\.{4 * i + 3}\.(resample|time_conv)\.(.*)",
            rf"decoder.up_blocks.{i}.upsamplers.0.\1.\2",
        )
        for i in range(3)
    ),
]
_VAE22 = [
    *_VAE_ENDS,
    *(
        (
            rf"encoder\.downsamples\.(\d+)\.downsamples\.([01])\.{a}\.(.*)",
            rf"encoder.down_blocks.\1.resnets.\2.{b}.\3",
        )
        for a, b in _VAE_PARTS
    ),
    (r"encoder\.downsamples\.(\d+)\.downsamples\.2\.(.*)", r"encoder.down_blocks.\1.downsampler.\2"),
    *(
        (
            rf"decoder\.upsamples\.(\d+)\.upsamples\.([012])\.{a}\.(.*)",
            rf"decoder.up_blocks.\1.resnets.\2.{b}.\3",
        )
        for a, b in _VAE_PARTS
    ),
    (r"decoder\.upsamples\.(\d+)\.upsamples\.3\.(.*)", r"decoder.up_blocks.\1.upsampler.\2"),
]
_TABLES = {"dit": _DIT, "umt5": _UMT5, "vae21": _VAE21, "vae22": _VAE22, "clip": []}
PARTS = tuple(_TABLES)


def _reversed(table: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same renaming, the other way: groups become what they stood for, and references become groups."""
    turned = []
    for theirs, ours in table:
        groups = re.findall(r"\([^)]*\)", theirs)
        back = re.escape(ours).replace(r"\\", "\\")
        for n, group in enumerate(groups, 1):
            back = back.replace(f"\\{n}", group)
        there = theirs
        for n, group in enumerate(groups, 1):
            there = there.replace(group, f"\\{n}", 1)
        turned.append((back, there.replace(r"\.", ".")))
    return turned


_RENAMES = {
    (part, way): [(re.compile(a), b) for a, b in (table if way == "diffusers" else _reversed(table))]
    for part, table in _TABLES.items()
    for way in ("diffusers", "original")
}
_PREFIX = re.compile(r"^(?:model\.diffusion_model\.|diffusion_model\.|model\.|module\.)")
_SIGNS = {  # a key that only the authors' layout has
    "dit": re.compile(r"blocks\.\d+\.self_attn\."),
    "umt5": re.compile(r"blocks\.\d+\.attn\."),
    "vae21": re.compile(r"decoder\.upsamples\.\d+\."),
    "vae22": re.compile(r"decoder\.upsamples\.\d+\."),
    "clip": re.compile("$."),  # the authors' file of it is not read
}


def rename(part: str, key: str, to: str) -> str:
    """A key of ``part`` (one of `PARTS`) in the layout ``to``: 'diffusers' or 'original'. Others pass as they are."""
    for pattern, replacement in _RENAMES[part, to]:
        if pattern.fullmatch(key):
            return pattern.sub(replacement, key)
    return key


def plain(key: str) -> str:
    """A key without what wrappers put in front of it or between."""
    return _PREFIX.sub("", key.replace("_fsdp_wrapped_module.", ""))


def layout_of(part: str, keys: Iterable[str]) -> str:
    """'original' or 'diffusers': whose names these (plain) keys are."""
    return "original" if any(_SIGNS[part].match(key) for key in keys) else "diffusers"


def part_of(keys: Iterable[str]) -> str:
    """Which of `PARTS` a file with these (plain) keys holds. Raises InputError when it is none of them."""
    keys = set(keys)
    if keys & {"patch_embedding.weight"}:
        return "dit"
    if keys & {"shared.weight", "token_embedding.weight", "encoder.embed_tokens.weight"}:
        return "umt5"
    if "vision_model.embeddings.class_embedding" in keys:
        return "clip"
    if any(
        re.match(r"(decoder\.up_blocks\.\d+\.upsampler|decoder\.upsamples\.\d+\.upsamples)\.", key)
        for key in keys
    ):
        return "vae22"
    if keys & {"quant_conv.weight", "conv1.weight"}:
        return "vae21"
    some = ", ".join(sorted(keys)[:3])
    raise InputError(f"these are no weights of Wan or SkyReels-V2 (keys such as {some}); give their files")
