# SPDX-License-Identifier: Apache-2.0
"""What leaving calls out costs: videos with a cache beside the exact ones, for each threshold.

python -m experiments.e005_cache.run [--checkpoint DIR] [--method oneshot] [--seconds 4] [--prompts 3]
    [--thresholds 0.05,0.1,0.2,0.3] [--write docs/long_video.md]
"""

import argparse
import datetime
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.e002_long_video.run import PROMPTS
from experiments.page import write
from jaxvid.ops.quality import psnr
from jaxvid.pipeline import Pipeline


def compared(pipe, prompts, thresholds, **asked) -> list[dict]:
    """A row for each threshold, means over the prompts: rows of the plan, those that called the network, and errors."""
    exact, rows = [pipe(prompt, **asked) for prompt in prompts], pipe.engine.asked
    made = []
    for threshold in thresholds:
        found = []
        for prompt, right in zip(prompts, exact, strict=True):
            clip = pipe(prompt, cache=threshold, **asked)
            found.append({"called": pipe.engine.asked, **errors(clip, right)})
        made.append(
            {"threshold": threshold, "rows": rows}
            | {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        )
    return made


def errors(clip, right) -> dict:
    """latents: the norm of the difference over that of the exact ones; psnr, least: of frames in dB, mean and worst."""
    off = np.linalg.norm(clip.latents - right.latents) / max(np.linalg.norm(right.latents), 1e-12)
    x, y = (jnp.asarray(one.frames, jnp.float32) / 127.5 - 1 for one in (clip, right))
    alike = np.asarray(psnr(x, y))
    return {"latents": float(off), "psnr": float(alike.mean()), "least": float(alike.min())}


def table(rows: list[dict]) -> str:
    lines = [
        "| `cache` | calls of the network | error of the latents | PSNR of frames | of the worst frame |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['threshold']:g} | {row['called']:.1f} of {row['rows']} | {100 * row['latents']:.1f} % |"
            f" {row['psnr']:.1f} dB | {row['least']:.1f} dB |"
        )
    return "\n".join(lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a bundle or a run (default: the shipped model)")
    parser.add_argument("--method", default="oneshot")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--prompts", type=int, default=3, choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--thresholds", default="0.05,0.1,0.2,0.3")
    parser.add_argument("--write", type=pathlib.Path, help="a page to put the table in")
    options = parser.parse_args(argv)
    pipe = Pipeline.load(options.checkpoint)
    asked = {"method": options.method, "seconds": options.seconds, "seed": 0}
    thresholds = [float(one) for one in options.thresholds.split(",")]
    rows = compared(pipe, PROMPTS[: options.prompts], thresholds, **asked)
    where = "the shipped model" if options.checkpoint is None else pathlib.Path(options.checkpoint).name
    about = (
        f"`{options.method}` of {where}, {options.prompts} prompts of {options.seconds:g} s, seed 0, against the"
        f" same without a cache; means over prompts. {datetime.date.today()}, jax {jax.__version__}."
    )
    text = f"{table(rows)}\n\n{about}"
    print(text)
    if options.write:
        write(options.write, "e005_cache", text)


if __name__ == "__main__":
    main()
