# SPDX-License-Identifier: Apache-2.0
"""The Hopper scan kernel in Mosaic GPU's interpreter against the recurrence in float64, and its export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pallas_kernels.test_ssd_tpu import draw, oracle

ON_HOPPER = getattr(jax.devices()[0], "compute_capability", None) == "9.0"
runs_here = pytest.mark.skipif(
    not ON_HOPPER and jax.version.__version_info__ < (0, 11),
    reason="Mosaic GPU's interpreter needs jax 0.11 (Python 3.12) or newer",
)


def run(*arrays, interpret=not ON_HOPPER):
    from pallas_kernels import ssd_gpu

    poison = (
        ssd_gpu.plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan") if interpret else None
    )
    return ssd_gpu.ssd(*arrays, interpret=poison)


@runs_here
@pytest.mark.parametrize(
    "length, heads, groups, state, dtype", [(130, 1, 1, 64, jnp.bfloat16), (128, 2, 2, 128, jnp.float16)]
)
def test_values_and_gradients(length, heads, groups, state, dtype):
    arrays = draw(length, heads, groups, 64, state, dtype=dtype)
    rng = np.random.default_rng(5)
    d_y = jnp.asarray(rng.standard_normal(arrays[0].shape), dtype)
    d_final = jnp.asarray(rng.standard_normal(arrays[-1].shape), jnp.float32)
    outs, back = jax.vjp(run, *arrays)
    got = *outs, *back((d_y, d_final))
    names = ("y", "state", "dx", "ddt", "dA", "dB", "dC", "d_start")
    for name, a, b in zip(names, got, oracle(arrays, d_y, d_final), strict=True):
        bound = 2e-2 * max(1.0, np.abs(b).max())
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=bound, err_msg=name)


def test_exports_for_cuda():
    arrays = draw(300, heads=4, groups=2, width=64, state=128, dtype=jnp.bfloat16)
    loss = lambda *a: run(*a, interpret=False)[0].astype(jnp.float32).sum()
    allowed = [jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    exported = jax.export.export(
        jax.jit(jax.value_and_grad(loss)), platforms=["cuda"], disabled_checks=allowed
    )(*arrays)
    assert exported.mlir_module().count("mosaic_gpu_v2") == 2


def test_refuses_with_a_reason():
    with pytest.raises(NotImplementedError, match="bfloat16 or float16"):
        run(*draw(), interpret=False)
    with pytest.raises(NotImplementedError, match="width 64 and states of 64 or 128, not 32 and 64"):
        run(*draw(width=32, state=64, dtype=jnp.bfloat16), interpret=False)
