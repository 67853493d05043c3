# SPDX-License-Identifier: Apache-2.0
"""Noise levels to vectors."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.nn.layers import Linear


def sinusoid(t: Float[Array, "..."], channels: int, scale: float = 1000.0) -> Float[Array, "... channels"]:
    """cos and sin of ``scale * t`` at geometric rates from 1 to 1/10000."""
    rates = np.exp(-np.log(1e4) * np.arange(channels // 2) / (channels // 2)).astype(np.float32)
    angles = scale * t.astype(jnp.float32)[..., None] * rates.reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class LevelEmbed(nn.Module):
    """Noise level of every frame t[B, T] -> float32 [B, T, width]."""

    width: int
    channels: int = 256

    @nn.compact
    def __call__(self, t: Float[Array, "B T"]) -> Float[Array, "B T D"]:
        h = nn.silu(Linear(self.width, (None, "embed"), name="up")(sinusoid(t, self.channels)))
        return Linear(self.width, ("embed", None), name="down")(h)
