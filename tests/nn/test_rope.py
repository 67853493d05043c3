# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.nn.rope import grid_positions, rotary_table, rotate


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_only_distances_matter(axis):
    """Adding a constant to all positions changes no product of queries and keys: a stream may count from anywhere."""
    with jax.enable_x64(True):
        q, k = jnp.asarray(np.random.default_rng(axis).normal(size=(2, 1, 24, 2, 16)))
        here = grid_positions(4, 3, 2)
        moved = here + 1000 * (np.arange(3) == axis)
        products = lambda at: jnp.einsum(
            "blhk,bmhk->bhlm", *(rotate(x, rotary_table(at, 16, dtype=np.float64)) for x in (q, k))
        )
        assert np.abs(products(here) - products(moved)).max() < 1e-11
        swapped = products(here[::-1])
        assert np.abs(products(here) - swapped).max() > 0.1
