# SPDX-License-Identifier: Apache-2.0
"""A start for the autoencoder: before its first step it is the best linear codec of its images, patch by patch.

A deep network needs thousands of steps to learn what a principal component analysis says at once: which few numbers of a
patch matter. So the residual branches begin at zero, the convolutions that change size carry pixels to patches and
back, the latents are the leading components, and training has only the rest to learn. Signals pass SiLU in pairs, since
silu(x) - silu(-x) = x, and are kept small enough for the norms to be linear (below their floor).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.models.video_vae import VideoVAE
from jaxvid.types import InputError

SMALL = 0.3  # how large pixels of size 1 are inside, so that norms stay below their floor


def components(x: np.ndarray, side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [..., H, W, C] -> the leading ``count`` components of their patches [side * side * C, count], and their spreads."""
    x = np.asarray(x, np.float64)
    h, w, c = x.shape[-3:]
    x = x.reshape(-1, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side * c)
    second = x.T @ x / len(x)  # about zero, which is gray: the codec has no bias to learn first
    values, vectors = np.linalg.eigh(second)
    return vectors[:, ::-1][:, :count], np.sqrt(np.maximum(values[::-1][:count], 1e-6))


def linear_start(model: VideoVAE, params, images):
    """New parameters with which ``model`` codes every frame by the principal components of ``images`` [N, H, W, 3].

    Needs ``shuffle`` and three levels wide enough to carry a patch; InputError otherwise.
    """
    p, widths = model.patch, [model.base * m for m in model.mult]
    dec = [(model.dec_base or model.base) * m for m in model.mult]
    pixel = 3 * p * p
    if not model.shuffle or len(widths) != 3 or widths[0] < pixel or widths[1] < 4 * pixel or dec[0] < 2 * pixel:
        raise InputError(
            f"a linear start needs shuffle=True and three levels of widths from {pixel}, {4 * pixel} on"
            f" ({2 * pixel} in the decoder); got shuffle={model.shuffle}, {widths} and {dec}"
        )
    if 2 * model.z > min(widths[2], dec[2]) or dec[1] < 4 * pixel:
        raise InputError(f"widths {widths} and {dec} are too narrow for pairs of {model.z} latents; widen them")
    vectors, spread = components(images, model.space_factor, model.z)
    params = jax.tree.map(np.array, params)

    def still(tree):
        for name, node in tree.items():
            if name == "conv2":
                node["kernel"][:] = 0
            elif name == "proj":
                node["kernel"][:] = 0
            elif name == "conv_shortcut":
                node["kernel"][:] = np.eye(*node["kernel"].shape)
            if isinstance(node, dict):
                still(node)

    still(params)
    enc, out = params["encoder"], params["decoder"]
    s = model.space_factor

    def place(c, row, column):
        """The channel of a pixel's colour among those of `patchify` and the row of ``vectors`` it belongs to."""
        return c * p * p + (column % p) * p + row % p, (row * s + column) * 3 + c

    # Encoder: pixels -> 2x2 pixels side by side -> components in pairs.
    kernel = enc["conv_in"]["kernel"]
    kernel[:] = 0
    kernel[-1, 1, 1, np.arange(pixel), np.arange(pixel)] = SMALL
    first, second = enc["down_0_resample"]["kernel"], enc["down_1_resample"]["kernel"]
    first[:], second[:] = 0, 0
    for dy, dx in np.ndindex(2, 2):
        first[dy, dx, np.arange(pixel), (2 * dy + dx) * pixel + np.arange(pixel)] = 1
    keep = np.arange(model.z)
    scaled = vectors / spread  # latents of about unit variance
    norm = np.sqrt(widths[2] / model.norm_floor)  # what a ChannelNorm multiplies by, below its floor
    for row, column, c in np.ndindex(s, s, 3):
        channel, line = place(c, row, column)
        inner = (2 * (row // p % 2) + column // p % 2) * pixel + channel
        second[row // (2 * p), column // (2 * p), inner, 2 * keep] = scaled[line]
        second[row // (2 * p), column // (2 * p), inner, 2 * keep + 1] = -scaled[line]
    kernel = enc["conv_out"]["kernel"]
    kernel[:] = 0
    kernel[-1, 1, 1, 2 * keep, keep] = 1 / (SMALL * norm)
    kernel[-1, 1, 1, 2 * keep + 1, keep] = -1 / (SMALL * norm)
    params["quant_conv"]["kernel"][:] = np.eye(2 * model.z)
    params["post_quant_conv"]["kernel"][:] = np.eye(model.z)

    # Decoder: components -> 2x2 pixels side by side -> pixels in pairs.
    kernel = out["conv_in"]["kernel"]
    kernel[:] = 0
    kernel[-1, 1, 1, keep, keep] = SMALL
    first, second = out["up_0_resample"]["kernel"], out["up_1_resample"]["kernel"]
    first[:], second[:] = 0, 0
    back = vectors * spread
    for row, column, c in np.ndindex(s, s, 3):
        channel, line = place(c, row, column)
        inner = (2 * (row // p % 2) + column // p % 2) * pixel + channel
        outer = 2 * (row // (2 * p)) + column // (2 * p)
        first[1, 1, keep, outer * dec[1] + inner] = back[line]
    for dy, dx in np.ndindex(2, 2):
        for channel in range(pixel):
            inner = (2 * dy + dx) * pixel + channel
            second[1, 1, inner, (2 * dy + dx) * dec[0] + 2 * channel] = 1
            second[1, 1, inner, (2 * dy + dx) * dec[0] + 2 * channel + 1] = -1
    kernel = out["conv_out"]["kernel"]
    kernel[:] = 0
    norm = np.sqrt(dec[0] / model.norm_floor)
    kernel[-1, 1, 1, 2 * np.arange(pixel), np.arange(pixel)] = 1 / (SMALL * norm)
    kernel[-1, 1, 1, 2 * np.arange(pixel) + 1, np.arange(pixel)] = -1 / (SMALL * norm)
    return jax.tree.map(jnp.asarray, params)
