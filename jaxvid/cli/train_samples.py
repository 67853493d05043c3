# SPDX-License-Identifier: Apache-2.0
"""Pictures of how far a stage is: a reconstruction beside its original, or videos made from the average."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import imageio.v3
import jax
import numpy as np

from jaxvid.data.text import decode_text
from jaxvid.training.processes import first, on_host, together
from jaxvid.types import InputError

SHOWN = 6  # frames of a clip in a reconstruction picture


def sampler(
    stage: Any, folder: str, tracker: Any, say: Callable[[str], None]
) -> Callable[[Any, int], None] | None:
    """Pictures of how far the stage is, in FOLDER/samples; None for models that are neither autoencoder nor backbone."""
    coder = stage.codec is None and hasattr(stage.task.model, "to_latents")
    if stage.captions is not None or (stage.codec is None and not coder):
        return None
    os.makedirs(os.path.join(folder, "samples"), exist_ok=True)

    def show(state: Any, step: int) -> None:
        state = on_host(state)
        if first() and coder:
            reconstruction(stage, state, step, folder, tracker)
        elif first():
            videos(stage, state, step, folder, tracker, say)
        together("samples")

    return show


def pipeline_spec(stage: Any) -> dict[str, Any]:
    """What a pipeline must know to be made from this stage; see `jaxvid.io.bundle`."""
    node = stage.node
    sizes = sorted({(b.height, b.width) for b in stage.buckets})
    serve = dict(node.get("serve") or {})
    longest = max(b.frames for b in stage.buckets) / stage.fps
    serves = {"sizes": [list(s) for s in sizes], "fps": [stage.fps], "seconds": serve.pop("longest", 600.0)}
    if hasattr(stage.task, "origins"):  # it distils: see `jaxvid.training.distill`
        serves["student"] = True
    served = getattr(stage.task, "served", None)
    return {
        **({} if served is None else {"part": served}),
        "model": node.task.model,
        "vae": stage.codec.node if stage.codec else None,
        "process": node.task.process,
        "serves": serves,
        "defaults": {"seconds": round(longest, 3), **serve},
        "text_length": int(node.data.get("text_length", 96)),
    }


def reconstruction(stage: Any, state: Any, step: int, folder: str, tracker: Any) -> None:
    """FOLDER/reconstruction.png: up to three held-out clips, each above what the autoencoder makes of it."""
    source = stage.raw if stage.raw_held_out is None else stage.raw_held_out
    x = stage.batches(source, 1)[0][0].x
    x = x[:: -(-len(x) // 3)]
    variables = {"params": state.ema, **state.rest}
    y = np.asarray(jax.jit(lambda v, x: stage.task.model.apply(v, x)[0])(variables, x))
    rows = []
    for original, made in zip(_pixels(x), _pixels(y), strict=True):
        shown = np.linspace(0, len(original) - 1, min(SHOWN, len(original))).round().astype(int)
        rows += [np.concatenate(list(clip[shown]), 1) for clip in (original, made)]
    picture = np.concatenate(rows)
    _save_image(picture, os.path.join(folder, "reconstruction.png"))
    _save_image(picture, os.path.join(folder, "samples", f"{step:07}.png"))
    beside = np.concatenate([_pixels(x)[0], _pixels(y)[0]], 2)
    tracker.video(step, "reconstruction", beside, stage.fps)


def videos(stage: Any, state: Any, step: int, folder: str, tracker: Any, say: Callable[[str], None]) -> None:
    """FOLDER/samples/STEP-N.mp4 for the prompts of the config, or for captions that are not trained on.

    ``samples.extend`` > 0 goes on from so many first frames of a held-out clip instead of making one from nothing.
    """
    from jaxvid.pipeline import Pipeline

    options = dict(stage.node.get("samples") or {})
    if options.get("never"):
        return
    source = stage.raw if stage.raw_held_out is None else stage.raw_held_out
    shape = stage.buckets[0].shape(stage.fps)
    video, cond = stage.batches(source, 1)[0]
    prompts = tuple(options.get("prompts") or ()) or tuple(
        decode_text(t) for t in cond["tokens"][: int(options.get("count", 2)), 0]
    )
    seconds = float(options.get("seconds", shape.frames / stage.fps))
    spec = pipeline_spec(stage)
    params = jax.tree.map(np.asarray, state.ema)
    params = params[spec.pop("part")] if "part" in spec else params
    pipe = Pipeline(spec, params, stage.codec.variables)
    extend = int(options.get("extend", 0))
    for i, prompt in enumerate(prompts):
        given = {"video": _pixels(video.x)[-1 - i % len(video.x)][:extend]} if extend else {}
        try:
            clip = pipe(prompt or "a video", seconds=seconds, seed=i, **given)
        except (InputError, FloatingPointError) as e:
            # A sample is a picture of the training, not a part of it.
            say(f"no sample at step {step}: {e}")
            return
        clip.save(os.path.join(folder, "samples", f"{step:07}-{i}.mp4"))
        if i == 0:
            clip.contact_sheet(os.path.join(folder, "sample.png"))
        tracker.video(step, f"sample/{i}", np.asarray(clip.frames), clip.fps)


def _pixels(x: Any) -> np.ndarray:
    return np.round((np.clip(np.asarray(x, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def _save_image(picture: np.ndarray, path: str) -> None:
    imageio.v3.imwrite(path + ".part", picture, plugin="pillow", extension=".png")
    os.replace(path + ".part", path)
