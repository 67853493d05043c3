# SPDX-License-Identifier: Apache-2.0
"""Kernels on a mesh: XLA divides plain JAX among devices by itself, but a kernel has to be told which part is whose.

An array's axes are told by a word of one letter per axis:

    b   rows of a batch, along data and fsdp
    t   frames, along sequence
    h   heads, along tensor, and along sequence where no array has frames
    .   whole on every device

So ``"b.h."`` is [B, L, H, K]. On one device, and inside `jax.shard_map`, nothing is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxvid.sharding import BATCH, RULES, SEQUENCE, shared_mesh

Array = Any


def per_device(
    f: Callable[..., Any], arrays: Sequence[Array | None], words: Sequence[str], results: Any
) -> Any:
    """``f(*arrays)``, every device of the mesh of `jaxvid.sharding.spread` working on its part.

    words: one for each array (None where an array is missing); results: words in the shape of what ``f`` returns.

    A batch of fewer rows than there are devices is a video being made, not a batch to share: it is whole along the
    axes that do not divide it. Raises NotImplementedError, with the reason, where a larger batch, heads or frames do
    not divide.
    """
    mesh = shared_mesh()
    if mesh is None:
        return f(*arrays)
    axes = _axes(mesh, arrays, words)
    spec = lambda word: PartitionSpec(*(axes[letter] for letter in word))
    run = jax.shard_map(
        f,
        mesh=mesh,
        in_specs=tuple(spec(word) for word in words),
        out_specs=jax.tree.map(spec, results),
        check_vma=False,
    )
    return jax.jit(run)(*arrays)


def _axes(mesh: Mesh, arrays: Sequence[Array | None], words: Sequence[str]) -> dict[str, Any]:
    """The mesh axes of every letter: entries of a PartitionSpec."""
    found: dict[str, set[int]] = {letter: set() for letter in "bth."}
    for array, word in zip(arrays, words, strict=True):
        for letter, size in zip(word, () if array is None else array.shape, strict=array is not None):
            found[letter].add(size)
    ways = lambda axes: math.prod(mesh.shape[a] for a in axes)
    fits = lambda letter, axes: all(size % ways(axes) == 0 for size in found[letter])

    def refuse(letter, what, axes):
        sizes = " and ".join(str(size) for size in sorted(found[letter]))
        raise NotImplementedError(
            f"{sizes} {what} do not divide among the {ways(axes)} devices of {' x '.join(axes)}, and a kernel cannot be cut"
        )

    rows = next((axes for axes in (BATCH, BATCH[1:], BATCH[:1]) if fits("b", axes)), ())
    if rows != BATCH and found["b"] and min(found["b"]) >= ways(BATCH):
        refuse("b", "rows", BATCH)
    frames, tensor = (SEQUENCE,), (RULES["heads"],)
    if not fits("t", frames):
        refuse("t", "frames", frames)
    # heads come cut along sequence where frames have come together (`jaxvid.sharding.cut_channels`)
    both = tensor if found["t"] else (SEQUENCE, *tensor)
    heads = next((axes for axes in (both, tensor) if fits("h", axes)), None)
    if heads is None:
        refuse("h", "heads", tensor)
    return {"b": rows, "t": frames, "h": heads, ".": None}
