# SPDX-License-Identifier: Apache-2.0
"""The TPU attention kernel in its interpreters against NumPy in float64, and its export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import attention_tpu, tiles
from pallas_kernels.tiles import FULL, Keys, Near, Queries

SMALL = attention_tpu.Tiles(forward=(128, 128), dq=(128, 128), dkv=(128, 128))
ON_TPU = jax.default_backend() == "tpu"
INTERPRET = not ON_TPU  # the same tests run the real kernels under `make kernels` on a TPU

CAUSAL = ((Near(None, 0),),)
MASKS = {
    "full": FULL,
    "causal": CAUSAL,
    "block_causal": ((Near(None, 0, unit=48),),),
    "band": ((Near(70, 33),),),
    "narrow": ((Near(5, 0),),),
    "sink": ((Near(40, 0),), (Near(None, 0), Keys(0, 7))),
    "teacher": (  # clean tokens and then their noisy copies
        (Queries(0, 100), Keys(0, 100), Near(None, 0, unit=20)),
        (Queries(100, 9999), Keys(100, 9999), Near(0, 0, unit=20, q_from=100, k_from=100)),
        (Queries(100, 9999), Keys(0, 100), Near(None, -1, unit=20, q_from=100)),
    ),
    "nobody": ((Keys(0, 0),),),
}


def draw(
    q_len=200, k_len=200, heads=1, groups=1, width=64, dtype=jnp.float32, batch=1, seed=0, value_width=None
):
    rng = np.random.default_rng(seed)
    shapes = (q_len, heads, width), (k_len, groups, width), (k_len, groups, value_width or width)
    return tuple(jnp.asarray(rng.standard_normal((batch, *s)), dtype) for s in shapes)


def oracle(q, k, v, allowed, d_out, d_lse):
    """float64: out, lse and the gradients of sum(out d_out) + sum(lse d_lse). allowed: bool [B, Lq, Lk]."""
    q, k, v, d_out, d_lse = (np.asarray(x, np.float64) for x in (q, k, v, d_out, d_lse))
    group = q.shape[2] // k.shape[2]
    many_k, many_v = np.repeat(k, group, 2), np.repeat(v, group, 2)
    scale = q.shape[-1] ** -0.5
    allowed = np.broadcast_to(allowed, (q.shape[0], q.shape[1], k.shape[1]))[:, None]
    scores = np.where(allowed, np.einsum("bqhk,bshk->bhqs", q, many_k) * scale, -np.inf)
    top = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = p.sum(-1, keepdims=True)
    lse = np.where(
        total > 0, np.where(np.isfinite(top), top, 0) + np.log(np.where(total > 0, total, 1)), -1e30
    )
    p = p / np.where(total > 0, total, 1)
    out = np.einsum("bhqs,bshk->bqhk", p, many_v)
    d_p = np.einsum("bqhk,bshk->bhqs", d_out, many_v)
    delta = (d_p * p).sum(-1, keepdims=True)
    d_scores = p * (d_p - delta + np.moveaxis(d_lse, 1, 2)[..., None])
    fold = lambda x: x.reshape(*x.shape[:2], -1, group, x.shape[-1]).sum(3)
    dq = np.einsum("bhqs,bshk->bqhk", d_scores, many_k) * scale
    dk = fold(np.einsum("bhqs,bqhk->bshk", d_scores, q)) * scale
    dv = fold(np.einsum("bhqs,bqhk->bshk", p, d_out))
    return out, np.moveaxis(lse[..., 0], 1, 2), dq, dk, dv


def check(arrays, mask, allowed, *, tolerance=2e-5, **options):
    q, k, v = arrays
    options = dict(sizes=SMALL, interpret=INTERPRET) | options
    rng = np.random.default_rng(9)
    d_out = jnp.asarray(rng.standard_normal((*q.shape[:3], v.shape[-1])), q.dtype)
    d_lse = jnp.asarray(rng.standard_normal(q.shape[:3]), jnp.float32)

    @jax.jit
    def both(q, k, v, d_out, d_lse):
        run = lambda *a: attention_tpu.attention(*a, mask=mask, **options)
        out, back = jax.vjp(run, q, k, v)
        return *out, *back((d_out, d_lse))

    got = both(q, k, v, d_out, d_lse)
    want = oracle(q, k, v, allowed, d_out, d_lse)
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, want, strict=True):
        a = np.asarray(a, np.float64)
        real = np.abs(b) < 1e29
        np.testing.assert_array_equal(a[~real], np.float32(-1e30))
        bound = tolerance * max(1.0, np.abs(b[real]).max(initial=0))
        np.testing.assert_allclose(a[real], b[real], rtol=0, atol=bound, err_msg=name)


def pairs(mask, q_len, k_len, offset=0):
    found = tiles.holds(mask, np.arange(q_len)[:, None] + offset, np.arange(k_len)[None])
    return np.ones((q_len, k_len), bool) if found is None else found


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", MASKS)
def test_values_and_gradients(name, width):
    check(draw(256, 256, width=width, seed=width), MASKS[name], pairs(MASKS[name], 256, 256))


@pytest.mark.parametrize("name", MASKS)
def test_odd_lengths_and_bfloat16(name):
    mask = MASKS[name]
    check(draw(201, 333), mask, pairs(mask, 201, 333))
    check(draw(131, 257, dtype=jnp.bfloat16), mask, pairs(mask, 131, 257), tolerance=2e-2)


def test_groups_batches_and_another_width_of_values():
    arrays = draw(140, 129, heads=4, groups=2, batch=2, value_width=128)
    check(arrays, MASKS["causal"], pairs(MASKS["causal"], 140, 129))


@pytest.mark.parametrize("traced", [False, True])
def test_an_offset(traced):
    offset = jnp.asarray(130) if traced else 130
    mask = MASKS["band"]
    check(draw(150, 260), mask, pairs(mask, 150, 260, 130), q_offset=offset)


def test_segments():
    rng = np.random.default_rng(3)
    q_ids = np.sort(rng.integers(0, 4, (2, 270)), 1).astype(np.int32)
    k_ids = np.sort(rng.integers(0, 4, (2, 300)), 1).astype(np.int32)
    q_ids[1, :20] = 77  # nobody's segment
    allowed = (q_ids[:, :, None] == k_ids[:, None]) & pairs(CAUSAL, 270, 300)
    check(draw(270, 300, batch=2), CAUSAL, allowed, q_ids=jnp.asarray(q_ids), k_ids=jnp.asarray(k_ids))


@pytest.mark.skipif(ON_TPU, reason="a real TPU has no poisoned memory")
@pytest.mark.parametrize("name", ["full", "narrow", "sink", "nobody"])
def test_poisoned_memory_and_what_lies_behind_the_end(name):
    """Uninitialised memory is NaN here, reads behind the end as well."""
    poison = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="uninitialized_value")
    check(draw(130, 200), MASKS[name], pairs(MASKS[name], 130, 200), interpret=poison)


def test_hidden_tiles_are_left_out():
    narrow = tiles.walk(*tiles.visible(((Near(100, 0),),), 0, 4096, 4096, 128, 128))
    assert narrow.shape == (32, 2)
    assert tiles.walk(*tiles.visible(FULL, 0, 4096, 4096, 128, 128)).shape == (1, 32)
    # forward and backward: the grids are as short as the walks
    text = str(
        jax.make_jaxpr(jax.grad(lambda q, k, v: run_narrow(q, k, v)[0].sum(), (0, 1, 2)))(*draw(1024, 1024))
    )
    assert text.count("grid=(1, 1, 8, 1, 2)") == 3


def run_narrow(q, k, v):
    return attention_tpu.attention(q, k, v, mask=((Near(100, 0),),), sizes=SMALL, interpret=True)


@pytest.mark.parametrize(
    "name, width, dtype",
    [
        ("full", 64, jnp.float32),
        ("full", 128, jnp.bfloat16),
        ("teacher", 128, jnp.float32),
        ("sink", 64, jnp.bfloat16),
        ("segments", 64, jnp.float32),
        ("segments", 128, jnp.bfloat16),
    ],
)
def test_exports_for_tpu(name, width, dtype):
    arrays = draw(300, 1300, heads=2, width=width, dtype=dtype)
    ids = (
        (jnp.zeros((1, 300), jnp.int32), jnp.zeros((1, 1300), jnp.int32))
        if name == "segments"
        else (None, None)
    )
    mask = MASKS.get(name, CAUSAL)

    def loss(q, k, v):
        out, lse = attention_tpu.attention(q, k, v, mask=mask, q_ids=ids[0], k_ids=ids[1])
        return out.astype(jnp.float32).sum() + lse.sum()

    exported = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["tpu"])(*arrays)
    assert exported.mlir_module().count("tpu_custom_call") >= 3


def test_refuses_with_a_reason():
    with pytest.raises(NotImplementedError, match="head widths 64 and 128, not 32"):
        attention_tpu.attention(*draw(width=32))
    with pytest.raises(NotImplementedError, match="bfloat16 or float32, all the same, not float16"):
        attention_tpu.attention(*draw(dtype=jnp.float16))
    with pytest.raises(NotImplementedError, match="at least 128 queries and keys, not 9 and 200"):
        attention_tpu.attention(*draw(9))
    with pytest.raises(NotImplementedError, match="lists at most"):
        jax.eval_shape(
            lambda *a: attention_tpu.attention(*a, mask=CAUSAL, sizes=SMALL), *draw(128 * 520, 128 * 520)
        )
