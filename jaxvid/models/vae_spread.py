# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's stream with the frames of a chunk cut among devices.

Only causal convolutions mix frames, and each looks one or two frames back. So every device works on its own frames, layer
by layer, and before each of those convolutions the last frames of a part go to the next device; the first device has the
stream's memory there instead. Nothing is computed twice, and the numbers are those of one device.

A chunk with frame 0, which is never halved or doubled in time, has an odd number of frames: every device makes it whole.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxvid.models.vae_blocks import neighbours
from jaxvid.models.video_vae import VideoVAE
from jaxvid.ops.shards import Shards, make_layout
from jaxvid.sharding import SEQUENCE, spread_mesh
from jaxvid.types import Memory


def chunk(
    vae: VideoVAE, variables: Any, x: Any, memory: Memory, first: bool, method: str
) -> tuple[Any, Memory]:
    """A streaming method of the autoencoder (``to_latents_chunk``, ``from_latents_chunk``, ...) on x [B, T, h, w, C].

    Inside `jaxvid.sharding.spread` the frames are cut along the mesh's axis ``sequence``, where they divide into whole
    groups of frames and there is a ``memory``; elsewhere the method runs as it is. Results are the same.
    """
    mesh = spread_mesh()
    group = vae.time_factor if method.startswith(("to_", "encode")) else 1

    def run(variables, x, memory):
        return vae.apply(variables, x, memory, first, method=method)

    if mesh is None or first or memory is None or x.shape[1] % (group * mesh.shape[SEQUENCE]):
        return run(variables, x, memory)
    where = make_layout(method, mesh, SEQUENCE, *x.shape[:2], ())
    shards = Shards(SEQUENCE, mesh.shape[SEQUENCE])
    rows, frames = PartitionSpec(where.batch), PartitionSpec(where.batch, where.tokens)

    def local(variables, x, memory):
        with neighbours(shards):
            out, memory = run(variables, x, memory)
        # the stream goes on after the last device's frames
        last = shards.rank() == shards.size - 1
        return out, jax.tree.map(lambda m: jax.lax.psum(jnp.where(last, m, 0), SEQUENCE), memory)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), frames, rows),
        out_specs=(frames, rows),
        check_vma=False,
    )(variables, x, memory)
