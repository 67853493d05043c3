# SPDX-License-Identifier: Apache-2.0
"""Other ways to run a training step on the same devices: meshes, recomputing, batches taken in parts; the likeliest first.

They are ranked by arithmetic, without a compiler. What a step needs beside its state is what was measured of the step
that was asked for, shared among as many devices and parts; so nothing is traced but the two kinds of recomputing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxvid.cli.plan_programs import Stage, nbytes, remat_node
from jaxvid.cli.plan_topology import Chip
from jaxvid.config import build
from jaxvid.sharding import make_mesh

PARTS = (1, 2, 4, 8, 16)  # in which a batch may be taken


@dataclasses.dataclass(frozen=True)
class Variant:
    """``overrides`` as they are typed, and a function that makes the stage so."""

    overrides: str
    stage: Callable[[], Stage]
    need: float  # bytes of a device, estimated
    seconds: float  # of a step, by data sheet
    fits: bool


def variants(config: Any, name: str, stage: Stage, temporary: int, chip: Chip) -> list[Variant]:
    """All that suit the batch and its frames, those that should fit first, then the fastest.

    stage: as asked; temporary: bytes of a device that its compiled step needs beside what it is given.
    """
    asked, found = dict(stage.mesh.shape), list(stage.mesh.devices.flat)
    hit, parts_now = remat_node(config, name), stage.settings.accumulate
    now = None if hit is None else build(hit[1]).remat
    kept = {now: stage.kept() * parts_now}
    if hit is not None:
        with changed(hit[1], remat=not now):
            kept[not now] = Stage(config, name, stage.mesh).kept() * parts_now
    beyond = max(0, temporary * stage.ways * parts_now - kept[now])
    state = sum(nbytes(x) for x in jax.tree.leaves(stage.shapes))
    given = sum(nbytes(x) for x in jax.tree.leaves(stage.batch))
    weights = sum(nbytes(x) for x in jax.tree.leaves(stage.shapes.params))
    rows, frames = stage.batch[0].x.shape[:2]
    spread = stage.backbone is not None

    made = []
    for sizes in meshes(asked, len(found), frames if spread else 0):
        rest = sizes["data"] * sizes["fsdp"]
        ways = rest * (sizes["sequence"] if spread else 1)
        for parts, remat in itertools.product(sorted({*PARTS, parts_now}), kept):
            if rows % (parts * rest) or (sizes, parts, remat) == (asked, parts_now, now):
                continue
            cut = sizes["fsdp"] * sizes["tensor"]
            need = (
                (state + weights * (parts > 1)) / cut + given / rest + (kept[remat] + beyond) / ways / parts
            )
            # parameters come together for either pass of every part; neighbours swap about what is kept
            sent = weights * (2 * (sizes["data"] > 1) + (2 * parts + 1) * (sizes["fsdp"] > 1))
            sent += min(kept.values()) / ways * (sizes["sequence"] > 1)
            work = (8 if remat else 6) * stage.parameters * stage.tokens / len(found)
            seconds = work / chip.flops + sent / chip.link
            said = [f"--config.mesh.{axis}={n}" for axis, n in sizes.items() if n != asked[axis]]
            said += [f"--config.{hit[0]}.remat={remat}"] if hit is not None and remat != now else []
            said += [f"--config.stages.{name}.train.accumulate={parts}"] if parts != parts_now else []
            node = None if hit is None else hit[1]
            again = _stage(config, name, found, sizes, node, remat, parts)
            made.append(Variant(" ".join(said), again, need, seconds, need <= chip.memory))
    return sorted(made, key=lambda v: (not v.fits, v.seconds, v.need))


def meshes(asked: dict[str, int], count: int, frames: int) -> Iterator[dict[str, int]]:
    """Sizes by axis with the tensor axis as asked, and a sequence axis that divides ``frames`` (0: as asked)."""
    sequences = [n for n in (1, 2, 4, 8, 16) if frames and frames % n == 0] or [asked["sequence"]]
    for sequence in sorted({*sequences, asked["sequence"]}):
        ways, left = divmod(count, asked["tensor"] * sequence)
        if not left:
            for fsdp in (n for n in range(1, ways + 1) if ways % n == 0):
                yield dict(asked, data=ways // fsdp, fsdp=fsdp, sequence=sequence)


def _stage(config, name, found, sizes, node, remat, parts) -> Callable[[], Stage]:
    def make() -> Stage:
        with contextlib.ExitStack() as stack:
            if node is not None:
                stack.enter_context(changed(node, remat=remat))
            stack.enter_context(changed(config.stages[name].train, accumulate=parts))
            return Stage(config, name, make_mesh(**sizes, devices=found))

    return make


@contextlib.contextmanager
def changed(node: Any, **values: Any) -> Iterator[None]:
    """A node of a config with other values, for a while."""
    before = {key: node[key] for key in values if key in node}
    with node.unlocked():
        for key, value in values.items():
            node[key] = value
    try:
        yield
    finally:
        with node.unlocked():
            for key in values:
                if key in before:
                    node[key] = before[key]
                else:
                    del node[key]
