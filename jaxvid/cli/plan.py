# SPDX-License-Identifier: Apache-2.0
"""Tells what a config needs on devices that need not be here: memory, arithmetic, messages, and whether it fits.

    jaxvid plan --config configs/lingen_4b.py --mesh data=2,fsdp=4 --topology h200:8
    jaxvid plan --config configs/lingen_4b.py --lengths 17,34,68

The programs of a training run and of its sampler are compiled for the topology by its own compiler, in a process of
its own, and not run.
"""

from __future__ import annotations

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
        help="override config.X; train's --config.X=Y is understood, too",
    )


def spelled(argv: list[str]) -> list[str]:
    """`train`'s overrides, as this command prints them, are understood here."""
    split = lambda word: ["--set", word.removeprefix("--config.")] if word.startswith("--config.") else [word]
    return [part for word in argv for part in split(word)]


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
    from jaxvid.cli.plan_variants import variants
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
    asked = Outcome(topology, len(found), made, next(programs))
    results = [("what was asked", made, asked)]
    asked.show()
    too_large = []
    for program in programs:
        outcome = Outcome(topology, len(found), made, program)
        outcome.show()
        too_large += [] if outcome.fits else [program.name]
    ranked = variants(config, name, made, asked.temporary, asked.chip)[:tries] if tries > 0 else []
    for variant in ranked:
        print(f"\nvariant    {variant.overrides}")
        other = variant.stage()
        results.append((variant.overrides, other, Outcome(topology, len(found), other, other.train())))
        results[-1][2].show()
    fitting = [r for r in results if r[2].fits]
    if not fitting:
        more = f"compile more than {tries} variants (--tries), " if ranked else "try variants (--tries 3), "
        print(f"\nbest       none fits; {more}use more devices, or a smaller batch")
        return
    said, stage, best = min(fitting, key=lambda r: r[2].seconds)
    for program in stage.programs() if too_large and stage is not made else ():
        if program.name in too_large:
            print(f"\nvariant    {said}")
            Outcome(topology, len(found), stage, program).show()
    print(f"\nbest       {said}  ({best.total / 2**30:.2f} GiB, {best.seconds:.3g} s a step by data sheet)")


class Outcome:
    """A compiled program, measured."""

    def __init__(self, topology: Topology, count: int, stage: Any, program: Any):
        import jax

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
        # counted as plain JAX does it, for a kernel's loops do not say how often they run; traces are kept with the
        # implementations that they chose, so what is kept is forgotten before and after
        jax.clear_caches()
        with tracing_for("cpu"), spread(stage.mesh):
            self.flops = count_flops(program.run, *program.args)
        jax.clear_caches()
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
