# SPDX-License-Identifier: Apache-2.0
"""Which chunk is fastest for the scan on this machine? Times of `ssd`, forward, and forward with gradients.

python -m experiments.e000_linear_law.chunks [--chunks 8 16 32 64] [--repeats 8]
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.ops.ssd import ssd

# name: B, L, H, P, N: a batch of 4 s training clips, and a minute for guidance's batch of two
SHAPES = {"B16 L288 H8 P32 N32": (16, 288, 8, 32, 32), "B2 L4096 H8 P48 N32": (2, 4096, 8, 48, 32)}


def inputs(batch: int, length: int, heads: int, width: int, size: int):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    x, b, c = draw(batch, length, heads, width), draw(batch, length, 1, size), draw(batch, length, 1, size)
    return x, jax.nn.softplus(draw(batch, length, heads) - 3), -jnp.exp(draw(heads)), b, c, draw(heads)


def best(fn, args, repeats: int) -> tuple[float, float]:
    """Best wall and best CPU milliseconds."""
    jax.block_until_ready(fn(*args))
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(fn(*args))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return 1e3 * min(walls), 1e3 * min(cpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=8)
    args = parser.parse_args()
    print(
        f"jax {jax.__version__}, Python {platform.python_version()}, {jax.devices()[0]}, {os.cpu_count()} CPU cores"
    )
    print("| shape | chunk | forward ms (CPU ms) | with gradients ms (CPU ms) |\n|---|---|---|---|")
    for name, shape in SHAPES.items():
        values = inputs(*shape)
        for chunk in args.chunks:
            forward = lambda *v, chunk=chunk: ssd(*v, chunk=chunk)[0]
            loss = lambda *v, forward=forward: jnp.sum(jnp.square(forward(*v)))
            wall, cpu = best(jax.jit(forward), values, args.repeats)
            wall_g, cpu_g = best(jax.jit(jax.value_and_grad(loss, tuple(range(6)))), values, args.repeats)
            print(f"| {name} | {chunk} | {wall:.1f} ({cpu:.1f}) | {wall_g:.1f} ({cpu_g:.1f}) |", flush=True)


if __name__ == "__main__":
    main()
