# SPDX-License-Identifier: Apache-2.0
"""What lies in a download of Wan or SkyReels-V2, in diffusers' layout or the authors': parts, sizes, defaults, licence.

Sizes of the networks are read off the weights, because the authors' files come without them; a config is asked only for
what shapes do not tell.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxvid.io.interop import Weights, open_weights
from jaxvid.io.lazy import Stored
from jaxvid.types import InputError

STATS = {  # mean and std of latents, of Wan 2.1 and of Wan 2.2
    16: (
        "-.7571 -.7089 -.9113 .1075 -.1745 .9653 -.1517 1.5508 .4134 -.0715 .5517 -.3632 -.1922 -.9497 .2503 -.2921",
        "2.8184 1.4541 2.3275 2.6558 1.2196 1.7708 2.6052 2.0743 3.2687 2.1526 2.8652 1.5579 1.6382 1.1253 2.8251 1.9160",
    ),
    48: (
        "-.2289 -.0052 -.1323 -.2339 -.2799 .0174 .1838 .1557 -.1382 .0542 .2813 .0891 .1570 -.0098 .0375 -.1825"
        " -.2246 -.1207 -.0698 .5109 .2665 -.2108 -.2158 .2502 -.2055 -.0322 .1109 .1567 -.0729 .0899 -.2799 -.1230"
        " -.0313 -.1649 .0117 .0723 -.2839 -.2083 -.0520 .3748 .0152 .1957 .1433 -.2944 .3573 -.0548 -.1681 -.0667",
        ".4765 1.0364 .4514 1.1677 .5313 .4990 .4818 .5013 .8158 1.0344 .5894 1.0901 .6885 .6165 .8454 .4978"
        " .5759 .3523 .7135 .6804 .5833 1.4146 .8986 .5659 .7069 .5338 .4889 .4917 .4069 .4999 .6866 .4093"
        " .5709 .6065 .6415 .4944 .5726 1.2042 .5458 1.6887 .3971 1.0600 .3943 .5537 .5444 .4089 .7468 .7744",
    ),
}
# What Wan's samplers put in place of no text: over-exposed, static, blurred, subtitles, low quality, JPEG residue, deformed
# hands and faces, cluttered background, walking backwards.
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
_SMALL = [[480, 832], [832, 480], [624, 624]]
_LARGE = [[720, 1280], [1280, 720]]
# family: (what it serves, what a call takes when it is not told)
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "wan21-1.3b": (
        {"sizes": _SMALL, "fps": [16], "seconds": 129 / 16},
        {"seconds": 81 / 16, "steps": 50, "guidance": 6.0, "shift": 8.0},
    ),
    "wan21-14b": (
        {"sizes": _SMALL + _LARGE, "fps": [16], "seconds": 129 / 16},
        {"seconds": 81 / 16, "steps": 50, "guidance": 5.0, "shift": 5.0},
    ),
    "wan22-5b": (
        {"sizes": [[704, 1280], [1280, 704]], "fps": [24], "seconds": 121 / 24},
        {"seconds": 121 / 24, "steps": 50, "guidance": 5.0, "shift": 5.0},
    ),
    # windows of 24 latent frames, 93 frames, of which 8 are the past: a block of the decoder is 8
    "skyreels": (
        {"sizes": [[544, 960], [960, 544]], "fps": [24], "window": 24, "overlap": 8},
        {"seconds": 97 / 24, "steps": 30, "guidance": 6.0, "shift": 8.0, "method": "rollout"},
    ),
}
LICENCES = {
    "wan": "Apache-2.0",
    "skyreels": "SkyReels-V2 Community License (not Apache-2.0: read it before you use or share these weights)",
}
_COMMON = {"solver": "unipc", "negative": NEGATIVE}
_SUBFOLDERS = ("transformer", "vae", "text_encoder", "image_encoder")
_AUTHORS_CLIP = "models_clip_"  # the authors' image tower with a text tower beside it: not read
_CONFIG_BYTES = 1 << 20


class Part(NamedTuple):
    """One network of a download."""

    weights: Weights
    config: dict[str, Any]


class Repo(NamedTuple):
    """A download: its parts by name ('dit', 'vae', 'umt5'), and what lies beside them."""

    parts: dict[str, Part]
    tokenizer: pathlib.Path | None
    licence: pathlib.Path | None
    family: str


def open_repo(path, family: str | None = None) -> Repo:
    """Finds out what is at ``path``: a folder in either layout, a folder of one network, or a file. Raises InputError."""
    path = pathlib.Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a folder with weights, a file, or hf:OWNER/NAME")
    folders = (
        [path] if path.is_file() else [path, *(path / name for name in _SUBFOLDERS if (path / name).is_dir())]
    )
    if (path / "transformer_2").is_dir():
        raise InputError(
            f"{path} has two experts (Wan 2.2 A14B), which do not run together here; give transformer or transformer_2 alone"
        )
    parts: dict[str, Part] = {}
    for folder in folders:
        for file in _weight_files(folder):
            weights = open_weights(file)
            name = "vae" if weights.part.startswith("vae") else weights.part
            if name in parts:
                raise InputError(
                    f"{file} and {parts[name].weights.source} are both a {name}; keep one of them in {path}"
                )
            parts[name] = Part(weights, _read_config(file.parent, name))
    if not parts:
        raise InputError(f"{path} holds no weights (.safetensors, .pth); give the folder that they lie in")
    root = path if path.is_dir() else path.parent
    places = [root / "tokenizer", root / "google" / "umt5-xxl", root]
    tokenizer = next(
        (p for p in places if any((p / n).is_file() for n in ("tokenizer.json", "spiece.model"))), None
    )
    licence = next((p for p in sorted(root.glob("LICEN[CS]E*")) if p.is_file()), None)
    return Repo(parts, tokenizer, licence, _agreed(family, parts, str(path.resolve())))


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files to open: an index stands for its shards."""
    if folder.is_file():
        return [folder]
    indices = sorted(folder.glob("*.safetensors.index.json"))
    covered = re.compile(
        "|".join(re.escape(i.name.removesuffix(".safetensors.index.json")) for i in indices) or "$."
    )
    singles = [
        f
        for f in sorted(folder.iterdir())
        if f.suffix in (".safetensors", ".pth", ".pt")
        and not f.name.startswith(_AUTHORS_CLIP)
        and not (covered.match(f.name) and "-of-" in f.name)
    ]
    return indices + singles


def _read_config(folder: pathlib.Path, part: str) -> dict[str, Any]:
    """The config.json beside some weights, when it speaks of that part; else nothing."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > _CONFIG_BYTES:
            raise ValueError("it is too large")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}); fetch it again") from None
    if not isinstance(config, dict):
        raise InputError(f"{file} holds a {type(config).__name__} and not names with values; fetch it again")
    said = str(config.get("_class_name") or config.get("model_type") or "")
    if not said and folder.name in _SUBFOLDERS:
        return config  # a folder of one network
    meant = (
        "vae"
        if "Autoencoder" in said
        else "umt5"
        if "t5" in said.lower()
        else "clip"
        if "clip" in said
        else "dit"
    )
    return config if meant == part else {}


def _family(parts: Mapping[str, Part], path: str) -> str:
    """Told by keys and config, and by the path: SkyReels-V2 14B differs from Wan's by nothing but its name and licence."""
    if "dit" not in parts:
        return "wan21-1.3b"
    arrays, config = parts["dit"].weights.arrays, parts["dit"].config
    said = f"{path} {config.get('_class_name')}".lower()
    if "fps_embedding.weight" in arrays or "skyreels" in said or "inject_sample_info" in config:
        return "skyreels"
    width, channels = arrays["patch_embedding.weight"].shape[:2]
    return "wan22-5b" if channels == 48 else "wan21-14b" if width > 2048 else "wan21-1.3b"


def _agreed(family: str | None, parts: Mapping[str, Part], path: str) -> str:
    """The family asked for where the weights can be its, else what they are; what tensors tell outweighs a path."""
    if family is None or "dit" not in parts:
        return family or _family(parts, path)
    told = _family({"dit": parts["dit"]._replace(config={})}, "")
    if told != family and (told in ("wan22-5b", "skyreels") or family == "wan22-5b"):
        raise InputError(f"--family {family}, but the tensors are those of {told}; leave --family out")
    return family


def _shape(arrays: Mapping[str, Stored], key: str, axes: int, source: str) -> tuple[int, ...]:
    if key not in arrays or len(arrays[key].shape) != axes:
        came = arrays[key].shape if key in arrays else "nothing"
        raise InputError(f"{source}: {key} should have {axes} axes, and is {came}; fetch it again")
    return arrays[key].shape


def _layers(arrays: Mapping[str, Stored], pattern: str) -> int:
    return 1 + max((int(m[1]) for key in arrays if (m := re.match(pattern, key))), default=-1)


def describe(part: Part, family: str = "wan21-1.3b") -> dict[str, Any]:
    """The call that makes the network of some weights, as data. Raises InputError."""
    weights, config = part
    arrays = weights.arrays

    def shape(key, axes):
        return _shape(arrays, key, axes, weights.source)

    if weights.part == "umt5":
        rows, width = shape("shared.weight", 2)
        block = "encoder.block.0.layer."
        heads = shape(f"{block}0.SelfAttention.relative_attention_bias.weight", 2)[1]
        inner, hidden = (
            shape(f"{block}0.SelfAttention.q.weight", 2)[0],
            shape(f"{block}1.DenseReluDense.wi_0.weight", 2),
        )
        layers = _layers(arrays, r"encoder\.block\.(\d+)\.")
        sizes = dict(
            vocabulary=rows, width=width, layers=layers, heads=heads, head=inner // heads, hidden=hidden[0]
        )
        return {"kind": "jaxvid.models.umt5:UMT5Encoder", **sizes}
    if weights.part.startswith("vae"):
        base, channels, *_ = shape("encoder.conv_in.weight", 5)
        z, residual = shape("post_quant_conv.weight", 5)[0], weights.part == "vae22"
        sizes = dict(base=base, dec_base=shape("decoder.norm_out.gamma", 4)[0], z=z, residual=residual)
        patch = int((channels / 3) ** 0.5)
        return {"kind": "jaxvid.models.video_vae:VideoVAE", **sizes, "patch": patch, "norm_floor": 1e-24}
    if weights.part == "clip":
        width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight", 4)
        places = shape("vision_model.embeddings.position_embedding.weight", 2)[0]
        sizes = dict(width=width, patch=patch, size=patch * round((places - 1) ** 0.5))
        sizes |= dict(layers=_layers(arrays, r"vision_model\.encoder\.layers\.(\d+)\."))
        sizes |= dict(hidden=shape("vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0])
        heads, act = config.get("num_attention_heads", 16), str(config.get("hidden_act", "gelu"))
        if type(heads) is not int or heads < 1 or width % heads or act not in ("gelu", "quick_gelu"):
            raise InputError(
                f"{weights.source}: {heads!r} heads of {width} with {act!r} cannot be; correct its config.json"
            )
        return {"kind": "jaxvid.models.clip_vision:ClipVision", **sizes, "heads": heads, "act": act}
    width, taken, *_ = shape("patch_embedding.weight", 5)
    channels = shape("proj_out.weight", 2)[0] // 4
    heads = config.get("num_attention_heads", config.get("num_heads", max(1, width // 128)))
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(
            f"{weights.source}: {heads!r} heads do not divide the width {width}; correct its config.json"
        )
    eps = config.get("eps", 1e-6)
    if not isinstance(eps, int | float) or isinstance(eps, bool) or not 0 < eps < 1:
        raise InputError(f"{weights.source}: eps {eps!r} is no small number above 0; correct its config.json")
    level, about = "condition_embedder.time_embedder.linear_1.weight", "condition_embedder."
    if f"{about}image_embedder.pos_embed" in arrays:
        raise InputError(
            f"{weights.source} is for a first and a last frame (FLF2V), which is not run here; take I2V"
        )
    sizes = dict(
        width=width,
        layers=_layers(arrays, r"blocks\.(\d+)\."),
        hidden=shape("blocks.0.ffn.net.0.proj.weight", 2)[0],
        head=width // heads,
        channels=channels,
        beside=taken - channels,
        text_width=shape(f"{about}text_embedder.linear_1.weight", 2)[1],
        level_channels=shape(level, 2)[1],
        eps=float(eps),
    )
    if f"{about}image_embedder.norm1.weight" in arrays:
        sizes["image_width"] = shape(f"{about}image_embedder.norm1.weight", 1)[0]
    if "fps_embedding.weight" in arrays:
        sizes |= {"rates": shape("fps_embedding.weight", 2)[0], "rate": 1}
    return {"kind": "jaxvid.models.wan_dit:WanDiT", **sizes}


def latent_stats(part: Part) -> tuple[list[float], list[float]]:
    """Mean and std of an autoencoder's latents, per channel: of its config, or those that were published."""
    z = _shape(part.weights.arrays, "post_quant_conv.weight", 5, part.weights.source)[0]
    mean, std = part.config.get("latents_mean"), part.config.get("latents_std")
    if mean is None and z in STATS:
        mean, std = ([float(n) for n in text.split()] for text in STATS[z])
    fine = isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == z
    if not fine or not all(isinstance(n, int | float) for n in mean + std) or min(std) <= 0:
        raise InputError(
            f"{part.weights.source}: mean and std of its {z} latent channels are not known; put latents_mean and"
            " latents_std into a config.json beside it"
        )
    return [float(n) for n in mean], [float(n) for n in std]


def description(repo: Repo, sizes: list[list[int]] | None = None) -> dict[str, Any]:
    """What a bundle's pipeline.json says of a whole download. Raises InputError when a part is missing."""
    missing = [name for name in ("dit", "vae", "umt5") if name not in repo.parts]
    if missing or repo.tokenizer is None:
        lack = [
            *missing,
            *(["a tokenizer (tokenizer.json or spiece.model)"] if repo.tokenizer is None else []),
        ]
        raise InputError(f"a pipeline needs dit, vae, umt5 and a tokenizer; {', '.join(lack)} is missing")
    image = "condition_embedder.image_embedder.norm1.weight" in repo.parts["dit"].weights.arrays
    if image != ("clip" in repo.parts):
        lack = (
            "has no image_encoder in diffusers' layout"
            if image
            else "has an image_encoder that nothing asks for"
        )
        raise InputError(f"the download {lack}; give the repository whose name ends in -Diffusers")
    serves, defaults = FAMILIES[repo.family]
    dit = describe(repo.parts["dit"]) | {"whole_levels": True}
    return {
        "model": {
            "kind": "jaxvid.models.text_to_video:TextToVideo",
            "dit": dit,
            "text_encoder": describe(repo.parts["umt5"]),
            **({"image_encoder": describe(repo.parts["clip"])} if image else {}),
        },
        "vae": describe(repo.parts["vae"]),
        "process": {"kind": "jaxvid.diffusion.process:Process"},
        "serves": serves | {"multiple": 1} | ({"sizes": sizes} if sizes else {}),
        "defaults": _COMMON | defaults,
        "text_length": 512,
        "text_bytes": 4096,
        "tokenizer": "tokenizer",
        "imported": imported(repo),
    }


def imported(repo: Repo) -> dict[str, Any]:
    """What an export needs to know again: layout, configs and licence."""
    return {
        "family": repo.family,
        "licence": licence_of(repo),
        "parts": {
            name: {"part": part.weights.part, "layout": part.weights.layout, "config": part.config}
            for name, part in repo.parts.items()
        },
    }


def licence_of(repo: Repo) -> str:
    """The name of the licence that the family was published under."""
    return LICENCES["skyreels" if repo.family == "skyreels" else "wan"]
