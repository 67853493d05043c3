# SPDX-License-Identifier: Apache-2.0
"""The Hopper window kernel in Mosaic GPU's interpreter against NumPy in float64, and its export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.test_windows import draw, oracle
from tests.pallas_kernels.test_windows_tpu import WINDOW

ON_HOPPER = getattr(jax.devices()[0], "compute_capability", None) == "9.0"
runs_here = pytest.mark.skipif(
    not ON_HOPPER and jax.version.__version_info__ < (0, 11),
    reason="Mosaic GPU's interpreter needs jax 0.11 (Python 3.12) or newer",
)


def attend(*arrays, races=False, interpret=not ON_HOPPER, **options):
    """Uninitialised memory is NaN in the interpreter."""
    from pallas_kernels import windows_gpu

    how = None
    if interpret:
        how = windows_gpu.plgpu.InterpretGPUParams(detect_races=races, uninitialized_memory="nan")
    return windows_gpu.attention(*arrays, interpret=how, **options)


def check(arrays, window, shift, dtype=jnp.bfloat16, **options):
    *arrays, d_out = (a.astype(dtype) for a in arrays)
    out, back = jax.vjp(functools.partial(attend, window=window, shift=shift, **options), *arrays)
    names, want = ("out", "dq", "dk", "dv"), oracle(*arrays, window, shift, d_out)
    for name, a, b in zip(names, (out, *back(d_out)), want, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-2 * max(1, np.abs(b).max()), err_msg=name)


@runs_here
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_values_and_gradients(dtype):
    check(draw((4, 4, 8), heads=1, width=64, batch=1), WINDOW, (0, 0, 0), dtype)


@runs_here
def test_borders_cut_windows_off_on_every_axis():
    check(draw((2, 4, 32), heads=1, width=64, batch=1), (2, 2, 16), (1, 1, 8), races=True)


@runs_here
def test_wide_heads_and_a_short_last_window():
    check(draw((6, 4, 8), heads=1, width=128, batch=1), WINDOW, (0, 0, 0))


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 2, 0)])
def test_exports_for_cuda(width, shift):
    shape = jax.ShapeDtypeStruct((1, 8, 16, 16, 4, width), jnp.bfloat16)

    def loss(*arrays):
        return attend(*arrays, interpret=False, window=WINDOW, shift=shift).astype(jnp.float32).sum()

    allowed = [jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    exported = jax.export.export(step, platforms=["cuda"], disabled_checks=allowed)(shape, shape, shape)
    assert exported.mlir_module().count("mosaic_gpu_v2") == 2


def test_refuses_with_a_reason():
    def ask(grid=(4, 4, 8), window=WINDOW, shift=(0, 0, 0), width=64, dtype=jnp.bfloat16):
        a = jax.ShapeDtypeStruct((1, *grid, 1, width), dtype)
        run = functools.partial(attend, window=window, shift=shift, interpret=False)
        return jax.eval_shape(run, a, a, a)

    with pytest.raises(NotImplementedError, match="bfloat16 or float16, all the same, not float32"):
        ask(dtype=jnp.float32)
    with pytest.raises(NotImplementedError, match="head widths 64 and 128, not 32"):
        ask(width=32)
    with pytest.raises(NotImplementedError, match="64 or 128 tokens"):
        ask(window=(4, 4, 4))
    with pytest.raises(NotImplementedError, match="grids that they divide"):
        ask(grid=(5, 5, 16), shift=(3, 3, 0))
    with pytest.raises(NotImplementedError, match="columns by a multiple of 8 only, not 4"):
        ask(grid=(8, 8, 16), shift=(2, 2, 4))
