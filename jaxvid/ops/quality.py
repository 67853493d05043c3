# SPDX-License-Identifier: Apache-2.0
"""How alike two pictures are: PSNR, SSIM, MS-SSIM and the Haar wavelet bands, on arrays in [-1, 1].

The measures take frames ``[..., H, W, C]`` and give one number per frame, ``[...]``; all are differentiable, in float32.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

RANGE = 2.0  # of pixels in [-1, 1]
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
LEAST = 1e-6  # of a contrast term before a fractional power, whose slope at 0 is infinite


def psnr(x: Float[Array, "*N H W C"], y: Float[Array, "*N H W C"]) -> Float[Array, "*N"]:
    """Peak signal-to-noise ratio in dB; equal frames give 100."""
    error = jnp.mean(jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)), axis=(-3, -2, -1))
    return 10.0 * jnp.log10(RANGE**2 / jnp.maximum(error, RANGE**2 * 1e-10))


def blur_matrix(side: int) -> np.ndarray:
    """[side, side - window + 1]: a Gaussian window slid over a line, as a matrix (two small products beat a convolution)."""
    window = min(WINDOW, side)
    offsets = np.arange(window) - (window - 1) / 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((side, side - window + 1), np.float32)
    for place in range(matrix.shape[1]):
        matrix[place : place + window, place] = weights
    return matrix


def ssim_maps(x, y):
    """Structural similarity and its contrast part at every place, [..., h, w, C]."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    rows, columns = blur_matrix(x.shape[-3]), blur_matrix(x.shape[-2])

    def blur(a):
        return jnp.einsum("...hwc,hi,wj->...ijc", a, rows, columns)

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    contrast = (2 * vxy + C2) / (vx + vy + C2)
    return (2 * mx * my + C1) / (mx * mx + my * my + C1) * contrast, contrast


def ssim(x: Float[Array, "*N H W C"], y: Float[Array, "*N H W C"]) -> Float[Array, "*N"]:
    """Structural similarity, at most 1: 11x11 Gaussian windows inside the frame (smaller frames: one smaller window).

    Ref: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity (2004).
    """
    return jnp.mean(ssim_maps(x, y)[0], axis=(-3, -2, -1))


def ms_ssim(x: Float[Array, "*N H W C"], y: Float[Array, "*N H W C"]) -> Float[Array, "*N"]:
    """Structural similarity over up to five scales, in [0, 1]; scales smaller than the window are left out.

    Ref: Wang et al., Multi-scale Structural Similarity for Image Quality Assessment (2003).
    """
    side = min(x.shape[-3:-1])
    count = max(1, sum(side // 2**s >= WINDOW for s in range(len(SCALES))))
    weights = np.array(SCALES[:count]) / sum(SCALES[:count])
    total = 1.0
    for scale, weight in enumerate(weights):
        whole, contrast = ssim_maps(x, y)
        term = jnp.mean(whole if scale + 1 == count else contrast, axis=(-3, -2))  # [..., C]
        total = total * jnp.maximum(term, LEAST) ** weight
        if scale + 1 < count:
            x, y = halve(x), halve(y)
    return jnp.mean(total, axis=-1)


def halve(x):
    """Means of 2x2 pixels; an odd last row or column is left out."""
    *lead, h, w, c = x.shape
    x = x[..., : h // 2 * 2, : w // 2 * 2, :].reshape(*lead, h // 2, 2, w // 2, 2, c)
    return jnp.mean(x, axis=(-4, -2))


def haar_split(x, axis):
    """Sums and differences of neighbours along an even axis, times 1/sqrt 2."""
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    even, odd = jnp.take(pairs, 0, axis=axis + 1), jnp.take(pairs, 1, axis=axis + 1)
    return (even + odd) / math.sqrt(2), (even - odd) / math.sqrt(2)


def haar3d(x: Float[Array, "B T H W C"]) -> dict[str, Array]:
    """The Haar wavelet bands over time, rows and columns, keys ``lll`` (all means) to ``hhh`` (all differences).

    Frame 0 of an odd clip is left out, so that frames pair up as the causal autoencoder groups them; one frame gives the
    bands over rows and columns only, ``ll`` to ``hh``. Sizes halve, H and W must be even. With an even clip nothing is
    lost: the bands hold the clip's energy.
    """
    bands = {"": x[:, x.shape[1] % 2 :] if x.shape[1] > 1 else x}
    for axis in (1, 2, 3) if x.shape[1] > 1 else (2, 3):
        bands = {
            name + letter: part
            for name, band in bands.items()
            for letter, part in zip("lh", haar_split(band, axis), strict=True)
        }
    return bands
