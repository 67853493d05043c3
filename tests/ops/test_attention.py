# SPDX-License-Identifier: Apache-2.0
"""Attention: both forms against NumPy for every mask, gradients, tiles left out, rows without keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvid.ops.attention as module
from jaxvid.ops import masks
from jaxvid.ops.attention import attention, attention_with_lse


def inputs(
    q_len=23, k_len=31, *, heads=4, kv_heads=2, width=6, value_width=5, batch=2, dtype=np.float64, seed=0
):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((batch, q_len, heads, width))
    k = rng.standard_normal((batch, k_len, kv_heads, width))
    v = rng.standard_normal((batch, k_len, kv_heads, value_width))
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v))


def oracle(q, k, v, allowed):
    """Row by row in float64 NumPy."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, q_len, heads, width = q.shape
    allowed = np.broadcast_to(np.asarray(allowed), (batch, heads, q_len, k.shape[1]))
    out, lse = np.zeros((batch, q_len, heads, v.shape[-1])), np.full((batch, q_len, heads), -1e30)
    for b, i, h in np.ndindex(batch, q_len, heads):
        seen = np.flatnonzero(allowed[b, h, i])
        if len(seen):
            g = h // (heads // k.shape[2])
            scores = k[b, seen, g] @ q[b, i, h] / np.sqrt(width)
            lse[b, i, h] = np.logaddexp.reduce(scores)
            out[b, i, h] = np.exp(scores - lse[b, i, h]) @ v[b, seen, g]
    return out, lse


def some_masks(q_len=23, k_len=31):
    rng = np.random.default_rng(3)
    ids = lambda n: jnp.asarray(np.sort(rng.integers(0, 3, (2, n)), axis=1))
    return {
        "none": None,
        "causal": masks.causal(),
        "block_causal": masks.block_causal(5),
        "band": masks.band(6, 2),
        "sink": masks.causal() & (masks.band(4, 0) | masks.sink(3)),
        "segments": masks.segments(ids(q_len), ids(k_len)),
        "frames": masks.frames(masks.block_causal(2), 3) & masks.segments(ids(q_len), ids(k_len)),
        "array": jnp.asarray(rng.random((2, 4, q_len, k_len)) > 0.7),
        "keys": jnp.asarray(rng.random((2, 1, 1, k_len)) > 0.5),
        "nothing": jnp.zeros((q_len, k_len), bool),
    }


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    monkeypatch.setattr(module, "GROUPS", 2)


@pytest.mark.parametrize("name", some_masks())
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_agrees_with_numpy(name, implementation, small_tiles):
    with jax.enable_x64(True):
        q, k, v = inputs()
        mask = some_masks()[name]
        for offset in (0, 8) if name == "causal" else (8,):
            run = functools.partial(attention_with_lse, implementation=implementation, q_offset=offset)
            out, lse = jax.jit(run)(q, k, v, mask=mask)
            want = oracle(q, k, v, masks.as_mask(mask).dense(23, 31, offset))
            np.testing.assert_allclose(out, want[0], rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(lse, want[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_lower_precisions(dtype, tolerance, implementation, small_tiles):
    q, k, v = inputs(dtype=dtype)
    out, lse = attention_with_lse(q, k, v, mask=masks.band(9, 9), implementation=implementation)
    want, want_lse = oracle(q, k, v, masks.band(9, 9).dense(23, 31))
    assert out.dtype == dtype and lse.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(out, np.float64), want, atol=tolerance)
    np.testing.assert_allclose(lse, want_lse, rtol=tolerance, atol=tolerance)


def test_a_traced_offset_is_as_good(small_tiles):
    q, k, v = inputs(dtype=np.float32)
    run = jax.jit(lambda at: attention(q, k, v, mask=masks.causal(), implementation="chunked", q_offset=at))
    for offset in (0, 8):
        want = attention(q, k, v, mask=masks.causal(), implementation="reference", q_offset=offset)
        np.testing.assert_allclose(run(offset), want, atol=1e-5)


def loss(implementation, mask, q, k, v):
    out, lse = attention_with_lse(q, k, v, mask=mask, implementation=implementation)
    return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(lse > -1e29, jnp.cos(lse), 0))


@pytest.mark.parametrize("name", ["sink", "array"])
def test_gradients(name, small_tiles):
    """Chunked, plain, finite differences and forward mode say the same."""
    with jax.enable_x64(True):
        values, mask = inputs(17, 19), some_masks(17, 19)[name]
        functions = [functools.partial(loss, how, mask) for how in ("chunked", "reference")]
        gradients = [jax.jit(jax.grad(f, (0, 1, 2)))(*values) for f in functions]
        for a, b in zip(*gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        rng = np.random.default_rng(1)
        way = tuple(jnp.asarray(rng.standard_normal(x.shape)) for x in values)
        step = 1e-5
        value = jax.jit(functions[0])
        ahead, behind = (value(*(x + s * w for x, w in zip(values, way, strict=True))) for s in (step, -step))
        slope = sum(jnp.vdot(g, w) for g, w in zip(gradients[0], way, strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6)
        np.testing.assert_allclose(jax.jvp(value, values, way)[1], slope, rtol=1e-10)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_rows_without_keys_have_finite_gradients(implementation, small_tiles):
    q, k, v = inputs(dtype=np.float32)
    gradients = jax.jit(jax.grad(functools.partial(loss, implementation, masks.sink(0)), (0, 1, 2)))(q, k, v)
    assert all(np.all(np.asarray(g) == 0) for g in gradients)


def test_huge_scores_stay_finite(small_tiles):
    q, k, v = inputs(dtype=np.float32)
    for how in ("reference", "chunked"):
        out = jax.jit(functools.partial(attention, implementation=how))(1e4 * q, k, v)
        assert np.isfinite(out).all()


def test_tiles_out_of_reach_are_not_computed():
    """A narrow band costs what its tiles cost: the tables hold nothing else."""
    tables = list(module._reach(masks.band(8, 0), 0, 64, 64, 8, 8))
    assert sum(t.size for _, t in tables) == 1 + 7 * 2 or max(t.shape[1] for _, t in tables) == 2
    causal = list(module._reach(masks.causal(), 0, 256, 256, 8, 8))
    assert [first for first, _ in causal] == list(range(0, 32, 4))
    assert sum(t.size for _, t in causal) < 0.6 * 32 * 32
    for first, table in causal:
        for i, row in enumerate(table):
            np.testing.assert_array_equal(row[row >= 0], np.arange(first + i + 1))


def test_partial_results_merge_by_their_lse():
    with jax.enable_x64(True):
        q, k, v = inputs()
        (o1, l1), (o2, l2) = (attention_with_lse(q, k[:, s], v[:, s]) for s in (slice(0, 9), slice(9, None)))
        top = jnp.maximum(l1, l2)
        w1, w2 = (jnp.exp(x - top)[..., None] for x in (l1, l2))
        np.testing.assert_allclose(
            (w1 * o1 + w2 * o2) / (w1 + w2), attention(q, k, v), rtol=1e-12, atol=1e-13
        )


def test_memory_is_linear_in_length():
    def temporary(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        run = jax.grad(lambda q, k, v: attention(q, k, v, implementation="chunked").sum(), (0, 1, 2))
        return jax.jit(run).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8192) < 2.2 * temporary(4096)


def test_under_vmap():
    q, k, v = inputs(batch=3, dtype=np.float32)
    each = jax.vmap(lambda q, k, v: attention(q[None], k[None], v[None], mask=masks.causal())[0])
    np.testing.assert_allclose(each(q, k, v), attention(q, k, v, mask=masks.causal()), atol=1e-6)


def test_says_what_does_not_fit():
    q, k, v = inputs(dtype=np.float32)
    with pytest.raises(ValueError, match="want q"):  # asked directly: in tests the annotations are faster
        module._check(q, k[:, :-1], v, masks.full())
    with pytest.raises(ValueError, match="divide"):
        attention(*inputs(heads=4, kv_heads=3, dtype=np.float32))
    with pytest.raises(ValueError, match="must broadcast"):
        attention(q, k, v, mask=jnp.ones((2, 4, 23, 30), bool))
    with pytest.raises(NotImplementedError, match="float16"):
        attention(q, k, v, implementation="cudnn")
    with pytest.raises(NotImplementedError, match="runs on tpu, not on cpu"):
        attention(q, k, v, implementation="mosaic_tpu")
