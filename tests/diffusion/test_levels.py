# SPDX-License-Identifier: Apache-2.0
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion import given, levels
from jaxvid.types import InputError

LOGIT = levels.Density("logit_normal", mean=0.3, std=1.2, shift=3.0)
SAMPLERS = [
    levels.OnePerClip(),
    levels.OnePerClip(LOGIT),
    levels.Vectorised(0.3),
    levels.Independent(LOGIT),
    levels.FoPP(50, LOGIT),
    levels.fopp,
    levels.Blocks(levels.Independent(), 3),
    levels.Blocks(levels.FoPP(20), 3),
    levels.Mix((levels.OnePerClip(), levels.FoPP(30)), (1, 3)),
    levels.Scored(last=3),
    levels.FusedSNR(),
]
GIVEN = [
    given.Nothing(),
    given.First(2),
    given.Prefix(),
    given.Prefix(lengths=(1, 3)),
    given.Ends(),
    given.Subset(0.9),
    given.Last(3),
    given.Every(2),
    given.One(),
    given.Chance(0.9),
    given.PastFuture(),
    levels.Mix((given.Nothing(), given.First(), given.Ends())),
]


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def draw(sampler, key, batch, frames):
    return sampler(key, batch, frames)


indices = jax.jit(levels.fopp_indices, static_argnums=(1, 2, 3))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: getattr(s, "__name__", str(s)))
def test_shapes_and_ranges(sampler, key):
    for batch, frames in [(1, 1), (4, 7)]:
        t, weight = draw(sampler, key, batch, frames)
        assert t.shape == weight.shape == (batch, frames)
        assert t.dtype == weight.dtype == jnp.float32
        assert np.all((t >= 0) & (t <= 1)) and np.all(weight >= 0) and np.all(np.isfinite(weight))
    assert hash(sampler) == hash(sampler)  # may be a static argument of jit


@pytest.mark.parametrize("sampler", GIVEN, ids=str)
def test_given_masks_leave_something_to_do(sampler, key):
    for frames in (2, 7):
        mask = draw(sampler, key, 64, frames)
        assert mask.shape == (64, frames) and mask.dtype == bool
        assert not np.any(np.all(mask, 1))
    hash(sampler)


def test_given_masks_are_what_they_say(key):
    assert np.array_equal(given.First(2)(key, 1, 5)[0], [1, 1, 0, 0, 0])
    assert np.array_equal(given.Ends()(key, 1, 5)[0], [1, 0, 0, 0, 1])
    lengths = np.sum(np.asarray(draw(given.Prefix(lengths=(1, 9, 17, 25)), key, 300, 33)), 1)
    assert set(lengths) == {1, 9, 17, 25}
    prefix = np.asarray(draw(given.Prefix(shortest=0, share=0.5), key, 300, 8))
    assert np.all(np.diff(prefix.astype(int), axis=1) <= 0) and set(prefix.sum(1)) == {0, 1, 2, 3, 4}


def test_density_is_monotone_with_the_right_median():
    u = jnp.linspace(0, 1, 101)
    for density in (levels.UNIFORM, LOGIT):
        t = np.asarray(density(u))
        assert np.all(np.diff(t) >= 0) and t[0] >= 0 and t[-1] <= 1
    middle = 1 / (1 + math.exp(-0.3))
    assert np.isclose(LOGIT(jnp.float32(0.5)), 3 * middle / (1 + 2 * middle), atol=1e-5)


def test_vectorised_flips_a_coin_for_each_clip(key):
    t, _ = draw(levels.Vectorised(0.2), key, 4000, 3)
    assert abs(np.mean(np.ptp(np.asarray(t), 1) > 0) - 0.2) < 0.02
    assert np.all(np.ptp(np.asarray(draw(levels.Vectorised(0.0), key, 50, 3)[0]), 1) == 0)
    assert np.all(np.ptp(np.asarray(draw(levels.Vectorised(1.0), key, 50, 3)[0]), 1) > 0)


def fopp_table(steps, frames):
    """Probabilities of every non-decreasing sequence, by brute force from the definition."""
    sequences = list(itertools.combinations_with_replacement(range(steps), frames))
    chance = dict.fromkeys(sequences, 0.0)
    for pivot in range(frames):
        for level in range(steps):
            through = [s for s in sequences if s[pivot] == level]
            for s in through:
                chance[s] += 1 / (frames * steps * len(through))
    return chance


def test_fopp_against_the_enumerated_law(key):
    chance = fopp_table(4, 3)
    assert len(chance) == 20 and np.isclose(sum(chance.values()), 1)
    first = [sum(p for s, p in chance.items() if s[0] == a) for a in range(4)]
    assert np.allclose(first, [0.4708, 0.2542, 0.1625, 0.1125], atol=5e-5)
    margins = [[sum(p for s, p in chance.items() if s[f] == a) for a in range(4)] for f in range(3)]
    assert np.allclose(margins[1], 0.25) and np.allclose(margins[2], first[::-1])
    assert np.allclose(np.mean(margins, 0), [0.2778, 0.2222, 0.2222, 0.2778], atol=5e-5)
    n = 20_000
    drawn = np.asarray(indices(key, n, 3, 4))
    assert np.all(np.diff(drawn, axis=1) >= 0)
    seen = dict.fromkeys(chance, 0)
    for row in map(tuple, drawn.tolist()):
        seen[row] += 1
    chi2 = sum((seen[s] - n * p) ** 2 / (n * p) for s, p in chance.items())
    assert chi2 < 43.8  # 99.9 % point of chi-square with 19 degrees of freedom


def test_fopp_counts_sequences_without_overflow():
    """How many go on to a level, and from it: printed tables, brute force, and sizes beyond float32."""
    ending = np.exp(levels.fopp_log_counts(2, 4)).T  # [level, frame]
    assert np.allclose(ending, [[1, 1, 1], [1, 2, 3], [1, 3, 6], [1, 4, 10]], rtol=1e-5)
    going_on = ending[::-1, ::-1]
    assert np.allclose(going_on, [[10, 4, 1], [6, 3, 1], [3, 2, 1], [1, 1, 1]], rtol=1e-5)
    sequences = list(itertools.combinations_with_replacement(range(4), 3))
    for frame, level in np.ndindex(3, 4):
        through = sum(s[frame] == level for s in sequences)
        assert np.isclose(ending[level, frame] * going_on[level, frame], through, rtol=1e-5)
    for frames, steps, digits in (
        (16, 1000, 34.73),
        (25, 1000, 49.94),
    ):  # log10 C(steps + frames - 1, frames)
        found = levels.fopp_log_counts(frames, steps)[frames, steps - 1] / np.log(10)
        assert abs(float(found) - digits) < 0.01
    assert 49.94 > np.log10(np.finfo(np.float32).max)


def test_fopp_marginals_of_a_longer_clip(key):
    chance = fopp_table(5, 5)
    drawn = np.asarray(indices(key, 20_000, 5, 5))
    for frame in range(5):
        want = [sum(p for s, p in chance.items() if s[frame] == a) for a in range(5)]
        got = np.bincount(drawn[:, frame], minlength=5) / len(drawn)
        assert np.allclose(got, want, atol=0.015)


def test_fopp_does_not_overflow_at_64_frames(key):
    t, _ = jax.jit(levels.fopp, static_argnums=(1, 2))(key, 256, 64)
    t = np.asarray(t)
    assert np.all(np.isfinite(t)) and np.all(np.diff(t, axis=1) >= 0)
    assert t.min() < 0.05 and t.max() > 0.95
    assert abs(t.mean() - 0.5) < 0.05  # the law is its own mirror image
    assert len(np.unique(t[:, 32])) > 200


def test_blocks_share_levels(key):
    t = np.asarray(draw(levels.Blocks(levels.FoPP(), 5), key, 16, 25)[0]).reshape(16, 5, 5)
    assert np.all(t == t[..., :1]) and np.all(np.diff(t[..., 0], axis=1) >= 0)


def test_mix_draws_by_weight(key):
    t, _ = draw(levels.Mix((levels.OnePerClip(), levels.Independent()), (3, 1)), key, 4000, 2)
    assert abs(np.mean(np.ptp(np.asarray(t), 1) > 0) - 0.25) < 0.02


@pytest.mark.parametrize(
    "make",
    [
        lambda: levels.Density("gamma"),
        lambda: levels.Density(std=0.0),
        lambda: levels.Vectorised(1.5),
        lambda: levels.FoPP(0),
        lambda: levels.Blocks(block=0),
        lambda: levels.Mix((levels.FoPP(),), (1, 2)),
        lambda: levels.Mix(()),
        lambda: given.Subset(1.0),
        lambda: given.Prefix(lengths=()),
    ],
)
def test_bad_settings_are_named(make):
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)


def test_fused_weights_by_hand():
    """Ratios 4, 1, 1/4 at clip 5 and decay 0.96, and a first frame that is cleaner than what counts."""
    ratio = jnp.array([[4.0, 1.0, 0.25], [10.0, 1.0, 0.25]])
    own = np.array([[0.8, 0.8144, 0.757712], [1.0, 0.968, 0.93282]])
    np.testing.assert_allclose(levels.fused_weights(ratio, "x0") / 5, own, atol=1e-5)
    np.testing.assert_allclose(levels.fused_weights(ratio, "v")[0], [0.8, 0.80284, 0.79117], atol=1e-4)
    np.testing.assert_allclose(levels.fused_weights(ratio, "eps"), [[1, 1, 1], [0.5, 1, 1]], atol=1e-5)
    flow = own[0] * 5 / (np.sqrt(own[0] * 5) + 1) ** 2  # below the clip R is Q
    np.testing.assert_allclose(levels.fused_weights(ratio, "flow")[0], flow, atol=1e-4)


def test_only_the_last_frames_are_scored(key):
    t, weight = draw(levels.Scored(levels.FoPP(10), 2), key, 3, 5)
    assert weight.tolist() == [[0, 0, 0, 1, 1]] * 3
    np.testing.assert_array_equal(t, draw(levels.FoPP(10), key, 3, 5)[0])


def test_masks_of_completion(key):
    assert draw(given.Last(2), key, 1, 5).tolist() == [[False] * 3 + [True] * 2]
    assert draw(given.Every(2), key, 1, 5).tolist() == [[True, False] * 2 + [True]]
    one = np.asarray(draw(given.One(), key, 4000, 5))
    assert np.all(one.sum(1) == 1) and np.allclose(one.mean(0), 0.2, atol=0.03)
    # VDT's six tasks in time, evenly: predict, backward, interpolate, nothing, one frame, some frames
    tasks = (given.First(3), given.Last(3), given.Every(4), given.Nothing(), given.One(), given.Chance(0.2))
    mixed = np.asarray(draw(levels.Mix(tasks), key, 6000, 8))
    forward, backward, nothing = (
        np.all(mixed == np.asarray(draw(task, key, 1, 8)), 1).mean()
        for task in (tasks[0], tasks[1], tasks[3])
    )
    assert abs(forward - 1 / 6) < 0.02 and abs(backward - 1 / 6) < 0.02
    assert abs(nothing - (1 + 0.8**8) / 6) < 0.03  # and when by chance no frame is drawn
    some = np.asarray(draw(given.Chance(0.1), key, 4000, 8))
    assert abs(some.mean() - 0.1) < 0.01
    both = np.asarray(draw(given.PastFuture(2, 1), key, 4000, 6))
    kinds = both[:, [0, 5]] @ [2, 1]
    assert np.allclose(np.bincount(kinds, minlength=4) / 4000, 0.25, atol=0.03)  # MCVD's four tasks
    assert not both[:, 2:5].any() and np.array_equal(both[:, 0], both[:, 1])
    for wrong in (lambda: given.Every(1), lambda: given.Chance(1.0), lambda: given.PastFuture(-1)):
        with pytest.raises(InputError):
            wrong()
