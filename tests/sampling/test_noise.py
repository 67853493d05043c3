# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.sampling import noise
from jaxvid.sampling.noise import STEP, fold, frame_noise, freenoise_indices, seed_keys
from jaxvid.types import InputError

SHAPE = (3, 5, 7)  # odd, so that vector and remainder lanes of the compiled loop both occur
draw = jax.jit(frame_noise, static_argnums=(2, 3, 4))


def test_bit_equal_alone_in_a_batch_and_in_chunks():
    keys = seed_keys([7, 8, 9])
    whole = np.asarray(draw(keys, 0, 11, SHAPE))
    assert whole.shape == (3, 11, *SHAPE) and whole.dtype == np.float32
    alone = np.concatenate([draw(keys[i : i + 1], 0, 11, SHAPE) for i in range(3)])
    assert np.array_equal(whole, alone)
    pieces = [draw(keys, 0, 4, SHAPE), draw(keys, 4, 7, SHAPE)]
    assert np.array_equal(whole, np.concatenate(pieces, 1))
    single = [draw(keys[1:2], i, 1, SHAPE) for i in range(11)]  # one compilation: the place is traced
    assert np.array_equal(whole[1:2], np.concatenate(single, 1))


def test_noise_is_standard_and_distinct():
    keys = seed_keys([1, 2])
    x = np.asarray(draw(keys, 5, 40, (16, 16, 4)))
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert not np.array_equal(x[0], x[1]) and not np.array_equal(x[0, 0], x[0, 1])
    assert not np.array_equal(x, draw(keys, 5, 40, (16, 16, 4), STEP))
    assert not np.array_equal(x[:, :1], draw(fold(keys, 3), 5, 1, (16, 16, 4)))


def test_freenoise_groups_are_permutations():
    index = np.asarray(freenoise_indices(jax.random.key(0), 32, 16, 4))
    assert index.dtype == np.int32 and np.array_equal(index[:16], np.arange(16))
    for group in range(4):
        assert set(index[16 + 4 * group : 20 + 4 * group]) == set(range(4 * group, 4 * group + 4))
    for start in range(17):  # what a window cuts off a group may come again in the group that it reaches into
        cut = start % 4
        assert len(set(index[start : start + 16])) >= 16 - min(cut, 4 - cut)
    assert not np.array_equal(index[16:], np.arange(16))


@pytest.mark.parametrize(
    "frames,window,stride", [(16, 16, 4), (10, 16, 4), (61, 16, 5), (9, 3, 3), (7, 4, 3)]
)
def test_freenoise_covers_every_length(frames, window, stride):
    index = np.asarray(freenoise_indices(jax.random.key(1), frames, window, stride))
    assert index.shape == (frames,) and index.min() >= 0 and index.max() < window
    for start in range(
        0, frames - window, stride
    ):  # whatever the remainder, aligned windows hold each noise once
        assert len(set(index[start : start + window])) == window
    other = np.asarray(freenoise_indices(jax.random.key(2), frames, window, stride))
    assert frames <= window or stride == 1 or frames < 9 or jnp.any(index != other)


def test_freenoise_refuses_a_stride_wider_than_its_window():
    with pytest.raises(InputError):
        freenoise_indices(jax.random.key(0), 8, 4, 5)


def test_mixed_noise_keeps_unit_variance():
    keep, add = noise.mixed_noise(1.0, 0.0, 4.0), noise.mixed_noise(0.0, 1.0, 4.0)
    assert abs(keep - 0.970143) < 1e-6 and abs(add - 0.242536) < 1e-6 and abs(keep**2 + add**2 - 1) < 1e-12


def test_progressive_noise_correlates_with_its_neighbours():
    """Ca2-VDM: each frame's noise is mixed from that of the frame before; unit variance, and a / sqrt(1 + a^2)^distance."""
    fresh = np.asarray(draw(seed_keys([5]), 0, 4, (48, 48, 8)))[0]
    a, chain = 2.0, [fresh[0]]
    for new in fresh[1:]:
        chain.append(noise.mixed_noise(chain[-1], new, a))
    found = np.corrcoef(np.reshape(chain, (4, -1)))
    away = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    assert np.abs(found - (a / np.sqrt(1 + a * a)) ** away).max() < 0.03 and abs(np.std(chain) - 1) < 0.02


def test_the_low_pass_filter_and_its_blends():
    keep = noise.low_pass((16, 40, 64))
    assert keep[0, 0, 0] == 1 and np.all(keep <= 1)
    assert abs(float(noise.mixed_deviation(keep)) - 0.9515) < 5e-4
    corner = noise.low_pass((16, 4, 4), 0.25, 0.25)[8, 2, 2]
    assert abs(float(jnp.log(corner)) - np.log(3.8e-11)) < 0.02
    assert noise.low_pass((1, 4, 4))[0, 0, 0] == 1  # a single frame is all frequency 0
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 6, 4, 5, 2))
    keep = noise.low_pass((6, 4, 5))
    assert np.allclose(noise.spectral_blend(a, a, keep), a, atol=1e-6)
    assert np.allclose(noise.spectral_blend(a, b, jnp.ones_like(keep)), a, atol=1e-6)
    # the mean, frequency 0, is all of the first one's
    assert np.allclose(noise.spectral_blend(a, b, keep).mean((1, 2, 3)), a.mean((1, 2, 3)), atol=1e-6)


def test_the_coherent_tail_is_unit_noise_with_the_low_frequencies_of_its_neighbour():
    last = 0.8 * frame_noise(seed_keys([1, 2]), 0, 1, (48, 48, 4))
    fresh = frame_noise(seed_keys([3, 4]), 0, 1, (48, 48, 4))
    tail = np.asarray(noise.coherent_tail(last, fresh))
    assert tail.shape == last.shape and abs(tail.std() - 1) < 0.02
    scale = float(noise.mixed_deviation(noise.low_pass((1, 48, 48))))
    plain = noise.coherent_tail(last, fresh, renormalise=False)
    assert np.allclose(tail * scale, plain, atol=1e-5)
    unit = last / np.sqrt((np.asarray(last) ** 2).mean((1, 2, 3, 4), keepdims=True))
    assert np.allclose(plain.mean((2, 3)), unit.mean((2, 3)), atol=1e-5)


def test_numbered_noise_is_that_of_the_frames():
    keys = seed_keys([7])
    whole = np.asarray(draw(keys, 0, 6, SHAPE))
    assert np.array_equal(noise.numbered_noise(keys, jnp.array([4, 0, 4]), SHAPE), whole[:, [4, 0, 4]])
