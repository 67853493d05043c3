# SPDX-License-Identifier: Apache-2.0
"""An imported directory back to where its weights came from: diffusers' layout or the authors', bit for bit.

A config that was imported from the same layout is written as it was, and what it leaves out is filled in from the network's
sizes; of another layout all of it is.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from jaxvid.imports import described, stored_part, stored_stats, table_of
from jaxvid.io.interop import convert_back
from jaxvid.io.lazy import Stored, write_sharded
from jaxvid.io.pth import write_pth
from jaxvid.types import InputError

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
LAYOUTS = ("diffusers", "original")
SHARD_BYTES = 5_000_000_000
_FOLDERS = {"dit": "transformer", "vae": "vae", "umt5": "text_encoder", "clip": "image_encoder"}
_STEMS = {
    "dit": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "umt5": "model",
    "clip": "model",
}


def export(path, target, layout: str, largest: int = SHARD_BYTES) -> Iterator[str]:
    """Writes the directory ``target``, saying what. ``largest``: bytes of a shard. Raises InputError."""
    path, target = pathlib.Path(path), pathlib.Path(target)
    if layout not in LAYOUTS:
        raise InputError(f"format {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists; choose an empty or new directory")
    networks, told, bundle = described(path)
    if layout == "original" and "clip" in networks:
        raise InputError(
            f"{path} has an image encoder, whose authors' layout is not written; export to diffusers"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        for name, node in networks.items():
            leaves, shapes = table_of(name, node)
            ours = stored_part(path, name, bundle)
            lacking = sorted(set(shapes) - set(ours)) + [
                n for n in shapes if n in ours and ours[n].shape != shapes[n]
            ]
            if lacking:
                raise InputError(
                    f"{path}: {name} lacks {lacking[0]} or has it in another shape; import again"
                )
            origin = told["parts"][name]
            arrays = convert_back(leaves, ours, origin["part"], layout)
            stats = stored_stats(path, bundle) if name == "vae" else {}
            kept = dict(origin.get("config") or {}) if origin["layout"] == layout else {}
            config = kept | {
                k: v for k, v in _config(name, node, stats, told, layout).items() if k not in kept
            }
            _write(aside, name, node, arrays, config, layout, largest)
            yield f"{name}: {len(arrays)} arrays, {layout} layout"
        _beside(path, aside, told, layout, networks)
        os.chmod(aside, 0o755)
        if target.exists():
            target.rmdir()
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    yield f"licence: {told.get('licence', 'unknown')}"


def _write(
    folder, name: str, node, arrays: Mapping[str, Stored], config: dict[str, Any], layout: str, largest: int
):
    if layout == "diffusers":
        folder = folder / _FOLDERS[name]
        folder.mkdir()
        _json(folder / "config.json", config)
        write_sharded(folder, _STEMS[name], arrays, largest)
    elif name == "dit":
        _json(folder / "config.json", config)
        write_sharded(folder, _STEMS[name], arrays, largest)
    else:
        vae = "Wan2.2_VAE.pth" if node.get("residual") else "Wan2.1_VAE.pth"
        write_pth(folder / (vae if name == "vae" else "models_t5_umt5-xxl-enc-bf16.pth"), arrays)


def _json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _beside(path: pathlib.Path, folder: pathlib.Path, told, layout: str, networks) -> None:
    """Tokenizer, licence, and for diffusers the index of the pipeline and its sampler."""
    for paper in sorted(path.glob("LICEN[CS]E*")):
        shutil.copyfile(paper, folder / paper.name)
    card = f"---\nlicense: {'apache-2.0' if 'Apache-2.0' == told.get('licence') else 'other'}\n---\n\n"
    (folder / "README.md").write_text(
        f"{card}Licence of the weights: {told.get('licence')}\n", encoding="utf-8"
    )
    if (path / "tokenizer").is_dir():
        shutil.copytree(
            path / "tokenizer", folder / ("tokenizer" if layout == "diffusers" else "google/umt5-xxl")
        )
    if layout == "original" or not (path / "tokenizer").is_dir():
        return
    sky, shift = (
        told.get("family") == "skyreels",
        {"skyreels": 8.0, "wan21-1.3b": 3.0}.get(told.get("family"), 5.0),
    )
    names = (
        ("SkyReelsV2DiffusionForcingPipeline", "SkyReelsV2Transformer3DModel")
        if sky
        else ("WanPipeline", "WanTransformer3DModel")
    )
    index = {
        "_class_name": names[0],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", names[1]],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    index |= {"expand_timesteps": True} if told.get("family") == "wan22-5b" else {}
    if "clip" in networks:
        index |= {
            "_class_name": "WanImageToVideoPipeline",
            "image_encoder": ["transformers", "CLIPVisionModel"],
        }
        index |= {"image_processor": ["transformers", "CLIPImageProcessor"]}
        size = networks["clip"]["size"]
        (folder / "image_processor").mkdir()
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": size},
            "resample": 3,
        }
        processor |= {
            "crop_size": {"height": size, "width": size},
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        }
        _json(folder / "image_processor" / "preprocessor_config.json", processor)
    _json(folder / "model_index.json", index)
    (folder / "scheduler").mkdir()
    scheduler = {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
        "solver_order": 2,
    }
    _json(folder / "scheduler" / "scheduler_config.json", scheduler)


def _config(name: str, node: Mapping[str, Any], stats, told, layout: str) -> dict[str, Any]:
    """The config.json of a network in a layout that it did not come from."""
    if name == "clip":
        return {
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            "hidden_size": node["width"],
            "intermediate_size": node["hidden"],
            "num_hidden_layers": node["layers"],
            "num_attention_heads": node["heads"],
            "image_size": node["size"],
            "patch_size": node["patch"],
            "hidden_act": node["act"],
            "layer_norm_eps": 1e-5,
        }
    if name == "umt5":
        return {
            "architectures": ["UMT5EncoderModel"],
            "model_type": "umt5",
            "vocab_size": node["vocabulary"],
            "d_model": node["width"],
            "d_kv": node["head"],
            "d_ff": node["hidden"],
            "num_layers": node["layers"],
            "num_heads": node["heads"],
            "feed_forward_proj": "gated-gelu",
            "layer_norm_epsilon": 1e-6,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "tie_word_embeddings": True,
        }
    if name == "vae":
        patch = node["patch"]
        config = {
            "_class_name": "AutoencoderKLWan",
            "base_dim": node["base"],
            "z_dim": node["z"],
            "dim_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "attn_scales": [],
            "temperal_downsample": [False, True, True],
            "latents_mean": [round(float(x), 7) for x in stats["mean"]],
            "latents_std": [round(float(x), 7) for x in stats["std"]],
        }
        if node["residual"]:
            sides = {"in_channels": 3 * patch**2, "out_channels": 3 * patch**2, "patch_size": patch}
            config |= {
                "decoder_base_dim": node["dec_base"],
                "is_residual": True,
                **sides,
                "scale_factor_spatial": 8 * patch,
            }
        return config
    heads, taken = node["width"] // node["head"], node["channels"] + node.get("beside", 0)
    common = {
        "num_layers": node["layers"],
        "ffn_dim": node["hidden"],
        "freq_dim": node["level_channels"],
        "eps": node["eps"],
    }
    rates = {"inject_sample_info": True} if node.get("rates") else {}
    if layout == "original":
        kind = "i2v" if node.get("image_width") else "ti2v" if node["channels"] == 48 else "t2v"
        sizes = {
            "dim": node["width"],
            "in_dim": taken,
            "out_dim": node["channels"],
            "num_heads": heads,
            "text_len": 512,
        }
        return {"_class_name": "WanModel", "model_type": kind, **sizes, **common, **rates}
    sky = told.get("family") == "skyreels"
    image = node.get("image_width") or None
    return {
        "_class_name": "SkyReelsV2Transformer3DModel" if sky else "WanTransformer3DModel",
        "patch_size": [1, 2, 2],
        "num_attention_heads": heads,
        "attention_head_dim": node["head"],
        "in_channels": taken,
        "out_channels": node["channels"],
        "text_dim": node["text_width"],
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "image_dim": image,
        "added_kv_proj_dim": node["width"] if image else None,
        "rope_max_seq_len": 1024,
        **common,
        **rates,
    }
