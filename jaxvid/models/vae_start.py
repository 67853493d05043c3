# SPDX-License-Identifier: Apache-2.0
"""A start for the autoencoder: before its first step it is the best linear codec of its images, patch by patch.

A deep network needs thousands of steps to learn what a principal component analysis says at once: which few numbers of a
patch matter. So the residual branches begin at zero, the convolutions that change size carry pixels to patches and
back, the latents are the leading components, and training has only the rest to learn. Signals pass SiLU in pairs, since
silu(x) - silu(-x) = x, and are kept small enough for the norms to be linear (below their floor).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.models.video_vae import VideoVAE
from jaxvid.types import InputError, Params

SMALL = 0.3  # how large pixels of size 1 are inside, so that norms stay below their floor


def components(
    x: Float[Array, "N H W C"], side: int, count: int
) -> tuple[Float[Array, "P count"], Float[Array, "count"]]:
    """The leading components of patches, P = side * side * C values each (row, column, colour), and their spreads.

    Measured about zero, which is gray, so that the codec needs no biases.
    """
    n, h, w, c = x.shape
    x = (
        x.reshape(n, h // side, side, w // side, side, c)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(-1, side * side * c)
    )
    values, vectors = jnp.linalg.eigh(x.T @ x / len(x))
    return vectors[:, ::-1][:, :count], jnp.sqrt(jnp.maximum(values[::-1][:count], 1e-6))


def quieten(node: Params) -> Params:
    """Residual branches end in zeros, and shortcuts hand channels on."""

    def still(path, leaf):
        names = [part.key for part in path]
        if names[-1] == "kernel" and names[-2] in ("conv2", "proj"):
            return jnp.zeros_like(leaf)
        if names[-1] == "kernel" and names[-2] == "conv_shortcut":
            return jnp.eye(*leaf.shape, dtype=leaf.dtype)
        return leaf

    return jax.tree_util.tree_map_with_path(still, node)


def linear_start(model: VideoVAE, params: Params, images: Float[Array, "N H W 3"]) -> Params:
    """New parameters with which ``model`` codes every frame by the principal components of ``images`` in [-1, 1].

    The latents have about unit variance. Needs ``shuffle`` and three levels wide enough to carry a patch; InputError
    otherwise. May be traced.
    """
    p, s, z = model.patch, model.space_factor, model.z
    enc = [model.base * m for m in model.mult]
    dec = [(model.dec_base or model.base) * m for m in model.dec_mult or model.mult]
    pixel = 3 * p * p
    if not model.shuffle or model.residual or len(enc) != 3:
        raise InputError("a linear start needs a model of three levels with shuffle=True and residual=False")
    least = [pixel, 4 * pixel, 2 * z], [2 * pixel, 4 * pixel, 2 * z]
    if any(have < want for have, want in zip(enc + dec, least[0] + least[1], strict=True)):
        raise InputError(
            f"a linear start needs widths of at least {least[0]} and {least[1]}, not {enc} and {dec}; widen"
        )
    vectors, spread = components(images, s, z)
    params = quieten(params)

    # Every value of a patch: where it is after both halvings, and which channel it has between them.
    row, column, colour = (axis.ravel() for axis in np.indices((s, s, 3)))
    outer = row // (2 * p), column // (2 * p)
    inner = (2 * (row // p % 2) + column // p % 2) * pixel + colour * p * p + (column % p) * p + row % p
    value = (row * s + column) * 3 + colour
    keep, colours = np.arange(z), np.arange(pixel)

    def kernel(part, name, *entries):
        node = params[part][name]
        new = jnp.zeros_like(node["kernel"])
        for index, entry in entries:
            new = new.at[index].set(entry)
        return {**node, "kernel": new}

    def pairs_back(part, count, width):
        """The last convolution: differences of pairs of channels, undoing SMALL and what the norm multiplies by."""
        scale = 1 / (SMALL * np.sqrt(width / model.norm_floor))
        lanes = np.arange(count)
        return kernel(
            part,
            "conv_out",
            ((-1, 1, 1, 2 * lanes, lanes), scale),
            ((-1, 1, 1, 2 * lanes + 1, lanes), -scale),
        )

    def at(*parts):
        return tuple(
            part[:, None] if np.ndim(part) and np.size(part) == value.size else part for part in parts
        )

    scaled = (vectors / spread[None])[value]
    encoder = {
        "conv_in": kernel("encoder", "conv_in", ((-1, 1, 1, colours, colours), SMALL)),
        "down_0_resample": kernel(
            "encoder",
            "down_0_resample",
            *(((dy, dx, colours, (2 * dy + dx) * pixel + colours), 1) for dy, dx in np.ndindex(2, 2)),
        ),
        "down_1_resample": kernel(
            "encoder",
            "down_1_resample",
            (at(*outer, inner, 2 * keep[None]), scaled),
            (at(*outer, inner, 2 * keep[None] + 1), -scaled),
        ),
        "conv_out": pairs_back("encoder", z, enc[2]),
    }
    decoder = {
        "conv_in": kernel("decoder", "conv_in", ((-1, 1, 1, keep, keep), SMALL)),
        "up_0_resample": kernel(
            "decoder",
            "up_0_resample",
            (
                at(1, 1, keep[None], (2 * outer[0] + outer[1]) * dec[1] + inner),
                (vectors * spread[None])[value],
            ),
        ),
        "up_1_resample": kernel(
            "decoder",
            "up_1_resample",
            *(
                (
                    (1, 1, (2 * dy + dx) * pixel + colours, (2 * dy + dx) * dec[0] + 2 * colours + other),
                    1 - 2 * other,
                )
                for dy, dx, other in np.ndindex(2, 2, 2)
            ),
        ),
        "conv_out": pairs_back("decoder", pixel, dec[0]),
    }
    through = {
        name: {**params[name], "kernel": jnp.eye(width, dtype=jnp.float32)}
        for name, width in (("quant_conv", 2 * z), ("post_quant_conv", z))
    }
    return {
        **params,
        **through,
        "encoder": {**params["encoder"], **encoder},
        "decoder": {**params["decoder"], **decoder},
    }


@dataclasses.dataclass(frozen=True)
class LinearStart:
    """`linear_start` as a value that a config can name; ``images``: how many of those offered are measured, at most."""

    images: int = 1024

    def __call__(self, model: VideoVAE, params: Params, images: Float[Array, "N H W 3"]) -> Params:
        return linear_start(model, params, images[: self.images])
