# SPDX-License-Identifier: Apache-2.0
"""A small trainable byte-level transformer: the text tower of the default model.

Tokens are UTF-8 bytes plus one, 0 is padding (`jaxvid.data.text.encode_text`). Any encoder that yields
``[B, S, L, D]`` can replace it.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxvid.nn.layers import FeedForward, Linear, RMSNorm, named
from jaxvid.nn.rope import rotary_table, rotate
from jaxvid.ops.attention import attention


class ByteTextEncoder(nn.Module):
    """tokens [..., L] -> (float32 embeddings [..., l, width], mask bool [..., l]), where l = ceil(L / pool).

    ``pool`` neighbouring embeddings are averaged: bytes are many and say little each, and every layer of the
    network that reads them pays for their number.
    """

    width: int = 128
    layers: int = 2
    head: int = 32
    pool: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Int[Array, "... L"]) -> tuple[Float[Array, "... l D"], Bool[Array, "... l"]]:
        *outer, length = tokens.shape
        flat = tokens.reshape(-1, length)
        mask = flat > 0
        table = self.param(
            "embed", named(nn.initializers.normal(1.0), "vocab", "embed"), (257, self.width), jnp.float32
        )
        x = table[flat].astype(self.dtype)
        # Spelling is a matter of neighbours, so the slowest channel may turn slowly but positions stay relative.
        positions = np.stack([np.arange(length)] * 3, -1)
        angles = rotary_table(positions, self.head, theta=1000.0)
        for i in range(self.layers):
            h = RMSNorm(name=f"norm_{i}")(x)
            qkv = Linear(3 * self.width, ("embed", "heads"), name=f"qkv_{i}")(h)
            q, k, v = (a.reshape(*a.shape[:2], -1, self.head) for a in jnp.split(qkv, 3, -1))
            y = attention(rotate(q, angles), rotate(k, angles), v, mask=mask[:, None, None, :])
            x = x + Linear(self.width, ("heads", "embed"), name=f"out_{i}")(y.reshape(h.shape))
            x = x + FeedForward(name=f"feed_{i}")(RMSNorm(name=f"feed_norm_{i}")(x))
        x, mask = self._pooled(RMSNorm(name="norm")(x).astype(jnp.float32), mask)
        return x.reshape(*outer, -1, self.width), mask.reshape(*outer, -1)

    def _pooled(self, x, mask):
        """Averages over ``pool`` neighbours, of those that are real."""
        if self.pool == 1:
            return x, mask
        missing = -mask.shape[-1] % self.pool
        x = jnp.pad(x * mask[..., None], ((0, 0), (0, missing), (0, 0)))
        mask = jnp.pad(mask, ((0, 0), (0, missing))).reshape(len(x), -1, self.pool)
        x = x.reshape(*mask.shape, self.width).sum(2) / jnp.maximum(mask.sum(-1), 1)[..., None]
        return x, mask.any(-1)
