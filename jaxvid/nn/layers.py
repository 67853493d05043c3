# SPDX-License-Identifier: Apache-2.0
"""The smallest trainable pieces. Parameters are float32; computing follows the dtype of the input.

Parameters carry the logical names of their axes (`flax.linen.with_logical_partitioning`), which
`jaxvid/sharding.py` turns into places on a mesh; `flax.linen.unbox` strips the names.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def named(init: Callable, *axes: str | None) -> Callable:
    """An initialiser whose parameter knows the logical names of its axes."""
    return nn.with_logical_partitioning(init, axes)


def uniform_fan_in(key, shape, dtype=jnp.float32):
    """Uniform in +-1/sqrt(fan_in) over the first axis: what Mamba-2 was tuned with (a third of lecun's variance)."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def along(vector: Float[Array, "D"], x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """A vector over the last axis, ready to meet ``x``: in its dtype and, broadcasting being said, of its rank."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Linear(nn.Module):
    """x[..., D] -> [..., features]."""

    features: int
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    bias: bool = True
    init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        kernel = self.param("kernel", named(self.init, *self.axes), (x.shape[-1], self.features), jnp.float32)
        y = x @ kernel.astype(x.dtype)
        if self.bias:
            bias = self.param(
                "bias", named(nn.initializers.zeros, self.axes[1]), (self.features,), jnp.float32
            )
            y = y + along(bias, y)
        return y


def normalise(x: Float[Array, "... D"], eps: float = 1e-6) -> Float[Array, "... D"]:
    """LayerNorm without parameters. Statistics in float32 and in two passes: the one-pass variance
    loses its digits when the mean is large."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + eps)).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, statistics in float32."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", named(nn.initializers.ones, None), (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        unit = wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + self.eps)
        return (unit * along(scale, wide)).astype(x.dtype)


class AffineNorm(nn.Module):
    """LayerNorm with scale and bias, statistics in two passes and float32."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", named(nn.initializers.ones, None), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", named(nn.initializers.zeros, None), (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return (normalise(wide, self.eps) * along(scale, wide) + along(bias, wide)).astype(x.dtype)


class FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    ratio: float = 4.0

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        hidden = Linear(int(self.ratio * x.shape[-1]), ("embed", "mlp"), name="up")(x)
        return Linear(x.shape[-1], ("mlp", "embed"), name="down")(nn.gelu(hidden))
