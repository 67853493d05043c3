# SPDX-License-Identifier: Apache-2.0
"""The laws of every mixer in the folder, found by walking it."""

import importlib
import inspect
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvid.nn.mixers
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.mixers.longshort import LongShort
from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.nn.mixers.mate import Mate, mate
from jaxvid.nn.mixers.temporal import Temporal
from jaxvid.nn.mixers.window import Window
from jaxvid.types import InputError

B, T, H, W, D = 2, 6, 3, 4, 16

BIDIRECTIONAL = {
    **{f"mamba{k}": Mamba(order=k, head=8, state=4, chunk=16) for k in range(4)},
    "window": Window((4, 2, 2), head=8),
    "window shifted": Window((4, 2, 2), shifted=True, head=8),
    **{f"mate{k}": mate(k, window=(4, 2, 2), head=8, state=4, chunk=16) for k in range(2)},
    "attention": Attention(head=8),
    "temporal": Temporal(head=8),
    "space and time": Mate(Temporal(head=8), Window((1, 8, 8), head=8)),
}
CAUSAL = {
    "mamba0": Mamba(order=0, causal=True, review=None, head=8, state=4, chunk=16),
    "mamba1 block": Mamba(order=1, causal=True, review=None, block=2, head=8, state=4, chunk=16),
    "attention": Attention(causal=True, window=3, head=8),
    "attention block": Attention(causal=True, window=4, block=2, head=8),
    "attention sink": Attention(causal=True, window=1, sink=2, head=8),
    "long and short": LongShort(head=8, window=1, past=3, pool=1),
    "long and short block": LongShort(head=8, window=2, past=2, pool=2, block=2),
    "attention sink block": Attention(causal=True, window=2, sink=1, block=2, head=8),
    "scan and queue": Mate(
        Mamba(order=1, causal=True, review=None, block=2, head=8, state=4, chunk=16),
        LongShort(head=8, window=2, past=2, pool=2, block=2),
    ),
}
BLOCK = {"scan and queue": 2}  # of a mixer that has no block of its own


def perturbed(mixer, seed=0):
    """Parameters moved off their start, so that zeros hide nothing."""
    x = jnp.zeros((B, T, H, W, D))
    params = nn.unbox(jax.jit(mixer.init)(jax.random.key(seed), x, None))
    keys = jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda a, k: a + 0.1 * jax.random.normal(k, a.shape), params, keys)


def video(seed=2):
    return jax.random.normal(jax.random.key(seed), (B, T, H, W, D))


def test_every_mixer_of_the_folder_has_its_laws_here():
    folder = pathlib.Path(inspect.getfile(jaxvid.nn.mixers)).parent
    seen = {type(m).__name__ for m in (*BIDIRECTIONAL.values(), *CAUSAL.values())} | {"Cross"}
    for path in folder.glob("*.py"):
        module = importlib.import_module(f"jaxvid.nn.mixers.{path.stem}")
        for name, thing in vars(module).items():
            mine = (
                inspect.isclass(thing)
                and issubclass(thing, nn.Module)
                and thing.__module__ == module.__name__
            )
            assert not mine or name in seen, f"{name} in {path.name} is not tested here"


@pytest.mark.parametrize("name", [*BIDIRECTIONAL, *(f"causal {n}" for n in CAUSAL)])
def test_batch_elements_do_not_mix_and_bfloat16_agrees(name):
    mixer = CAUSAL[name.removeprefix("causal ")] if name.startswith("causal") else BIDIRECTIONAL[name]
    params, x = perturbed(mixer), video()
    run = jax.jit(lambda p, x: mixer.apply(p, x, None)[0])
    y = run(params, x)
    assert y.shape == x.shape
    other = run(params, x.at[1].add(1.0))
    np.testing.assert_array_equal(y[0], other[0])
    assert np.abs(y[1] - other[1]).max() > 1e-3
    low = run(params, x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), y, atol=0.06 * float(np.abs(y).max()))


@pytest.mark.parametrize("name", CAUSAL)
def test_past_ignores_future_and_chunks_equal_the_whole(name):
    mixer = CAUSAL[name]
    params, x = perturbed(mixer), video()
    assert mixer.causal
    step = BLOCK.get(name, getattr(mixer, "block", 1))
    run = jax.jit(lambda p, x, m: mixer.apply(p, x, m))
    whole, none = run(params, x, None)
    assert none is None
    changed, _ = run(params, x.at[:, 4:].add(1.0), None)
    np.testing.assert_array_equal(whole[:, :4], changed[:, :4])
    assert np.abs(whole[:, 4:] - changed[:, 4:]).max() > 1e-3

    memory = start = mixer.init_memory(B, (H, W), D)
    parts = []
    for cut in range(0, T, step):
        y, memory = run(params, x[:, cut : cut + step], memory)
        parts.append(y)
        assert jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), memory) == jax.tree.map(
            lambda a: (a.shape, a.dtype, a.weak_type), start
        )
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)


@pytest.mark.parametrize("name", ["mamba1 block", "attention block", "long and short block"])
def test_a_clip_shorter_than_a_block_is_one_block(name):
    """Images can be among the training clips of a model that works in blocks; a stream is cut at their borders only."""
    mixer = CAUSAL[name]
    params, x = perturbed(mixer), video()
    assert mixer.apply(params, x[:, :1], None)[0].shape == (B, 1, H, W, D)
    for frames, memory in ((1, mixer.init_memory(B, (H, W), D)), (3, None)):
        with pytest.raises(InputError, match="not a multiple"):
            mixer.apply(params, x[:, :frames], memory)


def test_branches_are_of_two_kinds():
    with pytest.raises(InputError, match="both branches are Window"):
        Mate(Window(), Window())


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_bidirectional_mixers_remember_nothing(name):
    assert not BIDIRECTIONAL[name].causal
    assert BIDIRECTIONAL[name].init_memory(B, (H, W), D) is None
