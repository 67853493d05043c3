# SPDX-License-Identifier: Apache-2.0
"""Reconstruction losses: zero for a perfect copy, masked frames do not count, every term is what its name says."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.training.losses import kl_to_unit, latent_ok, reconstruction_loss


def clips(frames=5, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    x = jnp.tanh(jax.random.normal(keys[0], (2, frames, 16, 12, 3)))
    return x, x + 0.1 * jax.random.normal(keys[1], x.shape)


def unit(latents=2):
    return SimpleNamespace(mean=jnp.zeros((2, latents, 2, 2, 3)), logvar=jnp.zeros((2, latents, 2, 2, 3)))


def test_a_perfect_copy_of_unit_latents_costs_nothing():
    x, _ = clips()
    total, metrics = reconstruction_loss(x, x, unit(), l2=1.0, kl=1.0)
    np.testing.assert_allclose(total, 0.0, atol=1e-5)
    assert {"l1", "l2", "haar", "gradient", "structure", "kl", "psnr"} == set(metrics)
    assert metrics["psnr"] == 100


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_masked_frames_do_not_count(frames):
    x, y = clips(frames)
    ok = jnp.ones((2, frames), bool).at[1, -1].set(False)
    spoiled = y.at[1, -1].set(7.0)
    posterior = unit(1 if frames == 1 else frames - 1 if frames == 4 else 2)
    if frames == 4:
        posterior = unit(4)  # one latent a frame
    losses = [reconstruction_loss(x, each, posterior, l2=1.0, ok=ok) for each in (y, spoiled)]
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-6)
    for name, value in losses[0][1].items():
        np.testing.assert_allclose(value, losses[1][1][name], rtol=1e-6, err_msg=name)
    everything, _ = reconstruction_loss(x, spoiled, posterior, l2=1.0)
    assert everything > losses[0][0] + 0.1
    nothing, _ = reconstruction_loss(x, y, posterior, ok=jnp.zeros((2, frames), bool))
    np.testing.assert_allclose(nothing, 0.0)


def test_latent_frames_follow_their_groups():
    ok = jnp.array([[True] * 5 + [False] * 4, [True] * 6 + [False] * 3])
    np.testing.assert_array_equal(latent_ok(ok, 3), [[True, True, False], [True, True, True]])
    np.testing.assert_array_equal(latent_ok(ok[:, :1], 1), [[True], [True]])


def test_terms_are_their_formulas():
    x, y = clips()
    _, metrics = reconstruction_loss(x, y, unit(), l2=1.0)
    error = np.asarray(x - y, np.float64)
    np.testing.assert_allclose(metrics["l1"], np.abs(error).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["l2"], (error**2).mean(), rtol=1e-5)
    gradient = sum(np.abs(np.diff(error, axis=axis)).mean() for axis in (1, 2, 3))
    np.testing.assert_allclose(metrics["gradient"], gradient, rtol=1e-5)
    mean, logvar = 0.7, -0.4
    samples = mean + np.exp(logvar / 2) * np.random.default_rng(0).standard_normal(400_000)
    density = -0.5 * logvar - (samples - mean) ** 2 / (2 * np.exp(logvar)) + samples**2 / 2
    np.testing.assert_allclose(kl_to_unit(mean, logvar), density.mean(), atol=5e-3)


def test_the_perceptual_slot():
    x, y = clips()
    seen = []

    def distance(a, b):
        seen.append((a.shape, b.shape))
        return jnp.full(a.shape[0], 2.0)

    total, metrics = reconstruction_loss(
        x,
        y,
        unit(),
        l1=0.0,
        haar=0.0,
        gradient=0.0,
        structure=0.0,
        kl=0.0,
        perceptual=distance,
        perceptual_weight=3.0,
    )
    np.testing.assert_allclose(total, 6.0, rtol=1e-6)
    assert seen == [((10, 16, 12, 3), (10, 16, 12, 3))] and metrics["perceptual"] == 2


def test_gradients_are_finite_for_plain_clips():
    plain = jnp.full((1, 5, 16, 12, 3), -1.0)
    gradient = jax.grad(lambda y: reconstruction_loss(plain, y, None, l2=1.0)[0])(jnp.zeros_like(plain))
    assert np.isfinite(gradient).all() and jnp.any(gradient != 0)
