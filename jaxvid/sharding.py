# SPDX-License-Identifier: Apache-2.0
"""One table from logical axes to mesh axes, and what follows from it.

A mesh has four axes, always with automatic propagation (``AxisType.Auto``):

    data      copies of the model, each with its part of the batch
    fsdp      parameters and optimizer state cut in pieces; the batch is cut along it as well
    tensor    heads and hidden widths cut in pieces
    sequence  frames cut in pieces

Inside `spread` the networks lay their frames over ``sequence``: see `cut_frames`.

Parameters bear logical names (``flax.linen.with_logical_partitioning``). A dimension that its mesh axes do not divide
is copied instead of cut: that is correct on any mesh and only costs memory. A batch that does not divide is an error.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvid.types import InputError

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH = ("data", "fsdp")
SEQUENCE = "sequence"

_spread: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("jaxvid_sharding_spread", default=None)

# logical axis -> mesh axis. What is not named here is copied.
RULES = {
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv": None,
    "vocab": "tensor",
    "layers": None,
}
_SMALL = 1 << 14  # parameters without names and with fewer elements are copied: cutting them saves nothing


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices; one size may be -1 and takes what the others leave."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor, sequence]
    said = " ".join(f"{a}={n}" for a, n in zip(AXES, sizes, strict=True))
    if any(not isinstance(n, int) or n == 0 or n < -1 for n in sizes) or sizes.count(-1) > 1:
        raise InputError(f"mesh {said}: sizes are positive and at most one is -1; fix the mesh of the config")
    known = math.prod(n for n in sizes if n > 0)
    sizes = [len(devices) // known if n == -1 else n for n in sizes]
    if math.prod(sizes) != len(devices):
        raise InputError(
            f"mesh {said} does not fill {len(devices)} devices; sizes must multiply to {len(devices)}"
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def spread(mesh: Mesh | None) -> Iterator[None]:
    """Networks that are traced inside the block spread their frames over the mesh's axis ``sequence``.

    None is one device, and changes nothing.
    """
    token = _spread.set(mesh)
    try:
        yield
    finally:
        _spread.reset(token)


def spread_mesh() -> Mesh | None:
    """The mesh over whose axis ``sequence`` frames are spread here, or None where they are not."""
    mesh = _spread.get()
    return mesh if mesh is not None and mesh.shape[SEQUENCE] > 1 else None


def shared_mesh() -> Mesh | None:
    """The mesh of `spread` where several devices share the work and XLA says who does what; None elsewhere.

    Elsewhere is one device, no `spread`, and inside `jax.shard_map`, where every device's part is spelled out already.
    """
    mesh, here = _spread.get(), jax.sharding.get_abstract_mesh()
    return None if mesh is None or mesh.size == 1 or here.manual_axes else mesh


def cut_frames(x: Any) -> Any:
    """``x[B, T, ...]`` with its frames laid over ``sequence``, where they are spread; inside `spread` its rows lie over
    ``data`` and ``fsdp`` in any case, where they divide: else XLA may bring rows together rather than parameters.

    Raises InputError where the frames do not divide.
    """
    mesh = spread_mesh()
    if mesh is None:
        mesh = shared_mesh()
        rows = None if mesh is None else _rows(x, mesh)
        free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
        return x if rows is None else _constrain(x, mesh, PartitionSpec(rows, *free))
    size = mesh.shape[SEQUENCE]
    if x.shape[1] % size:
        near = -(-x.shape[1] // size) * size
        raise InputError(
            f"{x.shape[1]} frames do not divide among the {size} devices of 'sequence'; use {near} frames, or another mesh"
        )
    return _constrain(x, mesh, PartitionSpec(_rows(x, mesh), SEQUENCE))


def cut_rows(x: Any) -> Any:
    """``x[B, ...]`` with its rows laid over ``data`` and ``fsdp`` where they divide, inside `spread`; else as it is."""
    mesh = _spread.get()
    return x if mesh is None else _constrain(x, mesh, PartitionSpec(_rows(x, mesh)))


def cut_channels(x: Any, heads: int) -> Any:
    """``x[B, ..., C]`` with all its frames on every device and its ``heads`` laid over ``sequence`` instead.

    Heads that do not divide are copied. Where frames are not spread ``x`` stays as it is.
    """
    mesh = spread_mesh()
    if mesh is None:
        return x
    cut = SEQUENCE if heads % mesh.shape[SEQUENCE] == 0 else None
    return _constrain(x, mesh, PartitionSpec(_rows(x, mesh), *[None] * (x.ndim - 2), cut))


def _constrain(x: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _rows(x: Any, mesh: Mesh) -> tuple[str, ...] | None:
    """The axes along which a batch is cut; one that does not divide is copied."""
    return None if x.shape[0] % math.prod(mesh.shape[a] for a in BATCH) else BATCH


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, batch: int | None = None) -> NamedSharding:
    """Cut along the leading axis. ``batch``, when given, must divide among the devices of data and fsdp."""
    ways = math.prod(mesh.shape[a] for a in BATCH)
    if batch is not None and batch % ways:
        near = max(ways, round(batch / ways) * ways)
        raise InputError(
            f"a batch of {batch} does not divide among {ways} devices (data x fsdp); use batch={near}"
        )
    return NamedSharding(mesh, PartitionSpec(BATCH))


def params_sharding(mesh: Mesh, abstract_params: Any) -> Any:
    """Where every parameter lies: a tree of NamedSharding with the structure of the *unboxed* parameters.

    ``abstract_params`` are parameters or shapes, in boxes of logical names where they have them. Without names the
    largest dimension that divides is cut along fsdp.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(mesh, leaf)), abstract_params, is_leaf=_is_box)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned | nn.Partitioned)


def _spec(mesh: Mesh, leaf: Any) -> PartitionSpec:
    if _is_box(leaf):
        shape = leaf.value.shape
        axes = [RULES.get(name) for name in leaf.names]
    else:
        shape = leaf.shape
        axes = _unnamed(mesh, shape)
    used: set[str] = set()
    spec: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        fits = axis is not None and axis not in used and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0
        spec.append(axis if fits else None)
        used |= {axis} if fits and axis else set()
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def _unnamed(mesh: Mesh, shape: Sequence[int]) -> list[str | None]:
    axes: list[str | None] = [None] * len(shape)
    able = [i for i, n in enumerate(shape) if n % mesh.shape["fsdp"] == 0]
    if able and math.prod(shape) >= _SMALL:
        axes[max(able, key=lambda i: shape[i])] = "fsdp"
    return axes


def put_batch(batch: Any, mesh: Mesh, same: bool = False) -> Any:
    """A tree of host arrays with a leading batch axis, laid out over the mesh.

    With several processes every one brings its own rows, in the order of the processes; or, where it is the ``same``
    batch in all of them, all rows.
    """
    sharding = batch_sharding(mesh)

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        batch_sharding(mesh, x.shape[0] * (1 if same else jax.process_count()))
        if same:
            return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, batch)
