# SPDX-License-Identifier: Apache-2.0
"""The devices among which a sequence is cut, seen from one of them: who I am, and what goes to whom.

A sequence of L tokens lies on an axis of ``size`` devices, L / size tokens each, in natural order. ``ways`` neighbouring
devices may share their tokens and split the heads instead (an all-to-all); such a group then stands where a device
stood, and groups form the ring. ``ways = 1`` is a plain ring, ``ways = size`` is Ulysses.

Everything here is called inside `jax.shard_map`.

Ref: DeepSpeed Ulysses (arXiv 2309.14509); both together: USP (arXiv 2405.07719).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvid.sharding import BATCH, RULES
from jaxvid.types import InputError

Array = Any


@dataclasses.dataclass(frozen=True)
class Shards:
    """``size`` devices along ``axis``, in groups of ``ways`` that split heads."""

    axis: str
    size: int
    ways: int = 1

    @property
    def ranks(self) -> int:
        """Members of the ring."""
        return self.size // self.ways

    def rank(self) -> Array:
        """My place in the ring."""
        return lax.axis_index(self.axis) // self.ways

    def send(self, x: Any, by: int = 1) -> Any:
        """A tree of arrays to the member ``by`` places on in the ring; mine come from ``by`` places before."""
        by %= self.ranks
        if not by:
            return x
        pairs = [(i, (i + by * self.ways) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda a: lax.ppermute(a, self.axis, pairs), x)

    def roll(self, x: Array, by: int) -> Array:
        """My part of ``jnp.roll`` of the whole by ``by``, no more than a part, along axis 1: neighbours exchange ``by``."""
        n = x.shape[1]
        if by > 0:
            return jnp.concatenate([self.send(x[:, n - by :], 1), x[:, : n - by]], 1)
        return jnp.concatenate([x[:, -by:], self.send(x[:, :-by], -1)], 1)

    def split_heads(self, x: Array) -> Array:
        """[B, n, H, ...] to [B, ways n, H / ways, ...]: a group's tokens, my part of the heads."""
        return self._exchange(x, 2, 1)

    def join_heads(self, x: Array) -> Array:
        """The inverse of `split_heads`."""
        return self._exchange(x, 1, 2)

    def _exchange(self, x: Array, split: int, concat: int) -> Array:
        if self.ways == 1:
            return x
        groups = [list(range(i, i + self.ways)) for i in range(0, self.size, self.ways)]
        return lax.all_to_all(x, self.axis, split, concat, axis_index_groups=groups, tiled=True)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of arrays lie on a mesh: batch, tokens (or frames), heads. Entries of a PartitionSpec."""

    mesh: Mesh
    batch: tuple[str, ...] | None
    tokens: str
    heads: str | None

    def put(self, x: Array, spec: PartitionSpec) -> Array:
        """As `shard_map` wants it: meshes with explicit axes do not move arrays by themselves."""
        if AxisType.Explicit in self.mesh.axis_types:
            return jax.reshard(x, NamedSharding(self.mesh, spec))
        return x


def make_layout(op: str, mesh: Mesh, axis: str, batch: int, tokens: int, heads: tuple[int, ...]) -> Layout:
    """The layout of an op's arrays; ``heads`` are all the counts of heads that are cut together.

    The batch is cut along data and fsdp and the heads along tensor where they divide, else copied. Tokens must divide.
    Raises InputError for an axis that the mesh lacks and for tokens that its devices do not divide.
    """
    if axis not in mesh.shape:
        raise InputError(
            f"{op}: the mesh has no axis {axis!r}, only {', '.join(mesh.axis_names)}; name one of them"
        )
    size = mesh.shape[axis]
    if tokens < size:
        raise InputError(
            f"{op}: a sequence of {tokens} tokens is shorter than the {size} devices of {axis!r}; "
            f"use fewer devices or at least {size} tokens"
        )
    if tokens % size:
        near = -(-tokens // size) * size
        raise InputError(
            f"{op}: {tokens} tokens do not divide among the {size} devices of {axis!r}; pad them to {near} "
            "or change the mesh"
        )
    rows = tuple(a for a in BATCH if a in mesh.shape and a != axis)
    if batch % math.prod(mesh.shape[a] for a in rows):
        rows = ()
    tensor = RULES["heads"]
    cut = tensor in mesh.shape and tensor != axis and all(h % mesh.shape[tensor] == 0 for h in heads)
    return Layout(mesh, rows or None, axis, tensor if cut else None)


def fast_ways(mesh: Mesh, axis: str) -> int:
    """How many neighbours along ``axis`` have a fast link: devices of one TPU slice, or of one process."""
    devices = mesh.devices
    line = devices[tuple(slice(None) if a == axis else 0 for a in mesh.axis_names)]
    homes = [(getattr(d, "slice_index", None) or 0, getattr(d, "process_index", 0)) for d in line]
    if getattr(line[0], "platform", "") == "tpu":
        homes = [home[:1] for home in homes]
    first = homes.index(next((h for h in homes if h != homes[0]), homes[0])) or len(homes)
    whole = len(homes) % first == 0 and all(
        len(set(homes[i : i + first])) == 1 for i in range(0, len(homes), first)
    )
    return first if whole else 1
