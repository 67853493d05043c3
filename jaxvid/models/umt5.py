# SPDX-License-Identifier: Apache-2.0
"""The encoder of UMT5: the text tower of Wan and SkyReels-V2.

Two things differ from what one expects: scores are not divided by the root of the head width, and every layer has a table of
relative positions of its own.

Ref: Chung et al., UniMax, ICLR 2023 (UMT5); Raffel et al., arXiv:1910.10683 (T5).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxvid.nn.layers import Linear, RMSNorm, named

HIDDEN = -1e30  # the score of a key on padding


def buckets(relative: Int[np.ndarray, "..."], count: int = 32, farthest: int = 128) -> np.ndarray:
    """The bucket of key minus query: exact up to a quarter of ``count``, then geometric up to ``farthest``; the upper half
    is for keys that come after."""
    half = count // 2
    exact = half // 2
    distance = np.abs(relative)
    far = np.log(np.maximum(distance, 1) / exact) / math.log(farthest / exact) * (half - exact)
    far = np.minimum(exact + np.maximum(far, 0).astype(np.int64), half - 1)
    return np.where(distance < exact, distance, far) + half * (relative > 0)


class UMT5Block(nn.Module):
    """Attention with a bias for relative position, then a gated feed-forward part."""

    heads: int
    head: int
    hidden: int
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], places, mask):
        width, inner = x.shape[-1], self.heads * self.head
        h = RMSNorm(self.eps, name="norm")(x)

        def rows(name):
            made = Linear(inner, ("embed", "heads"), bias=False, name=name)(h)
            return made.reshape(*h.shape[:2], self.heads, self.head)

        shape = (32, self.heads)
        table = self.param("places", named(nn.initializers.normal(0.02), None, None), shape, jnp.float32)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scores = jnp.einsum("blhk,bmhk->bhlm", rows("q"), rows("k"), preferred_element_type=wide)
        scores = scores + jnp.moveaxis(table.astype(wide)[places], -1, 0)[None]
        share = nn.softmax(jnp.where(mask[:, None, None], scores, HIDDEN)).astype(x.dtype)
        y = jnp.einsum("bhlm,bmhk->blhk", share, rows("v")).reshape(*x.shape[:2], inner)
        x = x + Linear(width, ("heads", "embed"), bias=False, name="out")(y)
        h = RMSNorm(self.eps, name="feed_norm")(x)
        gate = nn.gelu(Linear(self.hidden, ("embed", "mlp"), bias=False, name="gate")(h), approximate=True)
        h = gate * Linear(self.hidden, ("embed", "mlp"), bias=False, name="up")(h)
        return x + Linear(width, ("mlp", "embed"), bias=False, name="down")(h), None


class UMT5Encoder(nn.Module):
    """tokens [..., L] -> (float32 embeddings [..., L, width], zero on padding, and mask bool [..., L]). 0 is padding."""

    vocabulary: int = 256_384
    width: int = 4096
    layers: int = 24
    heads: int = 64
    head: int = 64
    hidden: int = 10_240
    eps: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Int[Array, "... L"]) -> tuple[Float[Array, "... L D"], Bool[Array, "... L"]]:
        *outer, length = tokens.shape
        flat = tokens.reshape(-1, length)
        mask = flat > 0
        init = named(nn.initializers.normal(1.0), "vocab", "embed")
        table = self.param("embed", init, (self.vocabulary, self.width), jnp.float32)
        x = jnp.take(table, flat, 0).astype(self.dtype)
        places = jnp.asarray(buckets(np.arange(length)[None] - np.arange(length)[:, None]), jnp.int32)
        repeated = nn.scan(
            UMT5Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = repeated(self.heads, self.head, self.hidden, self.eps, name="blocks")(x, places, mask)
        x = RMSNorm(self.eps, name="norm")(x).astype(jnp.float32)
        return jax.lax.select(jnp.broadcast_to(mask[..., None], x.shape), x, jnp.zeros_like(x)).reshape(
            *outer, length, self.width
        ), mask.reshape(*outer, length)


def umt5_xxl(**kw) -> UMT5Encoder:
    """UMT5-XXL: 5.68 billion parameters, a fifth of them the table of tokens."""
    return UMT5Encoder(**kw)
