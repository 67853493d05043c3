# SPDX-License-Identifier: Apache-2.0
"""The two towers of the causal video autoencoder: levels of residual blocks, and what changes size between them.

Each takes a chunk and a memory (a dict that mirrors its modules, None at the start) and gives both back.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxvid.models.vae_blocks import (
    CausalConv,
    ChannelNorm,
    DoubleTime,
    FrameConv,
    HalveTime,
    Middle,
    ResidualBlock,
    average_down,
    repeat_up,
    shuffle_up,
)


class Encoder(nn.Module):
    """[B, T, H, W, C] -> [B, F, h, w, out], and the memory of every convolution on the way."""

    out: int
    base: int
    mult: tuple[int, ...]
    res: int
    temporal: tuple[bool, ...]
    residual: bool
    shuffle: bool
    tail: bool
    floor: float
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x, memory, first):
        memory, new = memory or {}, {}
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        x, new["conv_in"] = CausalConv(self.base, self.tail, self.dtype, name="conv_in")(
            x, memory.get("conv_in")
        )
        for level, times in enumerate(self.mult):
            width, shrinks = self.base * times, level + 1 < len(self.mult)
            halves, around = shrinks and self.temporal[level], x
            for i in range(self.res):
                name = f"down_{level}_resnets_{i}"
                x, new[name] = block(width, self.tail, self.floor, self.dtype, name=name)(x, memory.get(name))
            if shrinks:
                out = self.base * self.mult[level + 1] if self.shuffle else width
                x = FrameConv(out, 2, ((0, 1), (0, 1)), self.dtype, name=f"down_{level}_resample")(x)
            if halves:
                name = f"down_{level}_time_conv"
                x, new[name] = HalveTime(self.tail, self.dtype, name=name)(x, memory.get(name), first)
            if self.residual:
                x = x + average_down(around, x.shape[-1], 2 if halves else 1, 2 if shrinks else 1, first)
        middle = Middle(x.shape[-1], self.tail, self.floor, self.dtype, self.remat, name="mid")
        x, new["mid"] = middle(x, memory.get("mid"))
        x = nn.silu(ChannelNorm(self.floor, self.dtype, name="norm_out")(x))
        x, new["conv_out"] = CausalConv(self.out, self.tail, self.dtype, name="conv_out")(
            x, memory.get("conv_out")
        )
        return x, new


class Decoder(nn.Module):
    """[B, F, h, w, z] -> [B, T, H, W, out], and the memory of every convolution on the way."""

    out: int
    base: int
    mult: tuple[int, ...]
    res: int
    temporal: tuple[bool, ...]  # in the encoder's order
    residual: bool
    shuffle: bool
    tail: bool
    floor: float
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x, memory, first):
        memory, new = memory or {}, {}
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        widths = [self.base * times for times in reversed(self.mult)]
        x, new["conv_in"] = CausalConv(widths[0], self.tail, self.dtype, name="conv_in")(
            x, memory.get("conv_in")
        )
        middle = Middle(widths[0], self.tail, self.floor, self.dtype, self.remat, name="mid")
        x, new["mid"] = middle(x, memory.get("mid"))
        for level, width in enumerate(widths):
            grows = level + 1 < len(widths)
            doubles, around = grows and self.temporal[::-1][level], x
            for i in range(self.res + 1):
                name = f"up_{level}_resnets_{i}"
                x, new[name] = block(width, self.tail, self.floor, self.dtype, name=name)(x, memory.get(name))
            if doubles:
                name = f"up_{level}_time_conv"
                x, new[name] = DoubleTime(self.tail, self.dtype, name=name)(x, memory.get(name), first)
            if grows:
                narrow = width if self.residual else widths[level + 1] if self.shuffle else width // 2
                if self.shuffle:
                    x = shuffle_up(FrameConv(4 * narrow, dtype=self.dtype, name=f"up_{level}_resample")(x))
                else:
                    x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
                    x = FrameConv(narrow, dtype=self.dtype, name=f"up_{level}_resample")(x)
                if self.residual:
                    x = x + repeat_up(around, narrow, 2 if doubles else 1, 2, first)
        x = nn.silu(ChannelNorm(self.floor, self.dtype, name="norm_out")(x))
        x, new["conv_out"] = CausalConv(self.out, self.tail, self.dtype, name="conv_out")(
            x, memory.get("conv_out")
        )
        return x, new
