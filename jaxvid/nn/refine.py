# SPDX-License-Identifier: Apache-2.0
"""A convolutional head on the grid of latents: what patches are too coarse for.

A token of a patch of 2x2 latents has to say all of them, and must learn every place of an edge inside its patch for
itself. A few convolutions on the grid below know what their neighbours say and treat every place alike. They look at one
frame at a time, so they change nothing about causality, memory or the cost's linearity.

It begins at zero: a network that was trained without it goes on from what it knew.

Ref for narrow backbones under a head that is for detail: Wang et al., DDT, arXiv:2504.05741. For convolutions at the
finest level of a diffusion transformer: Crowson et al., Hourglass Diffusion Transformers, arXiv:2401.11605.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.nn.layers import Linear, along, named, normalise
from jaxvid.nn.patch import unpatchify
from jaxvid.ops.conv import conv2d

SAME = ((1, 1), (1, 1))


class Conv3x3(nn.Module):
    """x[B, T, H, W, C] -> [B, T, H, W, features], each frame by itself, zeros around it."""

    features: int
    init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W F"]:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", named(self.init, None, None, "embed", "mlp"), shape, jnp.float32)
        bias = self.param("bias", named(nn.initializers.zeros, "mlp"), (self.features,), jnp.float32)
        y = conv2d(x, kernel, padding=SAME)
        return y + along(bias, y)


class Refine(nn.Module):
    """What is to be added to a prediction, from tokens and the noisy latents themselves.

    ``blocks`` residual blocks of two convolutions of ``width`` channels; each is modulated by what a frame's noise level
    and caption say, as the backbone's layers are.
    """

    width: int = 96
    blocks: int = 2

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B t h w D"],
        x: Float[Array, "B T H W C"],
        level: Float[Array, "B t D"],
        patch: tuple[int, int, int],
    ) -> Float[Array, "B T H W C"]:
        finer = Linear(patch[0] * patch[1] * patch[2] * self.width, ("embed", "mlp"), name="finer")(tokens)
        h = unpatchify(finer, patch) + Conv3x3(self.width, name="noisy")(x.astype(tokens.dtype))
        init = nn.initializers.normal(0.02)
        said = Linear(2 * self.blocks * self.width, ("embed", "mlp"), init=init, name="modulation")(level)
        said = jnp.repeat(said, patch[0], 1)[:, :, None, None].astype(h.dtype)
        for i, one in enumerate(jnp.split(said, self.blocks, -1)):
            shift, scale = jnp.split(one, 2, -1)
            inner = nn.silu(Conv3x3(self.width, name=f"first_{i}")(normalise(h) * (1 + scale) + shift))
            h = h + Conv3x3(self.width, name=f"second_{i}")(inner)
        out = Conv3x3(x.shape[-1], init=nn.initializers.zeros, name="out")
        return out(nn.silu(normalise(h)))
