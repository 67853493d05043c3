# SPDX-License-Identifier: Apache-2.0
"""Does the cost of the LinGen backbone double with the length, and that of the DiT more than double?

python -m experiments.e000_linear_law.run [--presets small large] [--wall] [--write docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import platform
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.eval.flops import Flops, count_flops
from jaxvid.models.video_dit import VideoDiT, dit, dit_4b, lingen, lingen_4b
from jaxvid.ops.pick import use

# name: networks, latent frames, latent rows and columns, text tokens. The small ones are 8 layers of width 192 on
# the shapes world's latents (64x64 pixels, 4 latent frames a second); the large ones 512x512 at 17, 34 and 68 s
# behind an autoencoder of 8x8x8.
PRESETS = {
    "small": ({"LinGen": lingen, "DiT": dit}, (64, 128, 256), 8, 64),
    "large": ({"LinGen-4B": lingen_4b, "DiT-4B": dit_4b}, (34, 68, 136), 64, 512),
}


def inputs(model: VideoDiT, frames: int, side: int, text: int):
    """Shapes of one call at batch 1: x [1, T, H, W, C], t [1, T], text [1, 1, L, E]."""
    shapes = (1, frames, side, side, model.channels), (1, frames), (1, 1, text, model.text_width)
    return tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)


def forward(model: VideoDiT):
    return lambda params, x, t, text: model.apply(params, x, t, {"text": text})[0]


def parameters(model: VideoDiT):
    """The parameters as shapes; they do not depend on the length."""
    x, t, text = inputs(model, 2 * model.patch[0], 2 * model.patch[1], 1)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, {"text": text})


def count(model: VideoDiT, frames: int, side: int, text: int) -> Flops:
    """One forward pass; attention in its plain form, so that tiles add no padding. Nothing is allocated."""
    with use(attention="reference"):
        return count_flops(forward(model), parameters(model), *inputs(model, frames, side, text))


def doubling(
    model: VideoDiT, frames: list[int], side: int, text: int
) -> list[tuple[int, float, float | None]]:
    """For lengths that double: (frames, FLOPs, FLOPs over those of half the length, without text-only terms).

    With L text tokens the cost is a(T) + b L + c T L. Text-only terms, those of the captions' own projections, are
    b L; counting at L and 2 L for two lengths gives b.
    """
    one = [count(model, n, side, text).total for n in frames]
    two = [count(model, n, side, 2 * text).total for n in frames[:2]]
    slopes = [(b - a) for a, b in zip(one, two, strict=False)]  # b L + c T L, at T and 2 T
    text_only = 2 * slopes[0] - slopes[1]
    rows = [(frames[0], one[0], None)]
    for i in range(1, len(frames)):
        rows.append((frames[i], one[i], (one[i] - text_only) / (one[i - 1] - text_only)))
    return rows


def clock(model: VideoDiT, frames: int, side: int, text: int, repeats: int) -> tuple[float, float, float]:
    """Of one compiled forward pass on this machine: best wall seconds, best CPU seconds, temporary MiB."""
    shapes = inputs(model, frames, side, text)
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), parameters(model))
    args = [jnp.asarray(np.random.default_rng(0).standard_normal(s.shape), s.dtype) for s in shapes]
    run = jax.jit(forward(model)).lower(params, *args).compile()
    jax.block_until_ready(run(params, *args))
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run(params, *args))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus), run.memory_analysis().temp_size_in_bytes / 2**20


def table(preset: str, wall: bool, repeats: int) -> list[str]:
    networks, frames, side, text = PRESETS[preset]
    head = ["network", "parameters", "latent frames", "tokens", "TFLOP per forward", "over half the length"]
    head += ["wall s", "CPU s", "temporary MiB"] if wall else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, make in networks.items():
        model = make()
        size = sum(p.size for p in jax.tree.leaves(parameters(model)))
        tokens = side * side // (model.patch[1] * model.patch[2])
        for n, flops, ratio in doubling(model, list(frames), side, text):
            row = [name, f"{size / 1e6:,.1f} M", f"{n}", f"{n * tokens:,}", f"{flops / 1e12:.4g}"]
            row.append(f"{ratio:.3f}" if ratio else "")
            if wall:
                seconds, cpu, memory = clock(model, n, side, text, repeats)
                row += [f"{seconds:.2f}", f"{cpu:.2f}", f"{memory:.0f}"]
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    return lines


def between(path: pathlib.Path, name: str, text: str) -> None:
    """Put the text between an experiment's marks, leaving the rest of the page alone."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = path.read_text() if path.exists() else "# Benchmarks\n"
    if begin not in page:
        page += f"\n{begin}\n{end}\n"
    before, rest = page.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    os.replace(aside, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--wall", action="store_true", help="also run the small networks on this machine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=pathlib.Path, help="a page to put the tables in")
    args = parser.parse_args(argv)
    argv = sys.argv[1:] if argv is None else argv
    said = [
        "## The linear law",
        "",
        "One forward pass at batch 1, without autoencoder and text encoder, guidance not counted. FLOPs come from a",
        "walk over the jaxpr (`jaxvid/eval/flops.py`); a multiply-add is two. The ratios leave out text-only terms.",
        "The networks of a table have equal width; layers and parameters are in it.",
        "",
        f"`python -m experiments.e000_linear_law.run {' '.join(map(str, argv))}`, {datetime.date.today()}, "
        f"jax {jax.__version__}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPU cores"
        f"{f', load average {os.getloadavg()[0]:.1f} while it ran' if args.wall else ''}.",
    ]
    for preset in args.presets:
        said += ["", *table(preset, args.wall and preset == "small", args.repeats)]
    if args.write:
        between(args.write, "e000_linear_law", "\n".join(said))


if __name__ == "__main__":
    main()
