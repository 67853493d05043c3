# SPDX-License-Identifier: Apache-2.0
"""The walk agrees with the compiler where the compiler can count, and multiplies loops where it cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.e000_linear_law.run import count, doubling, forward, inputs, parameters
from jaxvid.eval.flops import Flops, count_flops
from jaxvid.models.video_dit import dit, lingen
from jaxvid.types import InputError


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def compiler(fn, *args):
    cost = jax.jit(fn).lower(*args).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def layer(x, w, v):
    """Attention and a two-layer net, all products plainly visible."""
    p = jax.nn.softmax(x @ x.T, -1)
    return x + jnp.tanh(p @ x @ w) @ v


def unrolled(x, ws, vs):
    for i in range(ws.shape[0]):
        x = layer(x, ws[i], vs[i])
    return x


def scanned(x, ws, vs):
    return jax.lax.scan(lambda x, wv: (layer(x, *wv), None), x, (ws, vs))[0]


ARGS = spec(48, 64), spec(3, 64, 256), spec(3, 256, 64)


@pytest.mark.parametrize(
    "fn", [unrolled, jax.grad(lambda *a: unrolled(*a).sum(), (0, 1, 2))], ids=["value", "grad"]
)
def test_agrees_with_the_compiler_on_an_unrolled_case(fn):
    np.testing.assert_allclose(count_flops(fn, *ARGS).total, compiler(fn, *ARGS), rtol=0.02)


def test_loops_count_as_often_as_they_run():
    by_hand = 3 * (2 * 2 * 48 * 48 * 64 + 2 * 2 * 48 * 64 * 256)
    assert count_flops(unrolled, *ARGS).matmul == by_hand
    assert count_flops(scanned, *ARGS).matmul == by_hand
    assert count_flops(scanned, *ARGS) == count_flops(unrolled, *ARGS)
    nested = count_flops(lambda *a: jax.lax.fori_loop(0, 5, lambda i, x: scanned(x, *a[1:]), a[0]), *ARGS)
    assert nested.matmul == 5 * by_hand


def test_descends_into_everything_that_holds_a_program():
    x, w = spec(8, 16), spec(16, 16)
    product = 2 * 8 * 16 * 16

    @jax.custom_vjp
    def custom(x, w):
        return x @ w

    custom.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))
    same = [
        lambda x, w: x @ w,
        jax.jit(lambda x, w: x @ w),
        jax.checkpoint(lambda x, w: x @ w),
        custom,
        lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x),
    ]
    assert [count_flops(f, x, w).products for f in same] == [product] * len(same)
    remat = count_flops(
        jax.value_and_grad(lambda x, w: jax.checkpoint(lambda x: jnp.sin(x @ w))(x).sum()), x, w
    )
    assert remat.products == 3 * product  # forward, again, and back to x
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")
    sharded = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, None), out_specs=rows)
    assert count_flops(sharded, x, w).products == product


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_agree_with_the_compiler(groups):
    def conv(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (2, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    x, k = spec(2, 16, 16, 8), spec(3, 3, 8 // groups, 16)
    assert count_flops(conv, x, k).conv == 2 * (2 * 7 * 14 * 16) * 9 * 8 // groups
    np.testing.assert_allclose(count_flops(conv, x, k).total, compiler(conv, x, k), rtol=0.01)


def test_unknown_loops_are_refused():
    with pytest.raises(InputError, match="while loop"):
        count_flops(lambda x: jax.lax.while_loop(lambda x: x < 10, lambda x: x + x, x), spec())


def test_nothing_is_allocated():
    huge = count_flops(lambda a, b: a @ b, spec(2**20, 2**20), spec(2**20, 2**20))
    assert huge == Flops(matmul=2.0**61)


def tiny(make, **kw):
    return make(width=32, head=16, channels=2, text_width=8, **kw)


def test_a_whole_network_agrees_with_the_compiler():
    """One round of the pattern, one chunk per scan: every loop has length 1, so the compiler sees everything."""
    model = tiny(lingen, repeats=1, state=16, chunk=512)
    args = parameters(model), *inputs(model, 8, 8, 6)
    np.testing.assert_allclose(count(model, 8, 8, 6).total, compiler(forward(model), *args), rtol=0.05)


def test_the_linear_law():
    """Twice the frames: twice the work for LinGen, once text-only terms are taken out, and more for the DiT."""
    (_, _, none), (_, _, ratio) = doubling(tiny(lingen, repeats=1), [16, 32], 8, 16)
    assert none is None and abs(ratio - 2) < 0.02
    dit_ratios = [ratio for _, _, ratio in doubling(tiny(dit, layers=2), [16, 32, 64], 8, 16)[1:]]
    assert 2.2 < dit_ratios[0] < dit_ratios[1] < 4
