# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.common_noise import CommonNoise
from jaxvid.diffusion.process import Process
from jaxvid.sampling.noise import frame_noise, seed_keys
from jaxvid.types import InputError

SHAPE = (24, 24, 8)


@pytest.mark.parametrize("share,every", [(0.5, 6), (0.8, 16)])
def test_correlation_of_frames_is_the_share_times_the_cosine_of_the_way_between_them(share, every):
    x = frame_noise(seed_keys([3]), 5, 3 * every, SHAPE, common=CommonNoise(share, every))
    x = np.asarray(x[0]).reshape(3 * every, -1).astype(np.float64)
    numbers = 5 + np.arange(3 * every)
    # a frame's common part is (cos, sin) of its angle over the draws before and after it
    over = np.zeros((len(numbers), numbers.max() // every + 2))
    for row, n in enumerate(numbers):
        angle = (n % every) * np.pi / 2 / every
        over[row, n // every], over[row, n // every + 1] = np.cos(angle), np.sin(angle)
    want = share * over @ over.T + (1 - share) * np.eye(len(numbers))
    got = x @ x.T / x.shape[1]
    assert np.abs(got - want).max() < 6 / x.shape[1] ** 0.5
    assert want[0, 1] > 0.9 * share and abs(want[0, -1]) < 1e-9


def test_pieces_are_the_whole_bit_for_bit():
    draw = jax.jit(frame_noise, static_argnums=(2, 3, 4, 5))
    keys, common = seed_keys([7, 8]), CommonNoise(0.5, 4)
    whole = np.asarray(draw(keys, 0, 11, (3, 5), 0, common))
    pieces = [draw(keys, 0, 4, (3, 5), 0, common), draw(keys, 4, 7, (3, 5), 0, common)]
    assert np.array_equal(whole, np.concatenate(pieces, 1))
    assert np.array_equal(whole[1:], draw(keys[1:], 0, 11, (3, 5), 0, common))
    assert not np.array_equal(whole, draw(keys, 0, 11, (3, 5), 1, common))


def test_no_share_is_the_noise_of_each_frame():
    keys = seed_keys([1])
    own = frame_noise(keys, 0, 5, SHAPE)
    assert np.array_equal(own, frame_noise(keys, 0, 5, SHAPE, common=CommonNoise(0.0)))


def test_training_clips_are_cut_anywhere_and_correlate_as_in_sampling():
    process = Process(common=CommonNoise(0.5, 16))
    x = np.asarray(process.noise(jax.random.key(0), jnp.zeros((64, 12, 8, 8, 4)))).reshape(64, 12, -1)
    assert abs(x.std() - 1) < 0.01
    near, far = (x[:, 0] * x[:, 1]).mean(1), (x[:, 0] * x[:, 11]).mean(1)
    assert abs(near.mean() - 0.5 * np.cos(np.pi / 32)) < 0.02
    assert 0.15 < far.mean() < 0.35
    assert abs((x[0] * x[1]).mean()) < 0.1  # nothing in common between clips
    plain = Process().noise(jax.random.key(0), jnp.zeros((64, 12, 8, 8, 4)))
    assert abs(float((plain[:, 0] * plain[:, 1]).mean())) < 0.02


@pytest.mark.parametrize("bad", [{"share": 1.0}, {"share": -0.1}, {"share": float("nan")}, {"every": 0}])
def test_it_refuses(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        CommonNoise(**bad)
