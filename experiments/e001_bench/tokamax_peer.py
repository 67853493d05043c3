# SPDX-License-Identifier: Apache-2.0
"""tokamax's Mosaic attention, where it is installed: the same cases, inputs and checks as ours, in a process of its own.

python -m experiments.e001_bench.tokamax_peer --leg gpu   # prints a JSON row per line
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.e001_bench.cases import PASSES, TOLERANCE, Case, apart, cases, inputs, right
from experiments.e001_bench.ours import both, timed

MISSING = "tokamax races on a GPU only, and where it is installed (pip install tokamax)"


def function(case: Case) -> Callable[..., Any]:
    """Its forward pass of q, k and v [B, L, H, K]."""
    import tokamax

    mask, reach = case.more
    options = {"causal": {"is_causal": True}, "band": {"local_window_size": (reach, reach)}}.get(mask, {})
    return lambda q, k, v: tokamax.dot_product_attention(q, k, v, implementation="mosaic", **options)


def race(leg: str, only: str, repeats: int) -> Iterator[dict[str, Any]]:
    """A row per case and pass."""
    for case in cases(leg):
        if case.kind != "attention" or only not in case.name:
            continue
        row = {"case": case.name, "by": "tokamax mosaic", "dtype": case.dtype, "flops": case.flops}
        try:
            small = [jnp.asarray(a, case.dtype) for a in inputs(case.small)]
            got = jax.jit(function(case.small))(*small[:-1])
            want = right(case.small, [np.asarray(a, np.float32) for a in small])
            row["error"] = apart(np.asarray(got, np.float32), want)
            if not row["error"] < TOLERANCE[case.dtype]:
                yield {**row, "pass": "forward", "not": f"wrong by {row['error']:.2g}"}
                continue
            arrays = [jnp.asarray(a, case.dtype) for a in inputs(case)]
            forward = function(case)
            yield {**row, "pass": PASSES[0], **timed(jax.jit(forward), arrays[:-1], repeats)}
            yield {**row, "pass": PASSES[1], **timed(jax.jit(both(forward)), arrays, repeats)}
        except (NotImplementedError, ValueError, RuntimeError) as error:
            yield {**row, "pass": "forward", "not": " ".join(str(error).split())[:120]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leg", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    try:
        version = importlib.metadata.version("tokamax")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(MISSING) from None
    for row in race(args.leg, args.only, args.repeats):
        print(json.dumps({**row, "version": f"tokamax {version}"}), flush=True)


if __name__ == "__main__":
    main()
