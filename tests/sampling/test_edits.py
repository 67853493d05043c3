# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.sampling.edits import DiagonalBias, SpectralBlend, WindowFusion, centred, toeplitz
from jaxvid.sampling.windows import window_plan

GRID = (2, 2, 3)
Q, K, V = jax.random.normal(jax.random.key(0), (3, 12, 10, 2, 4))


def attend(q, k, v, mask=None):
    logits = jnp.einsum("nqhc,nkhc->nhqk", q, k) * q.shape[-1] ** -0.5
    logits = logits if mask is None else jnp.where(mask[None, None], logits, -1e30)
    return jnp.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(logits, -1), v)


PLAIN = np.asarray(attend(Q, K, V))


def test_window_fusion_is_the_weighted_mean_of_windows():
    out = WindowFusion(4, 3)(attend, Q, K, V, GRID)
    plan, by_hand = window_plan(10, 4, 3), 0
    for start, weight in zip(plan.start, plan.weight, strict=True):
        here = slice(start, start + 4)
        part = attend(Q[:, here], K[:, here], V[:, here])
        by_hand = by_hand + jnp.zeros(Q.shape).at[:, here].set(weight[None, here, None, None] * part)
    assert np.allclose(out, by_hand, atol=1e-6) and np.abs(out - PLAIN).max() > 0.1
    same = jnp.broadcast_to(V[:, :1], V.shape)  # an output that is the same on all frames stays what it is
    assert np.allclose(WindowFusion(4, 2)(attend, Q, K, same, GRID), same, atol=1e-6)


def test_the_window_of_freelong():
    keys = centred(128, 16).sum(1)
    assert keys[:8].tolist() == [16] * 8 and keys[-8:].tolist() == [16] * 8 and set(keys[8:-8]) == {17}
    assert np.all(np.diag(centred(20, 6)))


def test_spectral_blend_keeps_the_mean_of_far_attention():
    out = np.asarray(SpectralBlend(4)(attend, Q, K, V, GRID))
    near = np.asarray(attend(Q, K, V, jnp.asarray(centred(10, 4))))
    mean = lambda a: np.asarray(a).reshape(*GRID, 10, 8).mean((1, 2, 3))
    assert np.allclose(mean(out), mean(PLAIN), atol=1e-5)
    assert np.abs(out - PLAIN).max() > 1e-2 and np.abs(out - near).max() > 1e-2
    wide = SpectralBlend(4, 1e4, 1e4)(attend, Q, K, V, GRID)  # a filter that lets all through
    assert np.allclose(wide, PLAIN, atol=1e-5)


def test_the_diagonal_bias():
    assert np.allclose(toeplitz(4, 1.0)[0], [1, 0.60653, 0.13534, 0.01111], atol=1e-5)
    assert np.allclose(DiagonalBias(2.0, 0.0)(attend, Q, K, V, GRID), PLAIN, atol=1e-6)
    logits = np.einsum("nqhc,nkhc->nhqk", Q, K) / 2
    raised = logits + 0.7 * logits.max(-1, keepdims=True) * toeplitz(10, 2.0)
    wanted = np.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(raised, -1), V)
    assert np.allclose(DiagonalBias(2.0, 0.7)(attend, Q, K, V, GRID), wanted, atol=1e-5)


@pytest.mark.parametrize("edit", [WindowFusion(10, 4), SpectralBlend(12)])
def test_no_longer_than_the_window_is_the_base_model_bit_for_bit(edit):
    assert np.array_equal(edit(attend, Q, K, V, GRID), PLAIN)
