# SPDX-License-Identifier: Apache-2.0
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.models.vae_scale import channel_effects, weigh
from jaxvid.types import InputError


class Gains(nn.Module):
    """A decoder whose pixels are its channels times known gains."""

    def from_latents(self, z):
        return z * jnp.array([4.0, 1.0, 0.25])[None, None, None, None]

    @nn.compact
    def __call__(self, z):
        return self.from_latents(z)


def test_effects_are_the_gains_of_a_linear_decoder():
    z = jax.random.normal(jax.random.key(0), (2, 3, 16, 16, 3))
    effects = channel_effects(Gains(), {}, z, jax.random.key(1))
    np.testing.assert_allclose(effects * np.sqrt(3), [4.0, 1.0, 0.25], rtol=0.1)


def test_spreads_follow_effects_below_the_second_strongest():
    stats = {"mean": np.zeros(3, np.float32), "std": np.array([2.0, 3.0, 5.0], np.float32)}
    new = weigh(stats, np.array([4.0, 1.0, 0.25]), most=1.5)
    spread = stats["std"] / new["std"]  # of what had unit variance
    np.testing.assert_allclose(spread, [1.5, 1.5, 0.375], rtol=1e-6)
    np.testing.assert_array_equal(new["mean"], stats["mean"])


@pytest.mark.parametrize("effects, most", [([1.0, 0.0], 1.5), ([1.0, np.nan], 1.5), ([1.0, 2.0], 0.0)])
def test_nothing_is_weighed_by_nonsense(effects, most):
    with pytest.raises(InputError):
        weigh({"mean": np.zeros(2), "std": np.ones(2)}, np.array(effects), most)
