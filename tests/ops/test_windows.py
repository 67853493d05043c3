# SPDX-License-Identifier: Apache-2.0
"""Windowed attention: every implementation is full attention under the mask that defines it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.ops import pick
from jaxvid.ops.windows import window_attention

CASES = [
    ((8, 4, 8), (4, 2, 4), (0, 0, 0)),
    ((8, 4, 8), (4, 2, 4), (2, 1, 2)),
    ((5, 4, 6), (2, 3, 4), (1, 1, 2)),
    ((7, 3, 2), (4, 3, 2), (2, 0, 0)),
]


def draw(grid, heads=2, width=8, count=4, batch=2):
    rng = np.random.default_rng(sum(grid))
    return tuple(
        jnp.asarray(rng.standard_normal((batch, *grid, heads, width)), jnp.float32) for _ in range(count)
    )


def oracle(q, k, v, window, shift, d_out):
    """float64, from the definition (equal windows and wrap flags on all axes): out, and gradients of sum(out d_out)."""
    q, k, v, d_out = (np.asarray(a, np.float64) for a in (q, k, v, d_out))
    grid, same, scale = q.shape[1:4], None, q.shape[-1] ** -0.5
    for axis, (n, w, s) in enumerate(zip(grid, window, shift, strict=True)):
        place = np.indices(grid)[axis].reshape(-1)
        label = np.stack([(place - s) % n // w, place < s])
        equal = (label[:, :, None] == label[:, None]).all(0)
        same = equal if same is None else same & equal
    flat_q, flat_k, flat_v, flat_d = (a.reshape(a.shape[0], -1, *a.shape[4:]) for a in (q, k, v, d_out))
    p = np.where(same, np.exp(np.einsum("blhk,bmhk->bhlm", flat_q, flat_k) * scale), 0)
    p = p / p.sum(-1, keepdims=True)
    d_p = np.einsum("blhk,bmhk->bhlm", flat_d, flat_v)
    d_scores = p * (d_p - (d_p * p).sum(-1, keepdims=True)) * scale
    made = (
        np.einsum("bhlm,bmhk->blhk", p, flat_v),
        np.einsum("bhlm,bmhk->blhk", d_scores, flat_k),
        np.einsum("bhlm,blhk->bmhk", d_scores, flat_q),
        np.einsum("bhlm,blhk->bmhk", p, flat_d),
    )
    return tuple(a.reshape(q.shape) for a in made)


@pytest.mark.parametrize("grid, window, shift", CASES)
def test_windows_are_masked_full_attention(grid, window, shift):
    q, k, v, d_out = draw(grid)
    want = oracle(q, k, v, window, shift, d_out)
    for name in ("partition", "reference"):
        run = lambda *a, name=name: window_attention(*a, window=window, shift=shift, implementation=name)
        got, back = jax.vjp(jax.jit(run), q, k, v)
        for a, b in zip((got, *back(d_out)), want, strict=True):
            np.testing.assert_allclose(a, b, atol=5e-6)


def test_chosen_where_they_run():
    """A trace for a TPU takes the kernel, without rolls; what the kernel refuses is partitioned."""

    def text(width, window):
        shape = jax.ShapeDtypeStruct((1, 8, 8, 8, 1, width), jnp.float32)
        run = lambda q: window_attention(q, q, q, window=window, shift=(2, 2, 0))
        return str(jax.make_jaxpr(run)(shape))

    with pick.tracing_for("tpu"):
        assert text(64, (4, 4, 8)).count("pallas_call") == 1
        assert "pallas_call" not in text(32, (4, 4, 8))
    assert "pallas_call" not in text(64, (4, 4, 8))


def test_bad_requests():
    q, k, v, _ = draw((4, 4, 4))
    with pytest.raises(ValueError, match="1 <= window <= axis"):
        window_attention(q, k, v, window=(8, 4, 4))
    with pytest.raises(ValueError, match="shift < window"):
        window_attention(q, k, v, window=(2, 2, 2), shift=(2, 0, 0))
    with pytest.raises(NotImplementedError, match="runs on tpu, not on cpu"):
        window_attention(q, k, v, window=(2, 2, 2), implementation="mosaic_tpu")
