# SPDX-License-Identifier: Apache-2.0
"""What makes a reconstruction good: pixels, edges, structure, a user's own eye, and latents that stay near a unit Gaussian.

The default needs no pretrained network: L1 + Haar bands + gradients + (1 - MS-SSIM) + KL, each a mean over its own elements.
A perceptual function (LPIPS with a user's weights, say) fits in a slot. Ref: WF-VAE (2024) for the wavelet term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.ops.quality import haar3d, ms_ssim, psnr


def mean_over(value, ok):
    """The mean of [B, T, ...] over the frames where ``ok`` [B, T]; 0 where there are none."""
    value = jnp.mean(value.reshape(*value.shape[:2], -1), axis=-1)
    return jnp.sum(jnp.where(ok, value, 0.0)) / jnp.maximum(jnp.sum(ok), 1)


def kl_to_unit(mean, logvar):
    """The divergence from a unit Gaussian per element: half of mean^2 + variance - 1 - log variance."""
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def latent_ok(ok, latents: int):
    """[B, T] frames to [B, F] latent frames: one counts when any frame of its group does."""
    if latents == 1:
        return ok[:, :1]
    groups = ok[:, 1:].reshape(ok.shape[0], latents - 1, -1)
    return jnp.concatenate([ok[:, :1], jnp.any(groups, axis=-1)], axis=1)


def haar_loss(x, y, ok):
    """L1 between the high Haar bands, a low-pass of all axes left to the pixel loss; summed over bands."""
    ours, theirs = haar3d(x), haar3d(y)
    if x.shape[1] > 1:
        ok = ok[:, x.shape[1] % 2 :]
        ok = jnp.all(ok.reshape(ok.shape[0], -1, 2), axis=-1)
    return sum(mean_over(jnp.abs(ours[band] - theirs[band]), ok) for band in ours if "h" in band)


def gradient_loss(x, y, ok):
    """L1 between forward differences along columns, rows and (for more than one frame) time; summed."""
    error = x - y
    total = sum(mean_over(jnp.abs(jnp.diff(error, axis=axis)), ok) for axis in (2, 3))
    if x.shape[1] > 1:
        total = total + mean_over(jnp.abs(jnp.diff(error, axis=1)), ok[:, 1:] & ok[:, :-1])
    return total


def reconstruction_loss(
    x: Float[Array, "B T H W C"],
    recon: Float[Array, "B T H W C"],
    posterior: Any,
    *,
    l1: float = 1.0,
    l2: float = 0.0,
    haar: float = 0.1,
    gradient: float = 0.1,
    structure: float = 0.1,
    kl: float = 1e-6,
    perceptual: Callable[[Array, Array], Array] | None = None,
    perceptual_weight: float = 1.0,
    ok: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of all terms, and every term by name (unweighted), with the PSNR.

    ``recon`` is not clipped; ``posterior`` has ``mean`` and ``logvar`` [B, F, h, w, z]; frames where ``ok`` [B, T] is
    False do not count. ``l2`` (mean square) makes small objects on plain ground count early, which L1 passes over.
    ``structure`` weighs 1 - MS-SSIM. ``perceptual(x, recon)`` takes frames [N, H, W, C] in [-1, 1]
    and gives a distance for each, [N]. A weight of 0 leaves a term out of the computation.
    """
    x, recon = x.astype(jnp.float32), recon.astype(jnp.float32)
    ok = jnp.ones(x.shape[:2], bool) if ok is None else ok
    terms: dict[str, tuple[float, Any]] = {"l1": (l1, mean_over(jnp.abs(x - recon), ok))}
    if l2:
        terms["l2"] = l2, mean_over(jnp.square(x - recon), ok)
    if haar:
        terms["haar"] = haar, haar_loss(x, recon, ok)
    if gradient:
        terms["gradient"] = gradient, gradient_loss(x, recon, ok)
    if structure:
        terms["structure"] = structure, mean_over(1.0 - ms_ssim(x, recon), ok)
    if perceptual is not None and perceptual_weight:
        flat = perceptual(x.reshape(-1, *x.shape[2:]), recon.reshape(-1, *x.shape[2:]))
        terms["perceptual"] = perceptual_weight, mean_over(flat.reshape(x.shape[:2]), ok)
    if posterior is not None:
        divergence = kl_to_unit(posterior.mean, posterior.logvar)
        terms["kl"] = kl, mean_over(divergence, latent_ok(ok, divergence.shape[1]))
    total = sum((weight * value for weight, value in terms.values()), jnp.zeros(()))
    metrics = {name: value for name, (_, value) in terms.items()}
    return total, metrics | {"psnr": mean_over(psnr(x, jnp.clip(recon, -1.0, 1.0)), ok)}
