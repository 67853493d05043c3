# SPDX-License-Identifier: Apache-2.0
"""The Hopper attention kernel in Mosaic GPU's interpreter against NumPy in float64, and its export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import tiles
from tests.pallas_kernels.test_attention_tpu import CAUSAL, MASKS, draw, oracle, pairs

ON_HOPPER = getattr(jax.devices()[0], "compute_capability", None) == "9.0"
runs_here = pytest.mark.skipif(
    not ON_HOPPER and jax.version.__version_info__ < (0, 11),
    reason="Mosaic GPU's interpreter needs jax 0.11 (Python 3.12) or newer",
)


def run(*arrays, races=False, interpret=not ON_HOPPER, **options):
    """Uninitialised memory is NaN in the interpreter."""
    from pallas_kernels import attention_gpu

    how = None
    if interpret:
        how = attention_gpu.plgpu.InterpretGPUParams(detect_races=races, uninitialized_memory="nan")
    return attention_gpu.attention(*arrays, interpret=how, **options)


def check(arrays, allowed, **options):
    rng = np.random.default_rng(9)
    d_out = jnp.asarray(rng.standard_normal(arrays[0].shape), arrays[0].dtype)
    d_lse = jnp.asarray(rng.standard_normal(arrays[0].shape[:3]), jnp.float32)
    outs, back = jax.vjp(lambda *a: run(*a, **options), *arrays)
    got, want = (*outs, *back((d_out, d_lse))), oracle(*arrays, allowed, d_out, d_lse)
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, want, strict=True):
        a, real = np.asarray(a, np.float64), np.abs(b) < 1e29
        np.testing.assert_array_equal(a[~real], np.float32(-1e30))
        bound = (1e-5 if name == "lse" else 2e-2) * max(1.0, np.abs(b[real]).max(initial=0))
        np.testing.assert_allclose(a[real], b[real], rtol=0, atol=bound, err_msg=name)


@runs_here
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", MASKS)
def test_values_and_gradients(name, dtype):
    check(draw(128, 256, dtype=dtype), pairs(MASKS[name], 128, 256), mask=MASKS[name])


@runs_here
def test_odd_lengths_wide_heads_groups_and_races():
    arrays = draw(130, 150, heads=2, width=128, dtype=jnp.bfloat16)
    check(arrays, pairs(CAUSAL, 130, 150), mask=CAUSAL, races=True)


@runs_here
def test_segments_and_an_offset_known_late():
    rng = np.random.default_rng(3)
    q_ids, k_ids = (np.sort(rng.integers(0, 3, (1, n)), 1).astype(np.int32) for n in (70, 140))
    allowed = (q_ids[:, :, None] == k_ids[:, None]) & pairs(MASKS["band"], 70, 140, 30)
    ids = dict(q_ids=jnp.asarray(q_ids), k_ids=jnp.asarray(k_ids))
    check(draw(70, 140, dtype=jnp.float16), allowed, mask=MASKS["band"], q_offset=jnp.asarray(30), **ids)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ["full", "teacher", "segments"])
def test_exports_for_cuda(name, width):
    arrays = draw(300, 700, heads=4, groups=2, width=width, dtype=jnp.bfloat16)
    ids = {}
    if name == "segments":
        ids = dict(q_ids=jnp.zeros((1, 300), jnp.int32), k_ids=jnp.zeros((1, 700), jnp.int32))

    def loss(*arrays):
        out, lse = run(*arrays, interpret=False, mask=MASKS.get(name, CAUSAL), **ids)
        return out.astype(jnp.float32).sum() + lse.sum()

    allowed = [jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    exported = jax.export.export(step, platforms=["cuda"], disabled_checks=allowed)(*arrays)
    assert exported.mlir_module().count("mosaic_gpu_v2") == 3


ALONE = {  # what hides speaks of rows alone or of columns alone, or of ids
    "segments": (
        128,
        128,
        {"q_ids": jnp.zeros((2, 128), jnp.int32), "k_ids": jnp.zeros((2, 128), jnp.int32)},
    ),
    "keys that do not fill a tile": (128, 64, {}),
    "queries that do not fill a tile": (64, 128, {}),
    "keys": (128, 128, {"mask": ((tiles.Keys(3, 70),),)}),
    "queries": (128, 128, {"mask": ((tiles.Queries(3, 70),),)}),
}


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ALONE)
def test_exports_where_nothing_else_hides(name, width):
    """The compiler looks for layouts, and found none for a comparison of rows or of columns alone."""
    q_len, k_len, options = ALONE[name]
    arrays = draw(q_len, k_len, width=width, batch=2, dtype=jnp.bfloat16)
    loss = lambda *a: run(*a, interpret=False, **options)[0].astype(jnp.float32).sum()
    allowed = [jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    exported = jax.export.export(step, platforms=["cuda"], disabled_checks=allowed)(*arrays)
    assert exported.mlir_module().count("mosaic_gpu_v2") == 3


@runs_here
def test_segments_alone():
    ids = np.sort(np.random.default_rng(4).integers(0, 3, (2, 128)), 1).astype(np.int32)
    arrays = draw(128, 128, batch=2, dtype=jnp.bfloat16)
    check(arrays, ids[:, :, None] == ids[:, None], q_ids=jnp.asarray(ids), k_ids=jnp.asarray(ids))


def test_refuses_with_a_reason():
    with pytest.raises(NotImplementedError, match="bfloat16 or float16, all the same, not float32"):
        run(*draw(), interpret=False)
    with pytest.raises(NotImplementedError, match="head widths 64 and 128, the same for values, not 32"):
        run(*draw(width=32, dtype=jnp.bfloat16), interpret=False)
