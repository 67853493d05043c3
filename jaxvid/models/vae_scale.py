# SPDX-License-Identifier: Apache-2.0
"""How large each channel of the latents should be for diffusion: as large as what it does to the pixels.

Latents whose channels all have unit variance count the finest detail as much as colour and place. A diffusion model then
spends itself on detail that nothing predicts, and noise hides all channels at once instead of the fine ones first.

Ref: Skorokhodov et al., "Improving the Diffusability of Autoencoders" (arXiv 2502.14831), on the flat spectra of latents.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.types import InputError, Params

PROBE = 0.2  # of a channel's spread: small enough for the decoder to be nearly linear


def channel_effects(
    model: nn.Module, variables: Params, latents: Float[Array, "B F h w z"], key: Array
) -> Float[np.ndarray, "z"]:
    """By how much pixels (in [-1, 1], root mean square) move per unit of noise in each channel of normalised latents."""

    @jax.jit
    def moved(latents, channel, key):
        noise = PROBE * jax.random.normal(key, latents.shape[:-1])
        probed = (
            latents + noise[..., None] * (jnp.arange(latents.shape[-1]) == channel)[None, None, None, None]
        )
        one, other = (model.apply(variables, z, method="from_latents") for z in (latents, probed))
        return jnp.sqrt(jnp.mean(jnp.square(one - other))) / PROBE

    keys = jax.random.split(key, latents.shape[-1])
    return np.array([float(moved(latents, c, k)) for c, k in enumerate(keys)], np.float32)


def weigh(stats: Params, effects: Float[np.ndarray, "z"], most: float) -> Params:
    """Statistics under which a channel's spread follows its effect; the two strongest channels get ``most``.

    The strongest one alone, which is the brightness of the ground, would dwarf all others. Raises InputError for a
    ``most`` that is not positive, or effects that are not all positive and finite.
    """
    if not most > 0:
        raise InputError(f"most={most} is not positive; 1.5 is what the shapes model uses")
    effects = np.asarray(effects, np.float32)
    if not (np.isfinite(effects).all() and (effects > 0).all()):
        raise InputError("some channels of the latents do nothing to the pixels; train the autoencoder first")
    second = np.sort(effects)[-2] if len(effects) > 1 else effects[0]
    scale = np.minimum(most * effects / second, most)
    return {**stats, "std": (np.asarray(stats["std"]) / scale).astype(np.float32)}
