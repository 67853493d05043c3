# SPDX-License-Identifier: Apache-2.0
"""Adapters: nothing at first, a low-rank change then, the same from either style of file, and all that is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.process import Process
from jaxvid.io.lazy import from_array, open_safetensors, write_arrays
from jaxvid.io.wan_keys import dit_leaves
from jaxvid.io.weights import flatten
from jaxvid.models.wan_dit import WanDiT
from jaxvid.training import lora
from jaxvid.training.task import DiffusionTask
from jaxvid.types import InputError, Video

MODEL = WanDiT(width=16, layers=2, hidden=24, head=8, channels=4, text_width=8, level_channels=8)
COND = {"text": jnp.ones((1, 1, 3, 8))}
X, T = jnp.ones((1, 2, 4, 4, 4)), jnp.full((1, 2), 0.5)


@pytest.fixture(scope="module")
def params():
    made = jax.jit(MODEL.init)(jax.random.key(0), X, T, COND)["params"]
    flat = flatten(made)
    moved = {
        n: a + 0.1 * jax.random.normal(jax.random.key(i), a.shape) for i, (n, a) in enumerate(flat.items())
    }
    return lora.unflatten(moved)


def perturbed(params, patterns=lora.ATTENTION, rank=3):
    made = lora.init(jax.random.key(1), params, patterns, rank)
    draw = iter(jax.random.split(jax.random.key(2), len(made)))
    return {
        n: {"down": p["down"], "up": jax.random.normal(next(draw), p["up"].shape)} for n, p in made.items()
    }


def test_fresh_adapters_change_nothing_and_are_where_the_patterns_say(params):
    fresh = lora.init(jax.random.key(1), params, (r"blocks/self/[qv]/kernel",), 3)
    assert sorted(fresh) == ["blocks/self/q/kernel", "blocks/self/v/kernel"]
    assert fresh["blocks/self/q/kernel"]["down"].shape == (2, 16, 3)
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, fresh), lora.unflatten(flatten(params)))
    with pytest.raises(InputError, match="no kernel's path holds 'selv'"):
        lora.init(jax.random.key(1), params, ("selv",), 3)
    with pytest.raises(InputError, match="rank=17 is not in 1..16"):
        lora.init(jax.random.key(1), params, rank=17)


def test_merging_adds_the_product_of_each_layer_and_is_undone(params):
    adapters = perturbed(params)
    merged = flatten(lora.merge(params, adapters, 0.5))
    before = flatten(params)
    for name, value in merged.items():
        if name not in adapters:
            np.testing.assert_array_equal(value, before[name])
            continue
        for layer in range(2):
            change = np.float64(adapters[name]["down"][layer]) @ np.float64(adapters[name]["up"][layer])
            np.testing.assert_allclose(value[layer], before[name][layer] + 0.5 * change, atol=1e-5)
            assert np.linalg.matrix_rank(change) == 3
    back = flatten(lora.unmerge(lora.merge(params, adapters, 0.5), adapters, 0.5))
    for name, value in back.items():
        np.testing.assert_allclose(value, before[name], atol=1e-5)


@pytest.mark.parametrize("style", ["diffusers", "original"])
def test_files_of_either_style_are_the_same_adapters(params, style, tmp_path):
    adapters = perturbed(params, (*lora.ATTENTION, "patch_out", "feed/up"))
    shapes = {n: a.shape for n, a in flatten(params).items()}
    lora.save(tmp_path / "w.safetensors", adapters, dit_leaves(), style, scale=0.25)
    keys = set(open_safetensors(tmp_path / "w.safetensors"))
    one = {"diffusers": "transformer.blocks.1.attn1.to_q.lora_A.weight"}
    assert one.get(style, "diffusion_model.blocks.1.self_attn.q.lora_down.weight") in keys
    back = lora.load(tmp_path / "w.safetensors", dit_leaves(), shapes)
    assert set(back) == set(adapters)
    for name, pair in back.items():
        np.testing.assert_array_equal(pair["down"], adapters[name]["down"])
        np.testing.assert_array_equal(pair["up"], 0.25 * adapters[name]["up"])


def test_a_file_that_does_not_fit_is_told(params, tmp_path):
    shapes = {n: a.shape for n, a in flatten(params).items()}
    path = tmp_path / "w.safetensors"
    lora.save(path, perturbed(params), dit_leaves())
    arrays = {k: a.read().copy() for k, a in open_safetensors(path).items()}
    key = "transformer.blocks.0.attn1.to_q.lora_A.weight"

    def written(changed):
        write_arrays(path, {k: from_array(v) for k, v in changed.items()})
        return path

    wrong = {k.replace("blocks.0.attn1.to_q", "blocks.0.attn1.to_p"): v for k, v in arrays.items()}
    with pytest.raises(InputError, match=r"2 keys find no place.*closest: blocks\.0\.attn1\.to_"):
        lora.load(written(wrong), dit_leaves(), shapes)
    with pytest.raises(InputError, match="1 keys find no place"):
        lora.load(written({k: v for k, v in arrays.items() if k != key}), dit_leaves(), shapes)
    with pytest.raises(InputError, match="is for a kernel of 7 x 16"):
        lora.load(written({**arrays, key: np.zeros((3, 7), np.float32)}), dit_leaves(), shapes)
    some = {k: v for k, v in arrays.items() if "blocks.0." in k}
    back = lora.load(written(some), dit_leaves(), shapes)
    assert back["blocks/self/q/kernel"]["up"][0].any() and not back["blocks/self/q/kernel"]["up"][1].any()


def test_a_task_learns_its_adapters_and_leaves_the_weights(params):
    task = DiffusionTask(
        MODEL, Process(), lambda key, *shape: (jax.random.uniform(key, shape), jnp.ones(shape))
    )
    tuned = lora.LoraTask(task, rank=2, start=lambda fresh: params)
    key = jax.random.key(3)
    video = Video(jax.random.normal(key, X.shape), jnp.zeros((1, 2)), jnp.ones((1, 2), bool))
    batch = (video, COND)
    variables = tuned.init(key, batch)
    jax.tree.map(np.testing.assert_array_equal, variables["base"], lora.unflatten(flatten(params)))
    rest = {"base": variables["base"]}

    def loss(adapters):
        return tuned.loss({**rest, "params": adapters}, batch, key)[0]

    both = jax.jit(jax.value_and_grad(loss))
    start, gradient = both(variables["params"])
    plain = jax.jit(lambda p: task.loss({"params": p}, batch, key)[0])(params)
    np.testing.assert_allclose(start, plain, rtol=1e-6)
    adapters = variables["params"]
    for _ in range(20):
        adapters = jax.tree.map(lambda a, g: a - 0.05 * g, adapters, gradient)
        now, gradient = both(adapters)
    assert now < 0.95 * start
