# SPDX-License-Identifier: Apache-2.0
"""Our side of the race: every implementation that serves a case on this machine, checked, then timed.

python -m experiments.e001_bench.ours --leg cpu            # prints a JSON row per line
python -m experiments.e001_bench.ours --leg gpu --compile  # compiles every shape for an H200 that need not be here
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.e001_bench.cases import PASSES, TOLERANCE, Case, apart, cases, inputs, right, shapes
from jaxvid.models import video_vae
from jaxvid.models.video_dit import VideoDiT, dit, dit_4b, lingen, lingen_4b
from jaxvid.ops import masks, pick
from jaxvid.ops.attention import attention
from jaxvid.ops.conv import conv3d
from jaxvid.ops.ssd import ssd
from jaxvid.ops.windows import window_attention

OFFERS = {
    "cpu": {"attention": ("chunked", "reference"), "windows": ("partition",), "scan": ("chunked",)},
    "gpu": {
        "attention": ("mosaic_gpu", "cudnn"),
        "windows": ("mosaic_gpu", "partition"),
        "scan": ("mosaic_gpu", "chunked"),
    },
}


def function(case: Case, name: str) -> Callable[..., Any]:
    """The forward pass of a checked kind: arrays of `inputs` but the last -> result."""
    if case.kind == "attention":
        mask, reach = case.more
        mask = {"full": masks.full(), "causal": masks.causal(), "band": masks.band(reach, reach)}[mask]
        return lambda q, k, v: attention(q, k, v, mask=mask, implementation=name)
    if case.kind == "windows":
        window, shift = case.more
        return lambda q, k, v: window_attention(q, k, v, window=window, shift=shift, implementation=name)
    if case.kind == "scan":
        return lambda *a: ssd(*a, implementation=name)[0]
    return functools.partial(conv3d, padding=((2, 0), (1, 1), (1, 1)))


def whole(case: Case) -> tuple[Callable[..., Any], list[Any]]:
    """Of networks: the forward pass, and the shapes of its arguments. Weights are shapes until they are drawn."""
    b, t, h, w = case.shape
    if case.kind == "decode":
        vae = video_vae.shapes() if case.dtype == "float32" else video_vae.wan21(dtype=case.dtype)
        z = jax.ShapeDtypeStruct((b, t, h, w, vae.z), jnp.float32)
        pixels = jax.ShapeDtypeStruct((1, 1, vae.space_factor, vae.space_factor, 3), jnp.float32)
        variables = dict(jax.eval_shape(vae.init, jax.random.key(0), pixels))
        memory = jax.eval_shape(lambda: vae.init_decode_memory(b, h, w))
        run = lambda variables, z, memory: vae.apply(
            variables, z, memory, False, method="from_latents_chunk"
        )[0]
        return run, [variables, z, memory]
    model = network(case)
    args = [
        jax.ShapeDtypeStruct((b, t, h, w, model.channels), jnp.float32),
        jax.ShapeDtypeStruct((b, t), jnp.float32),
        jax.ShapeDtypeStruct((b, 1, 64, model.text_width), jnp.float32),
    ]
    call = lambda x, t, text: (x, t, {"text": text})
    params = jax.eval_shape(lambda *a: model.init(jax.random.key(0), *call(*a)), *args)
    return lambda params, *a: model.apply(params, *call(*a))[0], [params, *args]


def network(case: Case) -> VideoDiT:
    if case.kind == "sampler":
        return lingen_4b(remat=False)
    name, width = case.more
    if width == 192:
        return lingen(repeats=1) if name == "lingen" else dit(layers=4)
    return lingen_4b(repeats=1, remat=False) if name == "lingen" else dit_4b(repeats=4, remat=False)


def drawn(tree: Any) -> Any:
    """Random numbers of a sensible size for shapes."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    draw = lambda s: jnp.asarray(0.1 * rng.standard_normal(s.shape, np.float32), s.dtype)
    return structure.unflatten([draw(leaf) for leaf in leaves])


def timed(run: Callable[..., Any], args: Any, repeats: int) -> dict[str, float]:
    """Milliseconds of a compiled function."""
    jax.block_until_ready(run(*args))
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        took.append(1e3 * (time.perf_counter() - start))
    return {"ms": float(np.median(took)), "least": min(took), "most": max(took)}


def both(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Forward and backward pass: ``(*arguments, gradient of the result)``."""

    def run(*arrays):
        out, back = jax.vjp(forward, *arrays[:-1])
        return out, back(arrays[-1].astype(out.dtype))

    return run


def programs(case: Case, leg: str) -> Iterator[tuple[str, str, Callable[..., Any], Any]]:
    """(who, pass, function, arguments as shapes) of a case."""
    if case.kind in ("block", "sampler", "decode"):
        run, args = whole(case)
        yield "jaxvid", "forward", run, args
        return
    dtype = lambda i: jnp.float32 if case.kind == "scan" and i in (1, 2) else case.dtype
    args = [jax.ShapeDtypeStruct(shape, dtype(i)) for i, shape in enumerate(shapes(case))]
    for name in OFFERS[leg].get(case.kind, ("jaxvid",)):
        forward = function(case, name)
        for which in PASSES:
            yield (
                name if name == "jaxvid" else f"jaxvid {name}",
                which,
                forward if which == "forward" else both(forward),
                args[:-1] if which == "forward" else args,
            )


def check(case: Case, name: str) -> float:
    """How far the small twin is from float64. Raises NotImplementedError where it is refused."""
    arrays = inputs(case.small)
    low = [
        jnp.asarray(a, np.float32 if case.kind == "scan" and i in (1, 2) else case.dtype)
        for i, a in enumerate(arrays)
    ]
    got = jax.jit(function(case.small, name))(*low[:-1])
    return apart(np.asarray(got, np.float32), right(case.small, [np.asarray(a, np.float32) for a in low]))


def race(leg: str, only: str, repeats: int) -> Iterator[dict[str, Any]]:
    """A row per case, implementation and pass."""
    a = jnp.asarray(
        np.random.default_rng(0).standard_normal((2048, 2048), np.float32),
        "float32" if leg == "cpu" else "bfloat16",
    )
    product = timed(jax.jit(lambda a: a @ a), [a], repeats)
    yield {"case": "product 2048", "by": "jaxvid", "pass": "forward", "flops": 2.0 * 2048**3, **product}
    for case in cases(leg):
        if only not in case.name:
            continue
        errors: dict[str, float] = {}
        for by, which, run, args in programs(case, leg):
            row = {"case": case.name, "by": by, "pass": which, "dtype": case.dtype, "flops": case.flops}
            try:
                if case.kind in ("attention", "windows", "scan", "conv"):
                    name = by.partition(" ")[2]
                    if by not in errors:
                        errors[by] = check(case, name)
                    row["error"] = errors[by]
                    if not errors[by] < TOLERANCE[case.dtype]:
                        yield {**row, "not": f"wrong by {errors[by]:.2g}"}
                        continue
                made = jax.jit(run).lower(*args).compile()
                yield {**row, **timed(made, drawn_like(case, args), repeats)}
            except NotImplementedError as refusal:
                yield {**row, "not": str(refusal)}


def drawn_like(case: Case, args: Any) -> Any:
    """Arguments to time with: those of the case, or random ones."""
    if case.kind in ("block", "sampler", "decode"):
        return drawn(args)
    made = inputs(case)[: len(args)]
    return [jnp.asarray(a, s.dtype) for a, s in zip(made, args, strict=True)]


def compile_all(leg: str, only: str) -> None:
    """Through the compiler of an H200, without one; needs jax's CUDA plugin (the extra cuda13)."""
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from jaxvid.cli.plan_topology import check_compiler, devices, parse_topology

    topology = parse_topology("h200:1")
    check_compiler(topology)
    place = NamedSharding(
        Mesh(np.array(devices(topology)[:1]), ("x",), axis_types=(AxisType.Auto,)), PartitionSpec()
    )
    for case in cases(leg):
        if only not in case.name:
            continue
        for by, which, run, args in programs(case, leg):
            args = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), args)
            with pick.tracing_for("gpu"):
                start = time.perf_counter()
                try:
                    jax.jit(run).lower(*args).compile()
                    said = f"compiled in {time.perf_counter() - start:.1f} s"
                except NotImplementedError as refusal:
                    said = f"refused: {refusal}"
            print(f"{case.name:<36} {by:<20} {which:<8} {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leg", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if args.compile:
        compile_all(args.leg, args.only)
        return
    device = jax.devices()[0].device_kind
    for row in race(args.leg, args.only, args.repeats):
        print(json.dumps({**row, "version": f"jax {jax.__version__}", "device": device}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    main()
