# SPDX-License-Identifier: Apache-2.0
"""The TPU scan kernel in its interpreters against the recurrence in float64, and its export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import ssd_tpu

ON_TPU = jax.default_backend() == "tpu"
INTERPRET = not ON_TPU  # the same tests run the real kernels under `make kernels` on a TPU


def draw(length=256, heads=2, groups=1, width=32, state=16, batch=1, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *s: rng.standard_normal(s)
    x, dt = normal(batch, length, heads, width), np.log1p(np.exp(normal(batch, length, heads) - 2))
    A, B, C = (
        -np.exp(normal(heads)),
        normal(batch, length, groups, state),
        normal(batch, length, groups, state),
    )
    start = normal(batch, heads, width, state)
    kinds = (dtype, jnp.float32, jnp.float32, dtype, dtype, jnp.float32)
    return tuple(jnp.asarray(v, kind) for v, kind in zip((x, dt, A, B, C, start), kinds, strict=True))


def oracle(arrays, d_y, d_final):
    """float64, token by token: y, final state, and the gradients of sum(y d_y) + sum(final d_final)."""
    x, dt, A, B, C, start, d_y, d_h = (np.asarray(v, np.float64) for v in (*arrays, d_y, d_final))
    per_group = x.shape[2] // B.shape[2]
    many_B, many_C = np.repeat(B, per_group, 2), np.repeat(C, per_group, 2)
    h, entering, y = start, [], np.zeros_like(x)
    for t in range(x.shape[1]):
        entering.append(h)
        u = dt[:, t, :, None] * x[:, t]
        h = np.exp(dt[:, t] * A)[..., None, None] * h + u[..., None] * many_B[:, t, :, None]
        y[:, t] = np.einsum("bhpn,bhn->bhp", h, many_C[:, t])
    final = h
    dx, ddt, dA = np.zeros_like(x), np.zeros_like(dt), np.zeros_like(A)
    dB, dC = np.zeros_like(many_B), np.zeros_like(many_C)
    for t in reversed(range(x.shape[1])):
        keep, now = np.exp(dt[:, t] * A), dt[:, t, :, None]
        left = keep[..., None, None] * entering[t] + (now * x[:, t])[..., None] * many_B[:, t, :, None]
        dC[:, t] = np.einsum("bhp,bhpn->bhn", d_y[:, t], left)
        d_h = d_h + d_y[:, t][..., None] * many_C[:, t, :, None]
        dB[:, t] = np.einsum("bhpn,bhp->bhn", d_h, now * x[:, t])
        du = np.einsum("bhpn,bhn->bhp", d_h, many_B[:, t])
        da = (d_h * entering[t]).sum((-1, -2)) * keep
        dx[:, t], ddt[:, t] = du * now, (du * x[:, t]).sum(-1) + da * A
        dA += (da * dt[:, t]).sum(0)
        d_h = keep[..., None, None] * d_h
    fold = lambda v: v.reshape(*v.shape[:2], -1, per_group, v.shape[-1]).sum(3)
    return y, final, dx, ddt, dA, fold(dB), fold(dC), d_h


def check(arrays, tolerance=2e-5, **options):
    rng = np.random.default_rng(5)
    d_y = jnp.asarray(rng.standard_normal(arrays[0].shape), arrays[0].dtype)
    d_final = jnp.asarray(rng.standard_normal(arrays[-1].shape), jnp.float32)
    options = dict(interpret=INTERPRET) | options

    @jax.jit
    def both(*arrays):
        outs, back = jax.vjp(lambda *a: ssd_tpu.ssd(*a, **options), *arrays)
        return *outs, *back((d_y, d_final))

    names = ("y", "state", "dx", "ddt", "dA", "dB", "dC", "d_start")
    for name, a, b in zip(names, both(*arrays), oracle(arrays, d_y, d_final), strict=True):
        bound = tolerance * max(1.0, np.abs(b).max())
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=bound, err_msg=name)


def test_values_and_gradients():
    check(draw())


def test_odd_lengths_groups_and_several_steps_of_heads():
    check(draw(201, heads=8, groups=2, batch=2), sizes=ssd_tpu.Tiles(heads=2))


def test_shorter_than_a_chunk():
    check(draw(77))


def test_larger_chunks():
    check(draw(300), sizes=ssd_tpu.Tiles(chunk=256))


def test_bfloat16():
    check(draw(201, heads=4, groups=2, width=64, state=64, dtype=jnp.bfloat16), tolerance=2e-2)


def test_strong_decay_stays_finite():
    x, dt, A, B, C, start = draw(200)
    # running sums of thousands are exact to 1e-4 in float32, and so are their exponentials
    check((x, dt * 30, A * 10, B, C, start), tolerance=1e-3)


@pytest.mark.skipif(ON_TPU, reason="a real TPU has no poisoned memory")
def test_poisoned_memory():
    poison = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="uninitialized_value")
    check(draw(140, heads=4, groups=2), sizes=ssd_tpu.Tiles(heads=1), interpret=poison)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width, state", [(64, 128), (32, 64)])
def test_exports_for_tpu(width, state, dtype):
    arrays = draw(300, heads=16, width=width, state=state, dtype=dtype)

    def loss(*arrays):
        y, last = ssd_tpu.ssd(*arrays)
        return y.astype(jnp.float32).sum() + last.sum()

    exported = jax.export.export(jax.jit(jax.grad(loss, tuple(range(6)))), platforms=["tpu"])(*arrays)
    assert exported.mlir_module().count("tpu_custom_call") >= 2


def test_refuses_with_a_reason():
    with pytest.raises(NotImplementedError, match="multiples of 16, not 20 and 16"):
        ssd_tpu.ssd(*draw(width=20))
    with pytest.raises(NotImplementedError, match="bfloat16 or float32"):
        ssd_tpu.ssd(*draw(dtype=jnp.float16))
    with pytest.raises(NotImplementedError, match="chunks of a multiple of 128"):
        ssd_tpu.ssd(*draw(), sizes=ssd_tpu.Tiles(chunk=96))
