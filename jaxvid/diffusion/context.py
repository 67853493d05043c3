# SPDX-License-Identifier: Apache-2.0
"""Teacher forcing: a network learns on every block of a clip at once, each behind its clean past.

The clip is shown twice, clean and noisy, and a network that was told so lets noisy blocks look at the clean blocks before
them. One pass is what generation with a memory does block after block.

Ref: Hu et al., ACDiT, arXiv 2412.07720; Huang et al., Self Forcing, arXiv 2506.08009 (its teacher-forcing baseline).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxvid.types import Array, Cond, Memory, Network


def teacher_forced(network: Network, clean: Array, memory: Memory) -> Network:
    """A network for noisy videos [B, T, ...] that have the clean one, `clean` [B, T, ...], beside them.

    `memory` tells `network` that its sequence is [clean | noisy] (`VideoDiT.teaching()`). Captions hold for both copies;
    clean frames are at t = 0 and marked as given.
    """

    def call(x: Array, t: Array, cond: Cond, _: Memory = None) -> tuple[Array, Memory]:
        twice = {name: jnp.concatenate([cond[name]] * 2, 1) for name in ("span",) if name in cond}
        given = cond.get("given", jnp.zeros(t.shape, bool))
        twice["given"] = jnp.concatenate([jnp.ones_like(given), given], 1)
        both = jnp.concatenate([clean.astype(x.dtype), x], 1), jnp.concatenate([jnp.zeros_like(t), t], 1)
        out, _ = network(*both, {**cond, **twice}, memory)
        return out[:, x.shape[1] :], None

    return call
