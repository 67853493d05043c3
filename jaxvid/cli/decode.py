# SPDX-License-Identifier: Apache-2.0
"""Turns kept latents into a video, when the writing of one had failed."""

from __future__ import annotations

from jaxvid.cli import main
from jaxvid.cli.progress import Progress
from jaxvid.cli.record import Writers, load_latents, outputs


def arguments(parser):
    parser.add_argument("latents", metavar="LATENTS.safetensors", help="as jaxvid generate kept them")
    parser.add_argument("--out", default="out.mp4", help=".mp4, .gif or .webp (default: out.mp4)")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="the one that made them (default: the shipped model)"
    )


def run(options) -> None:
    """Decodes as a stream and prints the paths on the last lines of standard output."""
    latents, meta = load_latents(options.latents)
    paths = outputs(options.out, len(latents))

    from jaxvid.pipeline import Pipeline

    main.use_compilation_cache()
    pipe, progress = Pipeline.load(options.checkpoint), Progress()
    fps = float(meta.get("fps") or pipe.serves["fps"][0])
    recipes = meta.get("recipes") or [{}] * len(latents)
    size = tuple(side * pipe.engine.vae.space_factor for side in latents.shape[2:4])
    with Writers(paths, fps, size, recipes) as writers:
        for number, one in enumerate(latents):
            for event in pipe.stream_decode(one, meta.get("frames")):
                progress.update(event.stage, event.done, event.total, event.unit, event.note)
                writers.append(number, event.frames)
    progress.close()
    print(*paths, sep="\n")
