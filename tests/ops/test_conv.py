# SPDX-License-Identifier: Apache-2.0
"""Convolutions agree with XLA's own, and a sequence in pieces agrees with the whole."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.ops.conv import causal_conv1d, conv2d, conv3d


def plain(x, kernel, stride, padding):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=numbers)


@pytest.mark.parametrize("channels", [3, 80])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 2, 1)])
@pytest.mark.parametrize(
    "padding", [((2, 0), (1, 1), (1, 1)), ((0, 0), (0, 1), (0, 1)), ((1, 2), (0, 0), (2, 1))]
)
def test_conv3d_is_the_plain_one(channels, stride, padding):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 5, 6, 7, channels))
    kernel = jax.random.normal(keys[1], (3, 3, 3, channels, 4)) / np.sqrt(27 * channels)
    np.testing.assert_allclose(
        conv3d(x, kernel, stride=stride, padding=padding), plain(x, kernel, stride, padding), atol=2e-5
    )


@pytest.mark.parametrize("dtype,atol", [(jnp.bfloat16, 0.05), (jnp.float32, 2e-5)])
@pytest.mark.parametrize("size", [(1, 3, 3), (3, 1, 1), (2, 3, 1)])
def test_conv3d_keeps_the_dtype_for_any_kernel(dtype, atol, size):
    keys = jax.random.split(jax.random.key(1))
    x = jax.random.normal(keys[0], (1, 4, 5, 5, 6)).astype(dtype)
    kernel = (jax.random.normal(keys[1], (*size, 6, 3)) / 6).astype(jnp.float32)
    y = conv3d(x, kernel, padding=((1, 0), (1, 1), (0, 0)))
    want = plain(x.astype(jnp.float32), kernel, (1, 1, 1), ((1, 0), (1, 1), (0, 0)))
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), want, atol=atol)


def test_gradients_are_those_of_the_plain_one():
    keys = jax.random.split(jax.random.key(2))
    pads = ((2, 0), (1, 1), (1, 1))
    for channels in (4, 72):
        x = jax.random.normal(keys[0], (1, 3, 4, 4, channels))
        kernel = jax.random.normal(keys[1], (3, 3, 3, channels, 2)) / channels
        ours = jax.grad(lambda x, k: jnp.sum(conv3d(x, k, padding=pads) ** 2), (0, 1))(x, kernel)
        want = jax.grad(lambda x, k: jnp.sum(plain(x, k, (1, 1, 1), pads) ** 2), (0, 1))(x, kernel)
        for a, b in zip(ours, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_too_short_a_clip_gives_no_frames():
    for channels in (2, 80):
        y = conv3d(jnp.ones((1, 1, 4, 4, channels)), jnp.ones((3, 1, 1, channels, 5)), stride=(2, 1, 1))
        assert y.shape == (1, 0, 4, 4, 5)


def test_conv2d_sees_one_frame_at_a_time():
    keys = jax.random.split(jax.random.key(3))
    x = jax.random.normal(keys[0], (2, 3, 6, 6, 2))
    kernel = jax.random.normal(keys[1], (3, 3, 2, 4))
    y = conv2d(x, kernel, stride=(2, 2), padding=((0, 1), (0, 1)))
    np.testing.assert_allclose(y, plain(x, kernel[None], (1, 2, 2), ((0, 0), (0, 1), (0, 1))), atol=1e-5)


def sequence(taps=4):
    keys = jax.random.split(jax.random.key(4), 3)
    x = jax.random.normal(keys[0], (2, 7, 3))
    return x, jax.random.normal(keys[1], (taps, 3)), jax.random.normal(keys[2], (3,))


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_causal_conv1d_is_its_formula(taps):
    x, kernel, bias = sequence(taps)
    y, memory = causal_conv1d(x, kernel, bias)
    for place, channel in itertools.product(range(7), range(3)):
        want = bias[channel] + sum(
            kernel[k, channel] * x[:, place - taps + 1 + k, channel]
            for k in range(taps)
            if place - taps + 1 + k >= 0
        )
        np.testing.assert_allclose(y[:, place, channel], want, atol=1e-5)
    np.testing.assert_array_equal(memory, x[:, 7 - taps + 1 :])


@pytest.mark.parametrize("pieces", [(1, 6), (3, 4), (2, 2, 3), (1,) * 7])
def test_causal_conv1d_in_pieces_is_the_whole(pieces):
    x, kernel, bias = sequence()
    whole, end = causal_conv1d(x, kernel, bias)
    memory, parts = jnp.zeros((2, 3, 3)), []
    for part in jnp.split(x, np.cumsum(pieces)[:-1], axis=1):
        part, memory = causal_conv1d(part, kernel, bias, memory)
        parts.append(part)
    np.testing.assert_array_equal(jnp.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(memory, end)
