# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.diffusion.matching import matching_gradient, matching_loss, pseudo_huber

X, REAL, FAKE = (jnp.asarray(v, jnp.float32).reshape(1, 3, 1) for v in ([1, 2, 3], [0, 1, 1], [1, 1, 3]))
ALL = jnp.ones((1, 3), bool)


def test_distribution_matching_by_hand():
    assert np.allclose(matching_gradient(X, REAL, FAKE, ALL)[0, :, 0], [0.75, 0, 1.5])
    loss, slope = jax.value_and_grad(matching_loss)(X, REAL, FAKE, ALL)
    assert np.isclose(loss, 0.46875) and np.allclose(slope[0, :, 0], [0.25, 0, 0.5])
    loss, slope = jax.value_and_grad(matching_loss)(X, FAKE, FAKE, ALL)
    assert loss == 0 and np.all(slope == 0)
    assert np.all(jax.grad(matching_loss, 1)(X, REAL, FAKE, ALL) == 0)  # nothing flows into the guesses


def test_frames_that_do_not_count_change_nothing():
    more = lambda x, value: jnp.concatenate([x, jnp.full((1, 1, 1), value)], 1)
    scored = jnp.asarray([[True, True, True, False]])
    for value in (100.0, jnp.nan):
        wide = [more(x, value) for x in (X, REAL, 2 * FAKE)]
        assert np.isclose(matching_loss(*wide, scored), matching_loss(X, REAL, 2 * FAKE, ALL))
        slope = jax.grad(matching_loss)(*wide, scored)
        assert slope[0, 3, 0] == 0 and np.all(np.isfinite(slope))


def test_pseudo_huber_is_a_parabola_and_a_distance():
    d = jnp.asarray([0.0, 1e-3, 50.0])
    assert np.allclose(pseudo_huber(d, 0.1), [0, 1e-6 / 0.2, 50 - 0.1], rtol=1e-2, atol=1e-7)
