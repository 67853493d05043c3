# SPDX-License-Identifier: Apache-2.0
"""Makes `tests/interop/references` again with the original implementations, or checks that they still say the same.

python -m tests.interop.references [--check]     (make interop)
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "references"
# model: cases that are kept (None: all); what is kept of them is small
KEPT = {
    "wan": None,
    "wan_i2v": None,
    "skyreels": None,
    "umt5": None,
    "vae": ("T1", "T9"),
    "vae22": ("T1", "T5"),
    "clip": None,
}
LEFT_OUT = {"vae": ("z", "recon"), "vae22": ("z", "recon"), "umt5": ("context512",)}
TAP = "low_variance/tap/blocks.0.norm1"
PROMPT, NEGATIVE, GUIDANCE, STEPS = "a cat runs on the beach.", "slow rain", 5.0, 5
CLOSE = 2e-5  # torch against torch on another machine


def reference(root: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    """What is kept of a model's ref.npz."""
    kept = {}
    with np.load(root / name / "ref.npz") as file:
        for key in file.files:
            case, kind, what = key.split("/", 2)
            wanted = KEPT[name] is None or case in KEPT[name]
            if wanted and what not in LEFT_OUT.get(name, ()) and (kind != "tap" or key == TAP):
                kept[key] = file[key]
    return kept


def assemble_i2v(root: pathlib.Path) -> pathlib.Path:
    """The tiny repository with the transformer that wants an image, and the image tower, in diffusers' layout."""
    folder = root / "pipeline_i2v"
    shutil.copytree(root / "pipeline_diffusers", folder)
    shutil.rmtree(folder / "transformer")
    shutil.copytree(root / "wan_i2v" / "diffusers", folder / "transformer")
    shutil.copytree(root / "clip" / "diffusers", folder / "image_encoder")
    (folder / "image_processor").mkdir()
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "resample": 3}
    processor |= {"crop_size": {"height": 28, "width": 28}}
    (folder / "image_processor" / "preprocessor_config.json").write_text(json.dumps(processor))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "WanImageToVideoPipeline", "image_encoder": ["transformers", "CLIPVisionModel"]}
    index |= {"image_processor": ["transformers", "CLIPImageProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def pipeline(root: pathlib.Path, image: bool = False) -> dict[str, np.ndarray]:
    """diffusers' own pipeline on a folder in its layout: five Euler steps from given noise."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline
    from PIL import Image

    pipe = (WanImageToVideoPipeline if image else WanPipeline).from_pretrained(root)
    picture = np.random.default_rng(6).integers(0, 256, (32, 48, 3), np.uint8)
    more = {"image": Image.fromarray(picture)} if image else {}
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(5).standard_normal((1, 16, 3, 4, 6)).astype(np.float32)
    size = {"height": 32, "width": 48, "num_frames": 9}
    latents = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=torch.from_numpy(noise),
        output_type="latent",
        **size,
        **more,
    ).frames
    mean, std = (
        torch.tensor(n).view(1, -1, 1, 1, 1)
        for n in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    with torch.no_grad():
        video = pipe.vae.decode(latents * std + mean).sample
    made = {
        "noise": noise,
        "sigmas": pipe.scheduler.sigmas.numpy(),
        "latents": latents.numpy(),
        "video": video.numpy(),
    }
    made |= {"picture": picture} if image else {}
    return made | {
        "prompt": np.asarray(PROMPT),
        "negative": np.asarray(NEGATIVE),
        "guidance": np.float32(GUIDANCE),
    }


def unipc() -> dict[str, np.ndarray]:
    """diffusers' UniPC on a flow that is a formula, ``tanh(x a) (1/2 + t) + 3 x / 10``: three families' steps and shifts."""
    import torch
    from diffusers import UniPCMultistepScheduler

    rng = np.random.default_rng(4)
    x, a = (
        rng.standard_normal((1, 2, 6)).astype(np.float32),
        rng.standard_normal((6, 6)).astype(np.float32) / 2,
    )
    made = {"x": x, "a": a}
    for steps, shift in ((5, 3.0), (12, 5.0), (30, 8.0)):
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
        scheduler.set_timesteps(steps)
        y = torch.from_numpy(x)
        for sigma, t in zip(scheduler.sigmas.tolist(), scheduler.timesteps, strict=False):
            flow = torch.tanh(y @ torch.from_numpy(a)) * (0.5 + sigma) + 0.3 * y
            y = scheduler.step(flow, t, y).prev_sample
        made |= {f"{steps}/sigmas": scheduler.sigmas.numpy(), f"{steps}/y": y.numpy()}
    return made


def make(root: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """All references by file name, made in the empty folder ``root``."""
    from tests.interop import oracle

    for name, maker in oracle.MAKERS.items():
        maker(str(root / name), 0)
    oracle.assemble(str(root))
    made = {name: reference(root, name) for name in KEPT}
    made["pipeline"] = pipeline(root / "pipeline_diffusers")
    made["unipc"] = unipc()
    return made | {"pipeline_i2v": pipeline(assemble_i2v(root), image=True)}


def differences(made) -> list[str]:
    """What the committed references say otherwise."""
    found = []
    for name, arrays in made.items():
        with np.load(FOLDER / f"{name}.npz") as file:
            old = dict(file)
        if set(old) != set(arrays):
            found.append(f"{name}: other names {sorted(set(old) ^ set(arrays))[:4]}")
            continue
        for key, value in arrays.items():
            same = value.shape == old[key].shape and (
                np.array_equal(value, old[key])
                if value.dtype.kind not in "f"
                else np.allclose(
                    value, old[key], rtol=0, atol=50 * CLOSE if key.startswith("low_variance") else CLOSE
                )
            )
            found += [] if same else [f"{name}: {key}"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with what is committed, and write nothing"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        made = make(root)
        keys = {name: json.loads((root / name / "keys.json").read_text()) for name in KEPT}
        if options.check:
            wrong = differences(made)
            wrong += [] if keys == json.loads((FOLDER / "keys.json").read_text()) else ["keys.json"]
            ids = [json.loads((at / "tokenizer" / "ref.json").read_text())["ids"] for at in (root, FOLDER)]
            wrong += [] if ids[0] == ids[1] else ["tokenizer"]
            print(*wrong, f"{len(wrong)} references differ", sep="\n")
            sys.exit(bool(wrong))
        FOLDER.mkdir(exist_ok=True)
        for name, arrays in made.items():
            np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
        (FOLDER / "keys.json").write_text(json.dumps(keys, indent=0, sort_keys=True) + "\n")
        shutil.copytree(root / "tokenizer", FOLDER / "tokenizer", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
