# SPDX-License-Identifier: Apache-2.0
"""Tells what a config needs on devices that need not be here: memory, arithmetic, messages, and whether it fits.

    jaxvid plan --config configs/lingen_4b.py --mesh data=2,fsdp=4 --topology h200:8
    jaxvid plan --config configs/lingen_4b.py --lengths 17,34,68

The programs of a training run and of its sampler are compiled for the topology by its own compiler, in a process of
its own, and not run.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
import time
from typing import Any

from jaxvid.cli.plan_topology import (
    Topology,
    check_compiler,
    devices,
    environment,
    parse_mesh,
    parse_topology,
)
from jaxvid.types import InputError

INSIDE = "JAXVID_PLAN_INSIDE"  # set in the process that compiles


def arguments(parser):
    parser.add_argument("--config", required=True, metavar="FILE", help="as for jaxvid train")
    parser.add_argument(
        "--mesh", metavar="data=2,fsdp=4,...", help="sizes of the mesh (default: the config's)"
    )
    parser.add_argument(
        "--topology", default="cpu", help="v5e:16x16, v5p:4x4x8, v6e:2x4, h200:8 or cpu (default)"
    )
    parser.add_argument("--stage", help="which stage (default: the last)")
    parser.add_argument(
        "--lengths", metavar="17,34,68", help="only the cost of so many seconds against a DiT"
    )
    parser.add_argument(
        "--tries", type=int, default=1, help="variants that are compiled beside what was asked"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="X=Y",
        help="override config.X, like train's --config.X=Y",
    )


def run(options) -> None:
    """Checks what was asked, then plans in an interpreter whose environment suits the topology."""
    topology, sizes = parse_topology(options.topology), parse_mesh(options.mesh)
    if options.lengths:
        lengths(options)
        return
    check_compiler(topology)
    if not os.environ.get(INSIDE):
        _again(options, topology, _count(topology, sizes))
        return
    config = _config(options)
    mesh = {**dict(config.get("mesh") or {}), **sizes}
    plan(config, options.stage, topology, mesh, options.tries)


def plan(config: Any, stage: str | None, topology: Topology, sizes: dict[str, int], tries: int) -> None:
    """Compiles what was asked and the variants that look best, and prints a section for each."""
    import jax

    from jaxvid.cli.plan_programs import Stage, choose_stage
    from jaxvid.sharding import make_mesh

    if topology.kind == "cpu":  # what is never run need not be fast; memory and messages are settled before
        jax.config.update("jax_disable_most_optimizations", True)
    name, found = choose_stage(config, stage), devices(topology)
    mesh = make_mesh(**{"data": -1, **sizes}, devices=found)
    shape = dict(mesh.shape)
    print(f"config     stage {name} on {topology.name}, {len(found)} devices: {_mesh(shape)}")
    made = Stage(config, name, mesh)
    print(
        f"model      {made.parameters / 1e6:,.1f} M parameters; batch {_batch(made.batch[0].x.shape)}",
        flush=True,
    )
    programs = made.programs()
    results = [("as asked", Outcome(topology, len(found), made, next(programs)))]
    results[0][1].show()
    for program in programs:
        Outcome(topology, len(found), made, program).show()
    # to rank them takes a trace of each mesh
    variants = _variants(config, name, found, shape, topology)[:tries] if tries > 0 else []
    for overrides, build_stage in variants:
        print(f"\nvariant    {overrides}")
        other = build_stage()
        results.append((overrides, Outcome(topology, len(found), other, other.train())))
        results[-1][1].show()
    fitting = [r for r in results if r[1].fits]
    if not fitting:
        print("\nbest       none fits; use more devices, a smaller batch, or train.accumulate")
        return
    best = min(fitting, key=lambda r: r[1].seconds)
    said = "what was asked" if best[0] == "as asked" else best[0]
    print(
        f"\nbest       {said}  ({best[1].total / 2**30:.2f} GiB, {best[1].seconds:.3g} s a step by data sheet)"
    )


class Outcome:
    """A compiled program, measured."""

    def __init__(self, topology: Topology, count: int, stage: Any, program: Any):
        from jaxvid.eval.collectives import collectives
        from jaxvid.eval.flops import count_flops
        from jaxvid.ops.pick import tracing_for
        from jaxvid.sharding import spread

        self.program, self.chip, self.count = program, topology.chip, count
        if topology.kind == "cpu":
            self.chip = Topology(topology.name, "cpu", count).chip
        with tracing_for(topology.platform), spread(stage.mesh):
            begun, lowered = time.monotonic(), program.run.lower(*program.args)
            self.compiled, self.refused = compile_or_refuse(lowered)
            self.compile_seconds = time.monotonic() - begun
            self.flops = count_flops(program.run, *program.args)
        self.traffic: dict[str, Any] = {}
        if self.compiled is None:  # what is held is known without it
            self.arguments, self.temporary, self.results = sum(program.held.values()), self.refused, 0
            return
        memory = self.compiled.memory_analysis()
        self.arguments = memory.argument_size_in_bytes
        self.temporary = memory.temp_size_in_bytes
        self.results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        self.traffic = collectives(self.compiled.as_text())

    @property
    def total(self) -> int:
        """Bytes that a device needs at most."""
        return self.arguments + self.temporary + self.results

    @property
    def fits(self) -> bool:
        return self.compiled is not None and self.total <= self.chip.memory

    @property
    def seconds(self) -> float:
        """By data sheet: arithmetic and messages one after the other, at full rate. For comparing, not for promising."""
        sent = sum(t.bytes for t in self.traffic.values())
        return self.flops.total / self.count / self.chip.flops + sent / self.chip.link

    def show(self) -> None:
        program, gib = self.program, lambda n: f"{n / 2**30:.3f}"
        kinds = dict(program.held)
        kinds["other arguments"] = max(0, self.arguments - sum(kinds.values()))
        activations = min(program.activations, self.temporary)
        if program.activations:
            kinds["activations"] = activations
        kinds |= {"temporaries": self.temporary - activations, "results": self.results}
        print(f"\n{program.name:<10} {program.tokens:,.0f} tokens, compiled in {self.compile_seconds:.1f} s")
        print(
            f"  FLOPs    {self.flops.total:.4g} ({self.flops.products:.4g} in products), "
            f"{self.flops.total / self.count:.4g} a device"
        )
        if program.note:
            print(f"  {program.note}")
        rows = "".join(f"\n           {kind:<16} {gib(size):>9}" for kind, size in kinds.items() if size)
        print(f"  memory   GiB of one device{rows}")
        said = "fits" if self.fits else "DOES NOT FIT"
        print(f"           {'total':<16} {gib(self.total):>9}  of {gib(self.chip.memory)}: {said}")
        for kind, traffic in sorted(self.traffic.items()):
            print(f"  sends    {kind:<18} {traffic.count:>7,} times, {traffic.bytes / 2**20:,.1f} MiB")
        if self.compiled is None:
            print("  sends    not known: the compiler gave up when memory ran out")
        elif not self.traffic and self.count > 1:
            print("  sends    nothing")
        sys.stdout.flush()


def compile_or_refuse(lowered: Any) -> tuple[Any, int]:
    """(the compiled program, 0), or (None, bytes it asked for) where the compiler itself sees that memory runs out."""
    import jax

    try:
        return lowered.compile(), 0
    except jax.errors.JaxRuntimeError as error:
        found = re.search(
            r"RESOURCE_EXHAUSTED.*?(?:\(|Used )([\d.]+)([KMGT])\)? (?:of|exceeds)", str(error), re.S
        )
        if found is None:
            raise
        return None, int(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])))


def _variants(
    config: Any, name: str, found: list[Any], asked: dict[str, int], topology: Topology
) -> list[Any]:
    """(overrides, function that builds the stage) of other meshes and of recomputing or not, the likeliest first.

    Ranked without compiling: those whose state and activations fit come first, then by arithmetic and messages.
    """
    from jaxvid.cli.plan_programs import Stage, remat_node
    from jaxvid.sharding import make_mesh

    hit, count = remat_node(config, name), len(found)
    now = getattr(_remat(hit), "remat", None)
    chip = Topology(topology.name, "cpu", count).chip if topology.kind == "cpu" else topology.chip
    fixed = asked["tensor"] * asked["sequence"]
    ways = count // fixed
    meshes = [dict(asked, data=ways // f, fsdp=f) for f in range(1, ways + 1) if ways % f == 0]
    ranked = []
    for remat in (None,) if hit is None else (False, True):
        activations = None
        for sizes in meshes:
            if sizes == asked and remat == now:
                continue

            def make(sizes=sizes, remat=remat):
                if hit is not None:
                    with hit[1].unlocked():
                        hit[1]["remat"] = remat
                try:
                    return Stage(config, name, make_mesh(**sizes, devices=found))
                finally:
                    if hit is not None:
                        with hit[1].unlocked():
                            hit[1]["remat"] = now

            with contextlib.suppress(InputError):  # a batch that a mesh does not divide
                stage = make()
                activations = stage.kept() if activations is None else activations
                held = stage.held()
                need = sum(held.values()) + held["parameters"] + activations / stage.ways
                weights = 4 * stage.parameters
                sent = weights * (2 * (sizes["data"] > 1) + 3 * (sizes["fsdp"] > 1))
                work = (8 if remat else 6) * stage.parameters * stage.tokens / count
                overrides = [f"--config.mesh.{a}={n}" for a, n in sizes.items() if n != asked[a]]
                overrides += [f"--config.{hit[0]}.remat={remat}"] if hit is not None and remat != now else []
                seconds = work / chip.flops + sent / chip.link
                ranked.append(((need > chip.memory, seconds, need), " ".join(overrides), make))
    return [(overrides, make) for _, overrides, make in sorted(ranked, key=lambda r: r[0])]


def _remat(hit: Any) -> Any:
    from jaxvid.config import build

    return build(hit[1]) if hit is not None else None


def lengths(options) -> None:
    """Prints what a forward pass of a config's backbone and of its DiT twins costs, by length."""
    from jaxvid.cli.plan_lengths import table
    from jaxvid.cli.plan_programs import choose_stage

    try:
        seconds = [float(part) for part in options.lengths.split(",")]
    except ValueError:
        seconds = []
    if not seconds or min(seconds) <= 0:
        raise InputError(
            f"--lengths {options.lengths!r} are not seconds; write for example --lengths 17,34,68"
        )
    config = _config(options)
    print("\n".join(table(config, choose_stage(config, options.stage), seconds)))


def _config(options) -> Any:
    from jaxvid.cli.train_options import parse

    overrides = [f"--config.{text}" for text in options.set]
    return parse(["jaxvid plan", f"--config={options.config}", "--dry_run", *overrides])[1]


def _count(topology: Topology, sizes: dict[str, int]) -> int:
    """Devices of the topology, held against the mesh that was asked for."""
    known = math.prod(n for n in sizes.values() if n > 0)
    count = topology.count or known
    if any(n == 0 or n < -1 for n in sizes.values()) or count % known:
        raise InputError(
            f"mesh {_mesh(sizes)} does not divide the {count} devices of {topology.name}; sizes must multiply to {count}"
        )
    if -1 not in sizes.values() and "data" in sizes and known != count:
        raise InputError(
            f"mesh {_mesh(sizes)} has {known} devices and {topology.name} {count}; sizes must multiply to {count}"
        )
    return count


def _again(options, topology: Topology, count: int) -> None:
    """The same command in an interpreter whose environment is ready for the compiler."""
    from jaxvid.cli import main

    argv = ["plan", "--config", options.config, "--topology", options.topology, "--tries", str(options.tries)]
    argv += [f"--mesh={options.mesh}"] * bool(options.mesh) + [f"--stage={options.stage}"] * bool(
        options.stage
    )
    argv += [f"--set={text}" for text in options.set]
    sys.stdout.flush()
    env = {**os.environ, **environment(topology, count), INSIDE: "1"}
    done = subprocess.run([sys.executable, "-m", main.__name__, *argv], env=env, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def _mesh(sizes: dict[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def _batch(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
