# SPDX-License-Identifier: Apache-2.0
"""The network as a whole: text per frame, null text, given frames, streaming, sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.data.text import encode_text
from jaxvid.models.text_encoder import ByteTextEncoder, runs_of_bytes
from jaxvid.models.text_to_video import TextToVideo
from jaxvid.models.video_dit import VideoDiT, dit, dit_4b, lingen, lingen_4b
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.nn.mixers.window import Window
from jaxvid.nn.refine import Refine
from jaxvid.types import InputError

B, T, H, W, C, L = 2, 4, 4, 6, 3, 7


def inputs(spans=2, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    cond = {
        "text": jax.random.normal(keys[1], (B, spans, L, 16)),
        "text_mask": jnp.arange(L)[None, None] < jnp.array([[3], [5]])[:, :, None].repeat(spans, 1),
        "span": jnp.array([[0, 0, 1, 1], [0, 1, 1, 1]]) * (spans > 1),
    }
    return jax.random.normal(keys[0], (B, T, H, W, C)), jax.random.uniform(keys[2], (B, T)), cond


def made(model):
    x, t, cond = inputs()
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), x, t, cond))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten(
        [a + 0.05 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    )
    return params, jax.jit(lambda p, x, t, cond, memory=None: model.apply(p, x, t, cond, memory))


@pytest.fixture(scope="module")
def model():
    small = dict(width=32, repeats=1, head=8, scan_head=8, state=4, window=(2, 2, 2), chunk=16)
    return made(lingen(**small, channels=C, text_width=16))


def test_a_frame_hears_its_own_caption_through_the_cross_attention():
    """With mixers that keep to their token, a caption reaches exactly the frames of its span."""
    params, run = made(
        VideoDiT(
            mixers=(Attention(head=8, causal=True, window=0),), width=32, head=8, channels=C, text_width=16
        )
    )
    x, t, cond = inputs()
    before, _ = run(params, x, t, cond)
    after, _ = run(params, x, t, cond | {"text": cond["text"].at[:, 1].add(1.0)})
    moved = np.abs(np.asarray(before - after)).max((2, 3, 4)) > 1e-6
    np.testing.assert_array_equal(moved, np.asarray(cond["span"]) == 1)


def test_padding_of_the_text_does_not_matter(model):
    params, run = model
    x, t, cond = inputs()
    noisy = jnp.where(cond["text_mask"][..., None], cond["text"], 9.0)
    np.testing.assert_allclose(
        run(params, x, t, cond)[0], run(params, x, t, cond | {"text": noisy})[0], atol=1e-6
    )


def test_dropped_captions_are_the_null_text(model):
    params, run = model
    x, t, cond = inputs()
    dropped, _ = run(params, x, t, cond | {"drop": jnp.ones((B,), bool)})
    other = cond | {"drop": jnp.ones((B,), bool), "text": cond["text"] + 3.0}
    np.testing.assert_array_equal(dropped, run(params, x, t, other)[0])
    np.testing.assert_allclose(dropped, run(params, x, t, {"span": cond["span"]})[0], atol=1e-5)
    half, _ = run(params, x, t, cond | {"drop": jnp.array([True, False])})
    np.testing.assert_allclose(half[0], dropped[0], atol=1e-5)
    np.testing.assert_allclose(half[1], run(params, x, t, cond)[0][1], atol=1e-5)


def test_levels_and_given_frames_reach_the_network(model):
    params, run = model
    x, t, cond = inputs()
    base, _ = run(params, x, t, cond)
    assert np.abs(base - run(params, x, t.at[:, 2].add(0.3), cond)[0]).max() > 1e-4
    given = jnp.zeros((B, T), bool).at[:, 0].set(True)
    assert np.abs(base - run(params, x, t, cond | {"given": given})[0]).max() > 1e-4
    np.testing.assert_allclose(base, run(params, x, t, cond | {"given": ~given & given})[0], atol=1e-6)


def test_spans_that_share_a_caption_are_one_span(model):
    params, run = model
    x, t, cond = inputs()
    twice = cond | {"text": cond["text"].at[:, 1].set(cond["text"][:, 0])}
    once = {"text": cond["text"][:, :1], "text_mask": cond["text_mask"][:, :1]}
    np.testing.assert_allclose(run(params, x, t, twice)[0], run(params, x, t, once)[0], atol=1e-5)


def test_early_layers_may_hear_another_caption():
    """In the first half of the depth `early_span` takes the place of `span`; the same spans are the same answer."""
    model = VideoDiT(
        mixers=(Window((1, 2, 2), head=8),),
        repeats=2,
        width=16,
        head=8,
        channels=3,
        patch=(1, 1, 1),
        text_width=16,
    )
    x, t, cond = inputs()
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), x, t, cond))
    params = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
    run = jax.jit(lambda params, cond: model.apply(params, x, t, cond)[0])
    other = {**cond, "early_span": 1 - cond["span"]}
    plain, same = run(params, cond), run(params, {**cond, "early_span": cond["span"]})
    np.testing.assert_allclose(plain, same, atol=1e-6)
    assert np.abs(plain - run(params, other)).max() > 1e-3
    for layer, hears in ((0, False), (1, True)):  # one layer after the other is deaf to captions
        deaf = jax.tree_util.tree_map_with_path(
            lambda path, a, n=layer: a.at[n].set(0) if "'cross'" in str(path) and "'out'" in str(path) else a,
            params,
        )
        assert (np.abs(run(deaf, cond) - run(deaf, other)).max() > 1e-3) == hears


def test_a_causal_model_streams():
    mixers = (
        Mamba(order=0, causal=True, review=None, block=2, head=8, state=4, chunk=16),
        Attention(head=8, causal=True, window=4, block=2),
    )
    model = VideoDiT(
        mixers=mixers, repeats=2, width=32, head=8, channels=C, text_width=16, refine=Refine(8, 1)
    )
    params, run = made(model)
    x, t, cond = inputs()
    assert model.causal
    whole, none = run(params, x, t, cond)
    assert none is None
    memory = start = model.init_memory(B, H, W)
    parts = []
    for a in (0, 2):
        part = cond | {"span": cond["span"][:, a : a + 2]}
        y, memory = run(params, x[:, a : a + 2], t[:, a : a + 2], part, memory)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=3e-5)
    assert jax.tree.structure(memory) == jax.tree.structure(start)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), memory) == jax.tree.map(
        lambda a: (a.shape, a.dtype), start
    )


def test_a_bidirectional_model_has_no_memory():
    assert not lingen().causal
    assert lingen().init_memory(1, 8, 8) is None


def test_wrong_inputs_are_named(model):
    params, run = model
    x, t, cond = inputs()
    with pytest.raises(InputError, match="channels"):
        run(params, x[..., :2], t, cond)
    with pytest.raises(InputError, match="patch"):
        run(params, x[:, :, :3], t, cond)
    with pytest.raises(InputError, match="text"):
        run(params, x, t, {"text": cond["text"][:, 0]})


@pytest.mark.parametrize("make, billions", [(lingen_4b, 4.0), (dit_4b, 4.0)])
def test_the_large_presets_have_the_size_of_their_names(make, billions):
    model = make()
    x = jax.ShapeDtypeStruct((1, 2, 16, 16, 16), "float32")
    cond = {"text": jax.ShapeDtypeStruct((1, 1, 8, 4096), "float32")}
    params = jax.eval_shape(model.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1, 2), "float32"), cond)
    count = sum(np.prod(a.shape) for a in jax.tree.leaves(nn.unbox(params)))
    assert abs(count / 1e9 - billions) < 0.4, count


def test_tokens_are_encoded_where_there_is_no_text():
    model = TextToVideo(
        dit(32, 1, head=8, channels=C, text_width=16), ByteTextEncoder(width=16, layers=1, head=8)
    )
    tokens = jnp.asarray(np.stack([encode_text("a red star", 24), encode_text("é", 24)]))[:, None]
    x, t, _ = inputs()
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), x, t, {"tokens": tokens}))
    params = jax.tree.map(lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    text = model.apply(params, tokens, method="encode_text")
    assert text["text"].shape == (2, 1, 24, 16)
    np.testing.assert_array_equal(text["text_mask"].sum(-1)[:, 0], [10, 2])
    run = jax.jit(lambda cond: model.apply(params, x, t, cond)[0])
    np.testing.assert_allclose(run({"tokens": tokens}), run(text), atol=1e-5)


def test_pooled_embeddings_average_real_neighbours():
    tokens = jnp.asarray(encode_text("a blue s", 10))[None]
    one, four = (ByteTextEncoder(width=16, layers=1, head=8, pool=n) for n in (1, 4))
    params = nn.unbox(one.init(jax.random.key(0), tokens))
    _, mask = one.apply(params, tokens)
    y, pooled = four.apply(params, tokens)
    assert mask.sum() == 8 and y.shape == (1, 3, 16)
    np.testing.assert_array_equal(pooled[0], [True, True, False])
    # an average does not know the order of its four bytes, and nothing else of them is seen
    z, _ = four.apply(params, tokens[:, np.array([3, 1, 0, 2, 7, 6, 5, 4, 8, 9])])
    np.testing.assert_allclose(y[0, :2], z[0, :2], atol=1e-5)
    moved, _ = four.apply(params, tokens[:, np.array([4, 1, 2, 3, 0, 5, 6, 7, 8, 9])])
    assert np.abs(y - moved)[0, :2].max() > 1e-3


def test_runs_of_bytes_have_embeddings_of_their_own():
    a, b = (jnp.asarray(encode_text(t, 16))[None] for t in ("a red star", "one red ring"))
    x, y = (runs_of_bytes(t, 4, 4096)[0] for t in (a, b))
    assert x[4] == y[6], "the same four bytes, wherever they are"
    assert x[4] != x[9] and x[4] != y[7]
    many = jnp.asarray(np.random.default_rng(0).integers(1, 257, (1, 4096)))
    counts = np.bincount(np.asarray(runs_of_bytes(many, 3, 64))[0], minlength=64)
    assert counts.min() > 30 and counts.max() < 110, "about 64 in each bucket"
    encoder = ByteTextEncoder(width=16, layers=0, head=8, runs=(3, 5))
    params = nn.unbox(encoder.init(jax.random.key(0), a))
    changed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf.at[runs_of_bytes(a, 5, 4096)[0, 9]].add(1.0) if path[-1].key == "runs_embed" else leaf
        ),
        params,
    )
    moved = np.abs(np.asarray(encoder.apply(changed, a)[0] - encoder.apply(params, a)[0])).max((0, 2)) > 1e-6
    assert moved[9] and not moved[:9].any()


def test_padding_of_the_tokens_does_not_change_the_embedding():
    encoder = ByteTextEncoder(width=16, layers=1, head=8)
    params = nn.unbox(encoder.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32)))
    short, _ = encoder.apply(params, jnp.asarray(encode_text("blue", 8))[None])
    long, _ = encoder.apply(params, jnp.asarray(encode_text("blue", 12))[None])
    np.testing.assert_allclose(short[:, :4], long[:, :4], atol=1e-5)
