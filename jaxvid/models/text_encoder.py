# SPDX-License-Identifier: Apache-2.0
"""A small trainable byte-level transformer: the text tower of the default model.

Tokens are UTF-8 bytes plus one, 0 is padding (`jaxvid.data.text.encode_text`). Any encoder that yields
``[B, S, L, D]`` can replace it.

Ref for the embeddings of runs of bytes: Pagnoni et al., "Byte Latent Transformer" (arXiv 2412.09871).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxvid.nn.layers import FeedForward, Linear, RMSNorm, named
from jaxvid.nn.rope import rotary_table, rotate
from jaxvid.ops.attention import attention


def runs_of_bytes(tokens: Int[Array, "B L"], length: int, buckets: int) -> Int[Array, "B L"]:
    """For each place the bucket, out of ``buckets``, of the ``length`` bytes that end there."""
    hashed = jnp.zeros(tokens.shape, jnp.uint32)
    for back in range(length):
        seen = jnp.pad(tokens, ((0, 0), (back, 0)))[:, : tokens.shape[1]].astype(jnp.uint32)
        hashed = (hashed ^ seen) * jnp.uint32(16777619)  # FNV-1a, over bytes plus one
    hashed = (hashed ^ (hashed >> 15)) * jnp.uint32(0x2C1B3C6D)  # its low bits alone are poorly mixed
    return ((hashed ^ (hashed >> 12)) % jnp.uint32(buckets)).astype(jnp.int32)


class ByteTextEncoder(nn.Module):
    """tokens [..., L] -> (float32 embeddings [..., l, width], mask bool [..., l]), where l = ceil(L / pool).

    ``pool`` neighbouring bytes are averaged before the first layer: bytes are many and say little each, and every
    layer, here and in the network that reads the result, pays for their number.

    ``runs`` adds to every byte embeddings of the runs of bytes of these lengths that end with it, looked up by their
    hashes in one table of ``buckets`` rows: words need not be spelt out by attention before they can mean anything.
    """

    width: int = 128
    layers: int = 2
    head: int = 32
    pool: int = 1
    runs: tuple[int, ...] = ()
    buckets: int = 4096
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
        if self.runs:
            table = self.param(
                "runs_embed",
                named(nn.initializers.normal(1.0), "vocab", "embed"),
                (self.buckets, self.width),
                jnp.float32,
            )
            for run in self.runs:
                x = x + table[runs_of_bytes(flat, run, self.buckets)].astype(self.dtype)
        x, mask = self._pooled(x, mask)
        # Spelling is a matter of neighbours, so the slowest channel may turn slowly but positions stay relative.
        positions = np.stack([np.arange(x.shape[1])] * 3, -1)
        angles = rotary_table(positions, self.head, theta=1000.0)
        for i in range(self.layers):
            h = RMSNorm(name=f"norm_{i}")(x)
            qkv = Linear(3 * self.width, ("embed", "heads"), name=f"qkv_{i}")(h)
            q, k, v = (a.reshape(*a.shape[:2], -1, self.head) for a in jnp.split(qkv, 3, -1))
            y = attention(rotate(q, angles), rotate(k, angles), v, mask=mask[:, None, None, :])
            x = x + Linear(self.width, ("heads", "embed"), name=f"out_{i}")(y.reshape(h.shape))
            x = x + FeedForward(name=f"feed_{i}")(RMSNorm(name=f"feed_norm_{i}")(x))
        x = RMSNorm(name="norm")(x).astype(jnp.float32)
        return x.reshape(*outer, -1, self.width), mask.reshape(*outer, -1)

    def _pooled(self, x, mask):
        """Averages over ``pool`` neighbours, of those that are real."""
        if self.pool == 1:
            return x, mask
        missing = -mask.shape[-1] % self.pool
        x = jnp.pad(x * mask[..., None].astype(x.dtype), ((0, 0), (0, missing), (0, 0)))
        mask = jnp.pad(mask, ((0, 0), (0, missing))).reshape(len(x), -1, self.pool)
        x = x.reshape(*mask.shape, self.width).sum(2) / jnp.maximum(mask.sum(-1), 1)[..., None].astype(
            x.dtype
        )
        return x, mask.any(-1)
