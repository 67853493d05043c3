# SPDX-License-Identifier: Apache-2.0
"""A forward pass of Wan's transformer, ours jitted and diffusers' in torch, in turns in one process on the CPU in float32.

python -m experiments.e004_beside_diffusers.run [--cases tiny layer] [--repeats 7] [--write docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.page import write
from jaxvid.config import build
from jaxvid.imports import table_of
from jaxvid.io.interop import Weights, convert
from jaxvid.io.lazy import from_array
from jaxvid.io.wan_keys import foreign_keys, foreign_shape
from jaxvid.io.weights import unflatten

KIND = "jaxvid.models.wan_dit:WanDiT"
TINY = {"width": 64, "layers": 3, "hidden": 160, "head": 32, "text_width": 48, "level_channels": 64}
# name: sizes that differ from those of Wan 2.1 1.3B, latent frames, rows and columns, text tokens
CASES = {
    "tiny": (TINY, (3, 6, 10), 24),
    "layer": ({"layers": 1}, (5, 32, 32), 512),
    "layer at 480p": ({"layers": 1}, (5, 60, 104), 512),
}
RESULTS = pathlib.Path(__file__).parent / "results.json"


def drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a key: about what training leaves, and never zero or one everywhere."""
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, np.float32)
    if "norm" in key and key.endswith("weight"):
        return 1 + 0.1 * x
    return x * (0.1 if x.ndim == 1 else float(np.prod(shape[1:])) ** -0.5)


def networks(sizes: dict[str, Any]):
    """(our model, our parameters, diffusers' model) of the same weights."""
    import diffusers
    import torch

    node = {"kind": KIND, **sizes}
    model = build(node)
    leaves, shapes = table_of("dit", node)
    arrays = {}
    for leaf in leaves:
        shape = foreign_shape(leaf, shapes[leaf.name])
        arrays |= {key: drawn(key, shape) for key in foreign_keys(leaf, shapes[leaf.name])}
    weights = Weights("dit", "diffusers", {k: from_array(a) for k, a in arrays.items()}, "drawn")
    made = convert(leaves, shapes, weights)
    params = unflatten({name: jnp.asarray(array.read()) for name, array in made.items()})
    theirs = diffusers.WanTransformer3DModel(
        num_attention_heads=model.width // model.head,
        attention_head_dim=model.head,
        in_channels=model.channels,
        out_channels=model.channels,
        text_dim=model.text_width,
        freq_dim=model.level_channels,
        ffn_dim=model.hidden,
        num_layers=model.layers,
    )
    theirs.load_state_dict({k: torch.from_numpy(a) for k, a in arrays.items()})
    return model, params, theirs.eval()


def runs(sizes: dict[str, Any], grid: tuple[int, int, int], text: int) -> dict[str, Callable[[], np.ndarray]]:
    """Two functions without arguments that give the same output [B, T, H, W, C]."""
    import torch

    model, params, theirs = networks(sizes)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, *grid, model.channels), np.float32)
    rows = rng.standard_normal((1, text, model.text_width), np.float32)
    apply = jax.jit(lambda p, x, t, rows: model.apply({"params": p}, x, t, {"text": rows})[0])
    mine = jnp.asarray(x), jnp.full((1, grid[0]), 0.5), jnp.asarray(rows)[:, None]
    given = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))), torch.tensor([500])

    def ours():
        return np.asarray(apply(params, *mine))

    def torchs():
        with torch.inference_mode():
            out = theirs(given[0], given[1], torch.from_numpy(rows), return_dict=False)[0]
        return np.moveaxis(out.numpy(), 1, -1)

    return {"ours": ours, "diffusers": torchs}


def measure(name: str, repeats: int) -> dict[str, Any]:
    """A row: sizes, best and median milliseconds of both, and how far apart their outputs are."""
    sizes, grid, text = CASES[name]
    pair = runs(sizes, grid, text)
    begun = time.perf_counter()
    first = pair["ours"]()
    compiling = time.perf_counter() - begun
    other = pair["diffusers"]()
    took: dict[str, list[float]] = {who: [] for who in pair}
    for _ in range(repeats):
        for who, run in pair.items():
            begun = time.perf_counter()
            run()
            took[who].append(1e3 * (time.perf_counter() - begun))
    row = {
        "case": name,
        "tokens": grid[0] * (grid[1] // 2) * (grid[2] // 2),
        "text": text,
        "repeats": repeats,
    }
    row |= {"first call s": compiling, "difference": float(np.abs(first - other).max())}
    row["largest output"] = float(np.abs(other).max())
    for who, times in took.items():
        row |= {f"{who} best ms": min(times), f"{who} median ms": statistics.median(times)}
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| network | tokens | ours ms, best (median) | diffusers ms, best (median) | ratio of best | outputs differ by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        pairs = [
            f"{row[f'{who} best ms']:.1f} ({row[f'{who} median ms']:.1f})" for who in ("ours", "diffusers")
        ]
        ratio = row["ours best ms"] / row["diffusers best ms"]
        lines.append(
            f"| {row['case']} | {row['tokens']:,} | {pairs[0]} | {pairs[1]} | {ratio:.2f} | {row['difference']:.1e} |"
        )
    return lines


def versions() -> str:
    names = ("jax", "torch", "diffusers", "transformers")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", type=pathlib.Path, help="a page to put the table in")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    argv = sys.argv[1:] if argv is None else argv
    load = os.getloadavg()[0]
    with jax.default_matmul_precision("highest"):
        rows = [measure(name, args.repeats) for name in args.cases]
    about = {
        "command": f"python -m experiments.e004_beside_diffusers.run {' '.join(map(str, argv))}".strip(),
        "date": str(datetime.date.today()),
        "versions": f"{versions()}, Python {platform.python_version()}",
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores, load average {load:.1f} before it began",
    }
    RESULTS.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    said = [
        "## Wan's transformer beside diffusers'",
        "",
        "One forward pass at batch 1 in float32 on the CPU: ours jitted, diffusers' in torch, in turns in one process,",
        "from the same weights. *tiny* is the network of the tests, *layer* one layer of Wan 2.1 1.3B with everything",
        "before and after it.",
        "",
        f"`{about['command']}`, {about['date']}, {about['versions']}, {about['hardware']}.",
        "",
        *table(rows),
    ]
    print("\n".join(said))
    if args.write:
        write(args.write, "e004_beside_diffusers", "\n".join(said))


if __name__ == "__main__":
    main()
