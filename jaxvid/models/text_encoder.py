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
    """tokens [..., L] -> (float32 embeddings [..., L, width], mask bool [..., L])."""

    width: int = 128
    layers: int = 2
    head: int = 32
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Int[Array, "... L"]) -> tuple[Float[Array, "... L D"], Bool[Array, "... L"]]:
        *outer, length = tokens.shape
        flat = tokens.reshape(-1, length)
        mask = flat > 0
        table = self.param("embed", named(nn.initializers.normal(1.0), "vocab", "embed"), (257, self.width), jnp.float32)
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
        x = RMSNorm(name="norm")(x).astype(jnp.float32)
        return x.reshape(*outer, length, self.width), mask.reshape(*outer, length)
