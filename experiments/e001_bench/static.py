# SPDX-License-Identifier: Apache-2.0
"""What libtpu's final code says of a TPU kernel, without a TPU: bundles (about a cycle each), spilled vectors, units in use.

python -m experiments.e001_bench.static --topology v6e:2x2 [--only windows]

Bundles are counted once whatever a loop does, branches for borders included; waiting for memory is not in them. Needs the
wheel libtpu. JAX's splash attention stands beside ours at its own best tiles.
"""

from __future__ import annotations

import argparse
import glob
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

LEAST = 200  # bundles; what is smaller is no kernel


def cases(shape: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any], list[Any]]]:
    """(name, function, shapes of its arguments)."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    from pallas_kernels import attention_tpu, ssd_tpu, windows_tpu

    bf, f32 = jnp.bfloat16, jnp.float32

    def trained(f):
        """Forward and backward pass: the result's gradient is the result itself."""

        def run(*arrays):
            out, back = jax.vjp(f, *arrays)
            return back(out)

        return run

    x = shape(bf, 1, 4096, 8, 128)
    for side in (1024, 2048):
        sizes = attention_tpu.Tiles((1024, side), (1024, 1024), (1024, 1024))
        run = lambda q, k, v, sizes=sizes: attention_tpu.attention(q, k, v, sizes=sizes)
        yield f"attention 1024x{side}, d 128", trained(run) if side == 1024 else run, [x, x, x]
        blocks = splash.BlockSizes(
            block_q=1024,
            block_kv=side,
            block_kv_compute=512,
            **dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), 1024),
            block_kv_dkv_compute=512,
        )
        made = splash.make_splash_mha(
            mask=masks.MultiHeadMask([masks.FullMask((4096, 4096))] * 8),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=blocks,
        )
        yield (
            f"splash 1024x{side} (compute 512)",
            trained(made) if side == 1024 else lambda q, k, v, made=made: made(q, k, v),
            [shape(bf, 8, 4096, 128)] * 3,
        )
    for width, heads, shift in ((128, 8, (0, 0, 0)), (128, 8, (2, 2, 4)), (64, 20, (2, 2, 4))):
        run = lambda q, k, v, s=shift: windows_tpu.attention(q, k, v, window=(4, 4, 8), shift=s)
        yield (
            f"windows 4x4x8 by {shift}, {heads} heads, d {width}",
            trained(run),
            [shape(bf, 1, 8, 16, 16, heads, width)] * 3,
        )
    one = shape(bf, 1, 2048, 16, 64), shape(f32, 1, 2048, 16), shape(f32, 16)
    shared = shape(bf, 1, 2048, 1, 128)
    yield "scan, chunks of 128", trained(ssd_tpu.ssd), [*one, shared, shared, shape(f32, 1, 16, 64, 128)]


def profile(folder: str) -> list[str]:
    """A line per program of which libtpu wrote the final bundles; the files are removed."""
    lines = []
    for name in sorted(glob.glob(f"{folder}/*final_hlo-static-per-bundle-utilization.txt")):
        _, units, capacity, _, *rest = pathlib.Path(name).read_text().splitlines()
        units, capacity = [u.strip() for u in units.split(",")], [int(n) for n in capacity.split()]
        rows = [[int(n) for n in line.split()] for line in rest if line[:1].isdigit()]
        program = pathlib.Path(name).name.split("-", 1)[1].split("-")[0]
        if len(rows) < LEAST or program.startswith(("<", "TLP", "copy")):
            continue
        spills = sum(row[units.index("VSTORE:SPILL")] for row in rows)
        used = {
            unit: f"{sum(row[i] for row in rows) / capacity[i] / len(rows):.0%}"
            for i, unit in enumerate(units)
            if ":" not in unit and unit in ("MXU", "VALU", "EUP", "VLOAD", "VSTORE")
        }
        said = " ".join(f"{unit} {share}" for unit, share in used.items())
        lines.append(f"    {program:<48} {len(rows):>7,} bundles  {spills:>6,} spills  {said}")
    for name in glob.glob(f"{folder}/*"):
        os.remove(name)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v6e:2x2")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # before anything imports jax
    from jaxvid.cli.plan_topology import check_compiler, devices, environment, parse_topology

    topology = parse_topology(args.topology)
    check_compiler(topology)
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ.update(environment(topology, 1), LIBTPU_INIT_ARGS=dump)
        import jax
        import numpy as np
        from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

        place = NamedSharding(
            Mesh(np.array(devices(topology)[:1]), ("x",), axis_types=(AxisType.Auto,)), PartitionSpec()
        )
        shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, sharding=place)
        for name, run, arguments in cases(shape):
            if args.only in name:
                jax.jit(run).lower(*arguments).compile()
                print(
                    f"{name}, {args.topology}, jax {jax.__version__}", *profile(folder), sep="\n", flush=True
                )


if __name__ == "__main__":
    main()
