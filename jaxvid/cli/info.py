# SPDX-License-Identifier: Apache-2.0
"""Tells what a checkpoint is, what it serves and how it was made; of a video, its recipe."""

from __future__ import annotations

import json
import pathlib
import sys

from jaxvid.types import InputError


def arguments(parser):
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="a bundle, a run's directory (default: the shipped) or an mp4",
    )


def run(options) -> None:
    """Prints to standard output; reads everything, so that a damaged checkpoint is found out."""
    if options.checkpoint is not None and pathlib.Path(options.checkpoint).suffix.lower() in (
        ".mp4",
        ".gif",
        ".webp",
    ):
        from jaxvid.io.video_file import read_metadata

        recipe = read_metadata(options.checkpoint)
        if not recipe:
            print(f"jaxvid: {options.checkpoint} has no recipe, it was not made here", file=sys.stderr)
        print(json.dumps(recipe, indent=1, ensure_ascii=False))
        return
    from jaxvid.pipeline import SHIPPED, Pipeline

    if options.checkpoint is not None and pathlib.Path(options.checkpoint).is_file():
        raise InputError(
            f"{options.checkpoint} is a file; give a bundle, a run's directory, or a video of jaxvid (.mp4, .gif, .webp)"
        )
    pipe = Pipeline.load(options.checkpoint)
    engine, serves = pipe.engine, pipe.serves
    rows = {
        "checkpoint": options.checkpoint or f"{SHIPPED} (shipped)",
        "model": f"{_millions(engine.params)} parameters, "
        f"{'causal' if engine.model_is_causal else 'bidirectional'}, {pipe.spec['model']['kind']}",
        "autoencoder": f"{_millions(engine.variables['params'])} parameters, "
        f"{engine.vae.time_factor}x{engine.vae.space_factor}x{engine.vae.space_factor} to {engine.vae.z} channels",
        "process": json.dumps({k: v for k, v in pipe.spec["process"].items() if k != "kind"}, sort_keys=True),
        "text": f"at most {pipe.text_length} bytes per sentence",
        "sizes": ", ".join(f"{height}x{width}" for height, width in serves["sizes"]) + " (height x width)",
        "fps": ", ".join(f"{fps:g}" for fps in serves["fps"]),
        "seconds": f"up to {serves['seconds']:g}" if "seconds" in serves else "no limit of its own",
        "defaults": ", ".join(f"{name} {value}" for name, value in sorted(pipe.defaults.items())),
    }
    for name, value in rows.items():
        print(f"{name:<12} {value}")
    if pipe.card:
        print(f"\n{pipe.card.strip()}")


def _millions(tree) -> str:
    import jax

    return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f} M"
