# SPDX-License-Identifier: Apache-2.0
"""Picture measures: what equal pictures score, closed forms, and agreement with the definitions written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.ops.quality import SCALES, blur_matrix, haar3d, ms_ssim, psnr, ssim


def pair(shape=(2, 24, 20, 3), noise=0.2):
    keys = jax.random.split(jax.random.key(0))
    x = jnp.tanh(jax.random.normal(keys[0], shape))
    return x, jnp.clip(x + noise * jax.random.normal(keys[1], shape), -1, 1)


def test_equal_frames():
    x, _ = pair((2, 3, 48, 48, 3))
    for measure in (ssim, ms_ssim):
        assert measure(x, x).shape == (2, 3)
        np.testing.assert_allclose(measure(x, x), 1.0, atol=1e-5)
    np.testing.assert_allclose(psnr(x, x), 100.0)


def test_psnr_of_a_known_error():
    x = jnp.zeros((2, 4, 4, 3))
    np.testing.assert_allclose(psnr(x, x + 0.02), 40.0, atol=1e-4)
    assert psnr(x, x).shape == (2,)


def test_ssim_is_its_definition():
    x, y = pair()
    weights = blur_matrix(11)[:, 0].astype(np.float64)
    window = np.outer(weights, weights)
    total = []
    for i in range(24 - 10):
        for j in range(20 - 10):
            a, b = (np.asarray(v[0, i : i + 11, j : j + 11, 0], np.float64) for v in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            total.append(
                (2 * ma * mb + 4e-4) * (2 * cov + 3.6e-3) / ((ma**2 + mb**2 + 4e-4) * (va + vb + 3.6e-3))
            )
    np.testing.assert_allclose(ssim(x[:1, ..., :1], y[:1, ..., :1])[0], np.mean(total), atol=1e-5)
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-6)


def test_more_noise_scores_less():
    scores = [
        [float(m(*pair((1, 48, 48, 3), noise))[0]) for noise in (0.05, 0.2, 0.8)]
        for m in (psnr, ssim, ms_ssim)
    ]
    for row in scores:
        assert row[0] > row[1] > row[2]


def test_small_frames_use_one_scale():
    x, y = pair((1, 16, 16, 3))
    np.testing.assert_allclose(ms_ssim(x, y), ssim(x, y), atol=1e-5)  # weights renormalised to one
    x, y = pair((1, 5, 7, 3))
    assert np.isfinite(ssim(x, y)).all() and np.isfinite(ms_ssim(x, y)).all()
    assert abs(sum(SCALES) - 1) < 1e-3


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim])
def test_gradients_are_finite_even_between_opposites(measure):
    x, _ = pair((1, 32, 32, 3))
    for y in (x, -x, jnp.zeros_like(x)):
        for a, b in ((x, y), (jnp.zeros_like(x), y)):
            gradient = jax.grad(lambda b, a=a: jnp.sum(measure(a, b)))(b)
            assert np.isfinite(gradient).all()


def test_haar_keeps_energy_and_drops_the_first_of_odd():
    x = jax.random.normal(jax.random.key(1), (2, 5, 4, 6, 3))
    bands = haar3d(x)
    assert sorted(bands) == ["hhh", "hhl", "hlh", "hll", "lhh", "lhl", "llh", "lll"]
    assert all(band.shape == (2, 2, 2, 3, 3) for band in bands.values())
    energy = sum(jnp.sum(band**2) for band in bands.values())
    np.testing.assert_allclose(energy, jnp.sum(x[:, 1:] ** 2), rtol=1e-5)
    np.testing.assert_allclose(haar3d(x[:, 1:])["lhl"], bands["lhl"])


def test_haar_bands_see_their_axis():
    ramp = {axis: jnp.indices((4, 4, 4))[axis][None, ..., None] * 1.0 for axis in range(3)}
    for axis, name in enumerate(("hll", "lhl", "llh")):
        bands = haar3d(ramp[axis])
        np.testing.assert_allclose(bands[name], -np.sqrt(8) / 2, rtol=1e-5)
        for other in set(bands) - {name, "lll"}:
            np.testing.assert_allclose(bands[other], 0, atol=1e-6)


def test_haar_of_an_image_has_two_axes():
    x = jax.random.normal(jax.random.key(2), (1, 1, 4, 4, 2))
    bands = haar3d(x)
    assert sorted(bands) == ["hh", "hl", "lh", "ll"]
    np.testing.assert_allclose(sum(jnp.sum(b**2) for b in bands.values()), jnp.sum(x**2), rtol=1e-5)
