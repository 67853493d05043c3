# SPDX-License-Identifier: Apache-2.0
"""The image tower of CLIP, up to its last layer but one: what Wan 2.1 I2V is told about a first image.

Ref: Radford et al., arXiv:2103.00020 (CLIP).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.nn.layers import AffineNorm, Linear, named
from jaxvid.ops.attention import attention
from jaxvid.types import InputError

MEAN, STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # of its pixels in [0, 1]


class ClipBlock(nn.Module):
    """Norm, attention, norm, feed forward."""

    heads: int
    hidden: int
    act: str
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], _=None):
        width = x.shape[-1]
        h = AffineNorm(self.eps, name="norm")(x)

        def rows(name):
            return Linear(width, ("embed", "heads"), name=name)(h).reshape(*x.shape[:2], self.heads, -1)

        y = attention(rows("q"), rows("k"), rows("v")).reshape(x.shape)
        x = x + Linear(width, ("heads", "embed"), name="out")(y)
        h = Linear(self.hidden, ("embed", "mlp"), name="up")(AffineNorm(self.eps, name="feed_norm")(x))
        h = h * nn.sigmoid(1.702 * h) if self.act == "quick_gelu" else nn.gelu(h, approximate=False)
        return x + Linear(width, ("mlp", "embed"), name="down")(h), None


class ClipVision(nn.Module):
    """Pixels [B, size, size, 3], normalised by `MEAN` and `STD` -> features float32 [B, 1 + (size / patch)^2, width]."""

    size: int = 224
    patch: int = 14
    width: int = 1280
    layers: int = 32
    heads: int = 16
    hidden: int = 5120
    act: str = "gelu"
    eps: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B L D"]:
        if x.shape[1:3] != (self.size, self.size):
            raise InputError(
                f"pictures of {x.shape[1]}x{x.shape[2]} came; this tower looks at {self.size}x{self.size}"
            )
        init = nn.initializers.lecun_normal()
        kernel = self.param("patch_in", init, (self.patch, self.patch, 3, self.width), jnp.float32)
        strides = (self.patch, self.patch)
        numbers = ("NHWC", "HWIO", "NHWC")
        x = x.astype(self.dtype)
        x = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), strides, "VALID", dimension_numbers=numbers
        )
        x = x.reshape(x.shape[0], -1, self.width)
        whole = self.param("whole", named(nn.initializers.normal(0.02), None), (self.width,), jnp.float32)
        first = jnp.broadcast_to(whole.astype(x.dtype)[None, None], (x.shape[0], 1, self.width))
        x = jnp.concatenate([first, x], 1)
        places = named(nn.initializers.normal(0.02), None, None)
        x = x + self.param("places", places, x.shape[1:], jnp.float32).astype(x.dtype)[None]
        x = AffineNorm(self.eps, name="norm")(x)
        repeated = nn.scan(
            ClipBlock,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers - 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        sizes = (self.heads, self.hidden, self.act, self.eps)
        x, _ = repeated(*sizes, name="blocks")(x, None)
        if self.is_initializing():  # weights that files hold and features do not need
            AffineNorm(self.eps, name="last_norm")(ClipBlock(*sizes, name="last")(x)[0])
        return x.astype(jnp.float32)
