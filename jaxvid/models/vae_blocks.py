# SPDX-License-Identifier: Apache-2.0
"""The parts of the causal video autoencoder: each takes a chunk of frames and a memory, and gives both back.

Only causal convolutions mix frames; everything else works on one frame or on one aligned group of frames. That is why
a video in chunks gives the same numbers as the video in one piece. A memory of ``None`` means zeros: the start of a video.
``first`` is a Python bool, true for the chunk that holds frame 0, which is never halved or doubled in time.

Ref: Wan: Open and Advanced Large-Scale Video Generative Models (2025), the autoencoder of versions 2.1 and 2.2.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvid.ops.conv import conv2d, conv3d
from jaxvid.ops.shards import Shards
from jaxvid.types import InputError

SAME = ((1, 1), (1, 1))


def image_init(tail: bool):
    """Kernels [kt, kh, kw, C, O] that act as an image network: all zero but the last time slice, which sees the present."""
    plain = nn.initializers.lecun_normal()
    if not tail:
        return plain

    def init(key, shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype).at[-1].set(plain(key, shape[1:], dtype))

    return init


def same_frame_init(tail: bool, copies: int = 1):
    """Kernels [kt, 1, 1, C, copies * C] that hand every channel of the present frame on, ``copies`` times."""
    if not tail:
        return nn.initializers.lecun_normal()

    def init(key, shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype).at[-1, 0, 0].set(jnp.tile(jnp.eye(shape[3], dtype=dtype), (1, copies)))

    return init


def over(vector, dtype):
    """[C] made ready to meet [B, T, H, W, C]."""
    return vector.astype(dtype)[None, None, None, None]


_shards: contextvars.ContextVar[Shards | None] = contextvars.ContextVar("jaxvid_vae_shards", default=None)


@contextlib.contextmanager
def neighbours(shards: Shards) -> Iterator[None]:
    """Inside, x is one device's part of a chunk whose frames are cut: its past is on the devices before it."""
    token = _shards.set(shards)
    try:
        yield
    finally:
        _shards.reset(token)


def past_of(x, frames, memory):
    """The frames before x, zeros where there is no memory."""
    past = (
        jnp.zeros((x.shape[0], frames, *x.shape[2:]), x.dtype) if memory is None else memory.astype(x.dtype)
    )
    shards = _shards.get()
    return past if shards is None else _past_of_neighbours(x, past, shards)


def _past_of_neighbours(x, past, shards: Shards):
    """The last frames of the devices before this one; ``past`` is what was before the first of them."""
    frames, mine = past.shape[1], x.shape[1]
    hops = min(-(-frames // mine), shards.size - 1)
    before = [shards.send(x[:, -frames:], hop) for hop in range(hops, 0, -1)]
    known = jnp.concatenate([past, *before], axis=1)[:, -frames:]
    # of devices at the start the sequence goes less far back, and what came round from its end is not the past
    age = frames - jnp.arange(frames)  # 1 is the frame just before x
    far = shards.rank() * mine
    old = jnp.take(past, jnp.clip(frames - age + far, 0, frames - 1), axis=1)
    return jnp.where((age <= far)[None, :, None, None, None], known, old)


class ChannelNorm(nn.Module):
    """Every position divided by its root mean square over channels, times a learned scale; in float32."""

    floor: float = 1e-12  # of the sum of squares: keeps value and gradient finite where all channels are zero
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.ones_init(), (x.shape[-1],))
        x = x.astype(jnp.float32)
        square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        x = (
            x
            * jax.lax.rsqrt(jnp.maximum(square, self.floor))
            * (math.sqrt(x.shape[-1]) * over(gamma, jnp.float32))
        )
        return x.astype(self.dtype)


class CausalConv(nn.Module):
    """A 3x3x3 convolution that sees the present frame and the two before it; its memory is those two."""

    features: int
    tail: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, memory=None):
        kernel = self.param("kernel", image_init(self.tail), (3, 3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x = x.astype(self.dtype)
        seen = jnp.concatenate([past_of(x, 2, memory), x], axis=1)
        if memory is None and x.shape[1] == 1:  # an image: the earlier taps see zeros only
            y = conv2d(x, kernel[-1], padding=SAME)
        else:
            y = conv3d(seen, kernel, padding=((0, 0), *SAME))
        return y + over(bias, self.dtype), seen[:, -2:]


class FrameConv(nn.Module):
    """A 3x3 convolution of every frame by itself."""

    features: int
    stride: int = 1
    padding: tuple = SAME
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        stride = (self.stride, self.stride)
        return conv2d(x.astype(self.dtype), kernel, stride=stride, padding=self.padding) + over(
            bias, self.dtype
        )


class HalveTime(nn.Module):
    """Frame 0 as it is, then one frame for every two; the memory is the last frame seen."""

    tail: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, memory, first):
        width = x.shape[-1]
        kernel = self.param("kernel", same_frame_init(self.tail), (3, 1, 1, width, width))
        bias = self.param("bias", nn.initializers.zeros_init(), (width,))
        x = x.astype(self.dtype)
        seen = x if first else jnp.concatenate([past_of(x, 1, memory), x], axis=1)
        y = conv3d(seen, kernel, stride=(2, 1, 1)) + over(bias, self.dtype)
        return (jnp.concatenate([x[:, :1], y], axis=1) if first else y), x[:, -1:]


class DoubleTime(nn.Module):
    """Frame 0 as it is, then two frames for every one; the memory is the last two frames seen, frame 0 never counting."""

    tail: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, memory, first):
        width = x.shape[-1]
        kernel = self.param("kernel", same_frame_init(self.tail, 2), (3, 1, 1, width, 2 * width))
        bias = self.param("bias", nn.initializers.zeros_init(), (2 * width,))
        x = x.astype(self.dtype)
        alone, x = (x[:, :1], x[:, 1:]) if first else (None, x)
        seen = jnp.concatenate([past_of(x, 2, None if first else memory), x], axis=1)
        y = conv3d(seen, kernel) + over(bias, self.dtype)
        y = y.reshape(*y.shape[:-1], 2, width)  # the even frame's channels, then the odd one's
        y = jnp.moveaxis(y, -2, 2).reshape(x.shape[0], 2 * x.shape[1], *x.shape[2:])
        return (y if alone is None else jnp.concatenate([alone, y], axis=1)), seen[:, -2:]


class ResidualBlock(nn.Module):
    """Twice: norm, SiLU, causal convolution; added to the input (through a 1x1x1 convolution where widths differ)."""

    features: int
    tail: bool = True
    floor: float = 1e-12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, memory=None):
        memory = memory or {}
        conv = {"features": self.features, "tail": self.tail, "dtype": self.dtype}
        y = nn.silu(ChannelNorm(self.floor, self.dtype, name="norm1")(x))
        y, m1 = CausalConv(**conv, name="conv1")(y, memory.get("conv1"))
        y = nn.silu(ChannelNorm(self.floor, self.dtype, name="norm2")(y))
        y, m2 = CausalConv(**conv, name="conv2")(y, memory.get("conv2"))
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="conv_shortcut")(x)
        return x + y, {"conv1": m1, "conv2": m2}


class FrameAttention(nn.Module):
    """One head of attention among the positions of each frame."""

    floor: float = 1e-12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        batch, frames, height, width, channels = x.shape
        y = ChannelNorm(self.floor, self.dtype, name="norm")(x).reshape(
            batch, frames, height * width, channels
        )
        q, k, v = jnp.split(nn.Dense(3 * channels, dtype=self.dtype, name="to_qkv")(y), 3, axis=-1)
        scores = jnp.einsum("btqc,btkc->btqk", q, k).astype(jnp.float32) / math.sqrt(channels)
        y = jnp.einsum("btqk,btkc->btqc", nn.softmax(scores).astype(v.dtype), v)
        return x + nn.Dense(channels, dtype=self.dtype, name="proj")(y).reshape(x.shape)


class Middle(nn.Module):
    """Residual block, attention within frames, residual block."""

    features: int
    tail: bool = True
    floor: float = 1e-12
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x, memory=None):
        memory = memory or {}
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        x, m0 = block(self.features, self.tail, self.floor, self.dtype, name="resnets_0")(
            x, memory.get("resnets_0")
        )
        x = FrameAttention(self.floor, self.dtype, name="attentions_0")(x)
        x, m1 = block(self.features, self.tail, self.floor, self.dtype, name="resnets_1")(
            x, memory.get("resnets_1")
        )
        return x, {"resnets_0": m0, "resnets_1": m1}


def patchify(x, size):
    """[B, T, H, W, C] -> [B, T, H/size, W/size, C * size**2], channels in the order (channel, column, row) of Wan 2.2."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).reshape(b, t, h // size, w // size, c * size * size)


def unpatchify(x, size):
    """The inverse of `patchify`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, c // size**2, size, size)
    return x.transpose(0, 1, 2, 6, 3, 5, 4).reshape(b, t, h * size, w * size, c // size**2)


def shuffle_up(x):
    """[B, T, H, W, 4C] -> [B, T, 2H, 2W, C]: every pixel becomes four, each from channels of its own."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, 2, 2, c // 4).transpose(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(b, t, 2 * h, 2 * w, c // 4)


def check_shortcut(larger, smaller):
    """A shortcut averages or repeats whole groups of channels."""
    if larger % smaller:
        raise InputError(
            f"residual=True: {larger} values cannot be grouped evenly by {smaller}; choose widths (base, mult) that divide"
        )


def average_down(x, features, time, space, first):
    """The shortcut around a level that shrinks: blocks of pixels to channels, then means of neighbouring channels.

    Time is padded with zero frames in front of frame 0, so that groups are {0}, {1, 2}, ...
    Ref: Deep Compression Autoencoder (2024); Wan 2.2.
    """
    check_shortcut(x.shape[-1] * time * space * space, features)
    if first and time > 1:
        x = jnp.pad(x, ((0, 0), (time - 1, 0), (0, 0), (0, 0), (0, 0)))
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // time, time, h // space, space, w // space, space, c)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, t // time, h // space, w // space, features, -1)
    return jnp.mean(x, axis=-1)


def repeat_up(x, features, time, space, first):
    """The shortcut around a level that grows: channels repeated, then laid out as blocks of pixels; frame 0 stays one."""
    b, t, h, w, c = x.shape
    check_shortcut(features * time * space * space, c)
    x = jnp.repeat(x, features * time * space * space // c, axis=-1).reshape(
        b, t, h, w, features, time, space, space
    )
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, t * time, h * space, w * space, features)
    return x[:, time - 1 :] if first else x
