# SPDX-License-Identifier: Apache-2.0
"""Convolutions over frames, written as 2-D ones because XLA runs those 3 to 10 times faster on a CPU.

A 3-D kernel ``[kt, kh, kw, C, O]`` is a sum of kt 2-D kernels, one per time tap, each seeing the frames shifted by one.
With few channels the taps are laid side by side on the channel axis, so that one convolution does the work of all;
with many, one convolution per tap needs less memory and is as fast.

Letters of this file: B batch, T frames, H W rows and columns, L places in a sequence, C channels in, O channels out, K taps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FEW_CHANNELS = 64  # up to here one wide convolution wins (measured on two cores)

Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def causal_conv1d(
    x: Float[Array, "B L C"],
    kernel: Float[Array, "K C"],
    bias: Float[Array, "C"] | None = None,
    memory: Float[Array, "B K-1 C"] | None = None,
) -> tuple[Float[Array, "B L C"], Float[Array, "B K-1 C"]]:
    """Filters every channel by itself, each place seeing itself and the K-1 places before it.

    ``y[l] = bias + sum_k kernel[k] x[l - (K-1) + k]``; ``memory`` is the K-1 places before the first (None: zeros).
    The returned memory continues the sequence: two halves in turn equal the whole. Both have x's dtype.
    """
    taps, length = kernel.shape[0], x.shape[1]
    if memory is None:
        memory = jnp.zeros((x.shape[0], taps - 1, x.shape[2]), x.dtype)
    x = jnp.concatenate([memory.astype(x.dtype), x], axis=1)
    kernel = kernel.astype(x.dtype)
    y = sum(x[:, k : k + length] * kernel[k][None, None] for k in range(taps))
    if bias is not None:
        y = y + bias.astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return y, x[:, x.shape[1] - (taps - 1) :]


def conv2d(
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "kh kw C O"],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
) -> Float[Array, "B T h w O"]:
    """Convolves every frame by itself; ``padding`` is zeros ((top, bottom), (left, right))."""
    batch, frames, *image = x.shape
    y = jax.lax.conv_general_dilated(
        x.reshape(batch * frames, *image),
        kernel.astype(x.dtype),
        stride,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(batch, frames, *y.shape[1:])


def conv3d(
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "kt kh kw C O"],
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: Pads = ((0, 0), (0, 0), (0, 0)),
) -> Float[Array, "B t h w O"]:
    """The 3-D cross-correlation of `jax.lax.conv_general_dilated`, as 2-D ones.

    ``padding`` is zeros before and after each of time, rows and columns: causal is ``((kt - 1, 0), ...)``.
    A clip too short for one window gives no frames.
    """
    taps, channels = kernel.shape[0], x.shape[-1]
    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    frames = max(0, (x.shape[1] - taps) // stride[0] + 1)
    space = {"stride": stride[1:], "padding": padding[1:]}
    if taps == 1:
        return conv2d(x[:, :: stride[0]], kernel[0], **space)
    last = (frames - 1) * stride[0] + 1 if frames else 0
    views = [x[:, k : k + last : stride[0]] for k in range(taps)]
    if channels <= FEW_CHANNELS or not frames:
        side_by_side = jnp.moveaxis(kernel, 0, 2).reshape(
            *kernel.shape[1:3], taps * channels, kernel.shape[-1]
        )
        return conv2d(jnp.concatenate(views, axis=-1), side_by_side, **space)
    return sum(conv2d(view, kernel[k], **space) for k, view in enumerate(views))
