# SPDX-License-Identifier: Apache-2.0
"""A layer of a diffusion transformer, and a pattern of layers repeated through the depth.

adaLN-single: one projection of the noise level serves all layers, and each layer adds a table of its own.

Ref: PixArt-alpha, arXiv:2310.00426.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.nn.layers import FeedForward, named, normalise
from jaxvid.nn.mixers.cross import Cross
from jaxvid.sharding import cut_frames
from jaxvid.types import InputError


def modulate(x: Float[Array, "B T H W D"], shift: Float[Array, "B T D"], scale: Float[Array, "B T D"]):
    """Normalise, then scale and shift every frame by what its noise level says."""
    shift, scale = (a[:, :, None, None].astype(x.dtype) for a in (shift, scale))
    return normalise(x) * (1 + scale) + shift


class Layer(nn.Module):
    """Mix, look at the text, feed forward."""

    mixer: nn.Module
    cross: nn.Module | None = Cross()
    ratio: float = 4.0

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], level: Float[Array, "B T 6 D"], text, memory=None):
        width = x.shape[-1]
        init = nn.initializers.normal(width**-0.5)
        table = self.param("table", named(init, None, "embed"), (6, width), jnp.float32)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.moveaxis(level + table[None, None], 2, 0)
        gate1, gate2 = (g[:, :, None, None].astype(x.dtype) for g in (gate1, gate2))
        mixed, memory = self.mixer.copy(name="mixer")(modulate(x, shift1, scale1), memory)
        x = x + gate1 * mixed
        if self.cross is not None and text is not None:
            x = x + self.cross.copy(name="cross")(x, text)[0]
        return x + gate2 * FeedForward(self.ratio, name="feed")(modulate(x, shift2, scale2)), memory


class Pattern(nn.Module):
    """One round of the pattern: what `Stack` repeats."""

    mixers: Sequence[nn.Module]
    cross: nn.Module | None
    ratio: float
    remat: bool

    @nn.compact
    def __call__(self, x, memory, level, text, early):
        layer = nn.remat(Layer) if self.remat else Layer
        after = []
        for i, mixer in enumerate(self.mixers):
            said = text
            if early is not None:
                said = {**text, "span": jnp.where(early[i], text["early"], text["span"])}
            x, m = layer(mixer, self.cross, self.ratio, name=f"layer_{i}")(
                x, level, said, memory and memory[i]
            )
            x = cut_frames(x)
            after.append(m)
        return x, memory and tuple(after)


class Stack(nn.Module):
    """A pattern of mixers repeated ``repeats`` times under one scan: compiling costs one pattern.

    Memory is a tuple with an entry per mixer of the pattern, stacked along a first axis of length ``repeats``.
    ``text["early"]`` [B, T], where it is there, takes the place of ``text["span"]`` in the first half of the layers.
    """

    mixers: Sequence[nn.Module]
    repeats: int = 1
    cross: nn.Module | None = Cross()
    ratio: float = 4.0
    remat: bool = False

    @property
    def causal(self) -> bool:
        return all(m.causal for m in self.mixers)

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        """Memory of all layers at the start of a stream, or None when a mixer sees the future."""
        if not self.causal:
            return None
        one = tuple(m.init_memory(batch, grid, width) for m in self.mixers)
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (self.repeats, *a.shape)), one)

    @nn.nowrap
    def teaching(self):
        """The memory of all layers for training with the clean video beside the noisy one (see `Attention.teaching`)."""
        if not all(hasattr(m, "teaching") for m in self.mixers):
            raise InputError(
                "a layer cannot be taught with the clean past beside the noisy video; attention can"
            )
        one = tuple(m.teaching() for m in self.mixers)
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (self.repeats, *a.shape)), one)

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], level: Float[Array, "B T 6 D"], text=None, memory=None):
        scanned = nn.scan(
            Pattern,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, 0),
            out_axes=0,
            length=self.repeats,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        early = None
        if text is not None and "early" in text:
            layers = self.repeats * len(self.mixers)
            early = (jnp.arange(layers) < layers // 2).reshape(self.repeats, -1)
        return scanned(self.mixers, self.cross, self.ratio, self.remat, name="pattern")(
            x, memory, level, text, early
        )
