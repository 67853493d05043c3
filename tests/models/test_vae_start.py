# SPDX-License-Identifier: Apache-2.0
"""The linear start codes images exactly as their principal components do, before any training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.models.vae_start import components, linear_start
from jaxvid.models.video_vae import VideoVAE
from jaxvid.types import InputError

FIELDS = dict(
    base=24, mult=(1, 2, 1), res=1, z=6, temporal=(True, True), patch=2, shuffle=True, norm_floor=1e3
)


def pictures(count):
    """Smooth pictures whose patches live in few dimensions, in [-1, 1]."""
    keys = jax.random.split(jax.random.key(0))
    grid = jnp.linspace(0, 3, 16)
    waves = jnp.stack([jnp.sin(grid + phase) for phase in (0.0, 1.0, 2.5)])
    weights = 0.3 * jax.random.normal(keys[0], (count, 3, 3, 3))
    return jnp.clip(jnp.einsum("ih,jw,nijc->nhwc", waves, waves, weights), -1, 1)


def test_it_is_the_best_linear_codec():
    model, images = VideoVAE(**FIELDS), pictures(24)
    params = model.init(jax.random.key(1), jnp.zeros((1, 1, 16, 16, 3)))["params"]
    params = jax.jit(lambda p, x: linear_start(model, p, x))(params, images)
    x = images[:4, None]

    @jax.jit
    def trip(params):
        posterior = model.apply({"params": params}, x, method="encode")
        return posterior.mean, model.apply({"params": params}, posterior.mean, method="decode")

    mean, frames = trip(params)
    vectors, spread = components(images, 8, 6)
    patches = x[:, 0].reshape(4, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(4, 2, 2, -1)
    latents = patches @ vectors
    np.testing.assert_allclose(mean[:, 0], latents / spread[None, None, None], atol=2e-3)
    want = (latents @ vectors.T).reshape(4, 2, 2, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(4, 16, 16, 3)
    np.testing.assert_allclose(frames[:, 0], jnp.clip(want, -1, 1), atol=2e-3)
    for leaf in jax.tree.leaves(
        jax.grad(lambda p: jnp.sum(model.apply({"params": p}, x)[0] ** 2))(params)["encoder"]["mid"][
            "resnets_0"
        ]["conv2"]
    ):
        assert jnp.any(leaf != 0)  # what is still can learn


def test_models_that_cannot_start_so_say_so():
    for change in ({"shuffle": False}, {"mult": (1, 1, 1)}, {"z": 16}):
        model = VideoVAE(**FIELDS | change)
        with pytest.raises(InputError, match="linear start needs"):
            linear_start(model, {}, pictures(2))
