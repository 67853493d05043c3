# SPDX-License-Identifier: Apache-2.0
"""The TPU window kernel in its interpreters against NumPy in float64, and its export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import boxes, windows_tpu
from tests.ops.test_windows import draw, oracle

ON_TPU = jax.default_backend() == "tpu"
INTERPRET = not ON_TPU  # the same tests run the real kernel under `make kernels` on a TPU
WINDOW = (4, 4, 8)


def check(arrays, window, shift, tolerance=1e-5, interpret=INTERPRET):
    q, k, v, d_out = arrays

    @jax.jit
    def both(q, k, v, d_out):
        attend = functools.partial(windows_tpu.attention, window=window, shift=shift, interpret=interpret)
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(d_out)

    names = ("out", "dq", "dk", "dv")
    for name, a, b in zip(names, both(*arrays), oracle(q, k, v, window, shift, d_out), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()), err_msg=name)


@pytest.mark.parametrize(
    "grid, shift",
    [
        ((4, 8, 8), (0, 0, 0)),
        ((8, 8, 8), (2, 2, 0)),  # borders cut windows off, on two axes
        ((6, 4, 8), (2, 0, 0)),  # and the last one is short: 6 frames are no multiple of 4
    ],
)
def test_values_and_gradients(grid, shift):
    check(draw(grid, width=64, heads=1 if grid[1] == 8 else 2, batch=1), WINDOW, shift)


@pytest.mark.parametrize("grid, width, shift", [((4, 4, 8), 128, (0, 0, 0)), ((6, 4, 8), 64, (2, 0, 0))])
def test_bfloat16_and_wide_heads(grid, width, shift):
    arrays = tuple(a.astype(jnp.bfloat16) for a in draw(grid, width=width, batch=1))
    check(arrays, WINDOW, shift, tolerance=2e-2)


@pytest.mark.skipif(ON_TPU, reason="a real TPU has no poisoned memory")
def test_poisoned_memory():
    """Uninitialised memory is NaN here: nothing that a border leaves out may reach a result."""
    poison = pltpu.InterpretParams(uninitialized_memory="nan")
    check(draw((6, 4, 8), width=64, heads=1, batch=1), WINDOW, (2, 0, 0), interpret=poison)


@pytest.mark.parametrize(
    "length, window, shift, want",
    [
        (8, 4, 0, [(0, 4), (4, 4)]),
        (8, 4, 2, [(0, 2), (2, 4), (6, 2)]),
        (7, 4, 2, [(0, 2), (2, 4), (6, 1)]),
        (6, 4, 2, [(0, 2), (2, 4)]),
        (4, 4, 0, [(0, 4)]),
    ],
)
def test_runs_of_an_axis(length, window, shift, want):
    assert boxes.runs(length, window, shift).tolist() == [list(run) for run in want]


@pytest.mark.parametrize("length", range(1, 14))
def test_runs_are_windows(length):
    """Two places share a run iff they share a window and a wrap flag; a run is no longer than a window."""
    for window in range(1, length + 1):
        for shift in range(window):
            label = [((i - shift) % length // window, i < shift) for i in range(length)]
            mine = np.repeat(np.arange(len(found := boxes.runs(length, window, shift))), found[:, 1])
            assert len(mine) == length and found[:, 1].max() <= window
            for i in range(length):
                for j in range(length):
                    assert (mine[i] == mine[j]) == (label[i] == label[j])
            assert all(edge % np.gcd.reduce([length, window, shift]) == 0 for edge in found.reshape(-1))


@pytest.mark.parametrize("dtype, width", [(jnp.float32, 64), (jnp.bfloat16, 128)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 2, 4)])
def test_exports_for_tpu(dtype, width, shift):
    shape = jax.ShapeDtypeStruct((1, 8, 16, 16, 8, width), dtype)

    def loss(q, k, v):
        return windows_tpu.attention(q, k, v, window=WINDOW, shift=shift).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    exported = jax.export.export(gradient, platforms=["tpu"])(shape, shape, shape)
    assert exported.mlir_module().count("tpu_custom_call") >= 1


def test_refuses_with_a_reason():
    def ask(grid, window, shift, width=64, dtype=jnp.float32, heads=1):
        a = jax.ShapeDtypeStruct((1, *grid, heads, width), dtype)
        return jax.eval_shape(functools.partial(windows_tpu.attention, window=window, shift=shift), a, a, a)

    none = (0, 0, 0)
    with pytest.raises(NotImplementedError, match="head widths 64 and 128, not 32"):
        ask((4, 4, 8), WINDOW, none, width=32)
    with pytest.raises(NotImplementedError, match="bfloat16 or float32"):
        ask((4, 4, 8), WINDOW, none, dtype=jnp.float16)
    with pytest.raises(NotImplementedError, match="multiple of 128 tokens, not 64"):
        ask((4, 4, 8), (4, 4, 4), none)
    with pytest.raises(NotImplementedError, match="at most 64 pieces, not 128"):
        ask((5, 5, 9), WINDOW, (1, 1, 1))
    with pytest.raises(NotImplementedError, match="MiB of fast memory"):
        ask((8, 8, 8), (8, 8, 8), none, heads=32)
    with pytest.raises(NotImplementedError, match="fit the grid"):
        ask((2, 4, 8), WINDOW, none)
