# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's laws: chunks equal the whole, an image is frame 0, the past ignores the future, wrong sizes say so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.models import video_vae
from jaxvid.models.vae_blocks import average_down, patchify, repeat_up, unpatchify
from jaxvid.types import InputError

ATOL = 2e-5
SIZE = (8, 12)
MODELS = {
    "plain": video_vae.micro(mult=(1, 1, 2), temporal=(True, True), base=4),
    "residual": video_vae.micro(
        mult=(1, 2, 2), temporal=(False, True), base=4, patch=2, residual=True, dec_base=6
    ),
}


def variables_of(model, key=0, noise=0.1, frames=1, size=(16, 16)):
    """Fresh variables with everything that begins as zero disturbed."""
    keys = jax.random.split(jax.random.key(key))
    variables = jax.jit(model.init)(keys[0], jnp.zeros((1, frames, *size, 3)))
    leaves, tree = jax.tree.flatten(variables["params"])
    draws = jax.random.split(keys[1], len(leaves))
    leaves = [leaf + noise * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, draws, strict=True)]
    stats = {"mean": jnp.array([0.5, -1.0, 2.0, 0.0]), "std": jnp.array([2.0, 0.5, 1.0, 3.0])}
    return {"params": jax.tree.unflatten(tree, leaves), "stats": stats}


@functools.cache
def compiled(model, method):
    """`model.apply`, compiled; arguments after the second array are static."""

    def run(variables, x, memory=None, *static):
        more = (memory, *static) if static else ()
        return model.apply(variables, x, *more, method=method)

    return jax.jit(run, static_argnums=(3,))


class Running:
    """A model with parameters whose methods are compiled once."""

    def __init__(self, model):
        self.model, self.variables = model, variables_of(model)

    @functools.cache  # noqa: B019
    def method(self, name):
        def run(variables, *args, first=None):
            more = () if first is None else (first,)
            return self.model.apply(variables, *args, *more, method=name)

        return jax.jit(run, static_argnames="first")

    def __getattr__(self, name):
        return functools.partial(self.method(name), self.variables)


@pytest.fixture(scope="module", params=sorted(MODELS))
def running(request):
    return Running(MODELS[request.param])


def side(model):
    return 2 * model.space_factor, 3 * model.space_factor


def clip_for(model, frames, batch=2):
    return jnp.tanh(jax.random.normal(jax.random.key(5), (batch, frames, *side(model), 3)))


def latents_for(model, frames, batch=2):
    return jax.random.normal(jax.random.key(6), (batch, frames, 2, 3, model.z))


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (1, 3), (3, 1)])
def test_chunks_equal_the_whole(running, chunks):
    model, n = running.model, running.model.time_factor
    x = clip_for(model, 1 + 3 * n)
    whole = running.encode(x)
    memory, start, means, logvars = model.init_encode_memory(2, *side(model)), 0, [], []
    for i, latents in enumerate(chunks):
        stop = start + n * latents - (i == 0) * (n - 1)
        part, memory = running.encode_chunk(x[:, start:stop], memory, first=i == 0)
        means.append(part.mean), logvars.append(part.logvar)
        start = stop
    np.testing.assert_allclose(jnp.concatenate(means, 1), whole.mean, atol=ATOL)
    np.testing.assert_allclose(jnp.concatenate(logvars, 1), whole.logvar, atol=ATOL)

    z = latents_for(model, 4)
    frames = running.decode(z)
    memory, out = model.init_decode_memory(2, 2, 3), []
    for i, part in enumerate(jnp.split(z, np.cumsum(chunks)[:-1], axis=1)):
        part, memory = running.decode_chunk(part, memory, first=i == 0)
        out.append(part)
    assert frames.shape == (2, 1 + 3 * n, *side(model), 3)
    np.testing.assert_allclose(jnp.concatenate(out, 1), frames, atol=ATOL)


def test_an_image_is_frame_0(running):
    x = clip_for(running.model, 1 + running.model.time_factor)
    np.testing.assert_allclose(running.encode(x[:, :1]).mean, running.encode(x).mean[:, :1], atol=ATOL)
    z = latents_for(running.model, 2)
    np.testing.assert_allclose(running.decode(z[:, :1]), running.decode(z)[:, :1], atol=ATOL)


def test_the_past_ignores_the_future(running):
    n = running.model.time_factor
    x = clip_for(running.model, 1 + 3 * n)
    other = x.at[:, 1 + n :].set(0.3)  # everything after the second group
    a, b = running.encode(x).mean, running.encode(other).mean
    np.testing.assert_allclose(a[:, :2], b[:, :2], atol=1e-6)
    assert jnp.max(jnp.abs(a[:, 2:] - b[:, 2:])) > 1e-3
    z = latents_for(running.model, 4)
    a, b = running.decode(z), running.decode(z.at[:, 2:].set(0.3))
    np.testing.assert_allclose(a[:, : 1 + n], b[:, : 1 + n], atol=1e-6)
    assert jnp.max(jnp.abs(a[:, 1 + n :] - b[:, 1 + n :])) > 1e-3


def test_memory_is_a_fixed_point_and_compiles_once():
    model = MODELS["plain"]
    variables, traces = variables_of(model), []

    @functools.partial(jax.jit, static_argnames="first")
    def step(z, memory, first):
        traces.append(first)
        return model.apply(variables, z, memory, first, method="decode_chunk")

    z, memory = latents_for(model, 1), model.init_decode_memory(2, 2, 3)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), memory)
    for i in range(4):
        _, memory = step(z, memory, first=i == 0)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), memory) == described
    assert traces == [True, False]
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(memory))

    def body(memory, z):
        frames, memory = model.apply(variables, z, memory, False, method="decode_chunk")
        return memory, frames

    z = latents_for(model, 5)
    first, memory = compiled(model, "decode_chunk")(variables, z[:, :1], None, True)
    _, rest = jax.jit(functools.partial(jax.lax.scan, body))(memory, jnp.moveaxis(z[:, 1:], 1, 0)[:, :, None])
    rest = jnp.moveaxis(rest, 0, 1).reshape(2, -1, *first.shape[2:])
    whole = compiled(model, "decode")(variables, z)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), whole, atol=ATOL)


def test_tail_initialisation_is_an_image_autoencoder():
    model = MODELS["plain"]
    variables = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 1, *side(model), 3)))
    n = model.time_factor
    x = clip_for(model, 1 + 2 * n)
    images = compiled(model, "encode")(variables, x[:, ::n].reshape(-1, 1, *x.shape[2:])).mean
    means = compiled(model, "encode")(variables, x).mean
    np.testing.assert_allclose(means.reshape(images.shape), images, atol=ATOL)
    z = latents_for(model, 3)
    frames = compiled(model, "decode")(variables, z)
    images = compiled(model, "decode")(variables, z.reshape(-1, 1, *z.shape[2:])).reshape(
        2, 3, *frames.shape[2:]
    )
    want = jnp.concatenate([images[:, :1], jnp.repeat(images[:, 1:], n, axis=1)], axis=1)
    np.testing.assert_allclose(frames, want, atol=ATOL)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, x[:, :1])[0] ** 2)))(
        variables["params"]
    )
    for path, leaf in jax.tree.leaves_with_path(gradient):
        if leaf.ndim == 5 and leaf.shape[1] == 3:  # an image neither moves nor meets the earlier taps
            assert not jnp.any(leaf[:2]), path
    random = jax.jit(model.clone(temporal_init="random").init)(jax.random.key(3), x[:1, :1])
    assert jnp.any(random["params"]["encoder"]["conv_in"]["kernel"][0] != 0)


def test_no_nan_from_black_or_zero():
    model = MODELS["residual"]
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1, *side(model), 3)))

    def loss(params, x):
        frames, posterior = model.apply({"params": params}, x)
        return jnp.sum(frames**2) + jnp.sum(posterior.mean**2 + posterior.logvar**2)

    run = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for value in (0.0, -1.0):
        for leaf in jax.tree.leaves(run(variables["params"], jnp.full((1, 3, *side(model), 3), value))):
            assert np.isfinite(leaf).all()


def test_statistics_normalise(running):
    x = clip_for(running.model, 1 + running.model.time_factor)
    mean, std = (np.asarray(running.variables["stats"][name]) for name in ("mean", "std"))
    latents = running.to_latents(x)
    np.testing.assert_allclose(latents, (np.asarray(running.encode(x).mean) - mean) / std, atol=1e-5)
    np.testing.assert_allclose(
        running.from_latents(latents),
        running.decode(jnp.asarray(np.asarray(latents) * std + mean)),
        atol=1e-5,
    )
    part, _ = running.to_latents_chunk(x, running.model.init_encode_memory(2, *x.shape[2:4]), first=True)
    np.testing.assert_allclose(part, latents, atol=1e-5)
    with pytest.raises(InputError, match="no latent statistics"):
        running.model.apply({"params": running.variables["params"]}, x, method="to_latents")


def test_round_trip_samples_with_a_key(running):
    x = clip_for(running.model, 1)
    apply = jax.jit(lambda *given: running.model.apply(running.variables, *given))
    sure, posterior = apply(x)
    drawn, _ = apply(x, jax.random.key(0))
    assert posterior.mean.shape == (2, 1, 2, 3, 4)
    assert jnp.max(jnp.abs(sure - drawn)) > 1e-4
    np.testing.assert_allclose(jnp.clip(sure, -1, 1), running.decode(posterior.mean), atol=ATOL)


@pytest.mark.parametrize(
    "frames,first,near",
    [(2, True, 1), (4, True, 5), (7, True, 9), (0, True, 1), (6, False, 8), (1, False, 4)],
)
def test_wrong_lengths_name_the_nearest(frames, first, near):
    model = MODELS["plain"]
    with pytest.raises(InputError, match=rf"{frames} frames .* give {near}$"):
        model.check_frames(frames, first)
    with pytest.raises(InputError):
        jax.eval_shape(
            lambda x: model.init_with_output(jax.random.key(0), x, None, first, method="encode_chunk"),
            jnp.zeros((1, frames, 8, 8, 3)),
        )


def test_wrong_sizes_name_the_nearest():
    with pytest.raises(InputError, match=r"9x31 .* multiples of 4; resize to 8x32$"):
        MODELS["plain"].latent_shape(5, 9, 31)
    with pytest.raises(
        InputError, match=r"shape \(1, 2, 2, 2, 3\) cannot be decoded; give \[B, F, h, w, 4\]"
    ):
        MODELS["plain"].check_latents(jnp.zeros((1, 2, 2, 2, 3)))
    with pytest.raises(InputError, match="temporal"):
        video_vae.micro(temporal=(True, True)).init(jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))
    with pytest.raises(InputError, match="residual"):
        video_vae.micro(residual=True, mult=(1, 2), base=5).init(
            jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3))
        )
    with pytest.raises(InputError, match="temporal_init"):
        video_vae.micro(temporal_init="centre").init(jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))


def test_latent_sizes():
    model = video_vae.shapes()
    assert (model.time_factor, model.space_factor, model.z) == (4, 8, 16)
    assert [model.latent_frames(t) for t in (1, 2, 5, 6, 61, 960)] == [1, 2, 2, 3, 16, 241]
    assert model.latent_shape(61, 64, 48) == (16, 8, 6, 16)


@pytest.mark.parametrize(
    "name,millions", [("tiny", 0.9), ("small", 14.2), ("wan21", 126.9), ("wan22", 704.7)]
)
def test_parameter_counts(name, millions):
    model = getattr(video_vae, name)()
    assert round(video_vae.count_parameters(model) / 1e6, 1) == millions


def test_the_shipped_size_is_small():
    assert video_vae.count_parameters(video_vae.shapes()) * 2 <= 8e6  # bytes in bfloat16


def test_bf16_stays_near_and_keeps_float32_around():
    model = MODELS["plain"]
    variables = variables_of(model)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    half = model.clone(dtype=jnp.bfloat16)
    x = clip_for(model, 5)
    want, got = (compiled(m, "encode")(variables, x) for m in (model, half))
    assert got.mean.dtype == jnp.float32
    assert jnp.max(jnp.abs(want.mean - got.mean)) < 0.1 * jnp.std(want.mean) + 0.05
    frames, memory = compiled(half, "decode_chunk")(variables, want.mean, None, True)
    assert frames.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(memory)} == {jnp.dtype("bfloat16")}


def test_remat_changes_nothing():
    model = MODELS["plain"]
    variables = variables_of(model)
    x = clip_for(model, 5, batch=1)

    def gradient(model):
        return jax.jit(jax.grad(lambda p: jnp.mean(model.apply({"params": p}, x)[0] ** 2)))(
            variables["params"]
        )

    for a, b in zip(
        jax.tree.leaves(gradient(model)), jax.tree.leaves(gradient(model.clone(remat=True))), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3)


def test_patches_and_shortcuts_are_their_definitions():
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 6, 2))
    patches = patchify(x, 2)
    for c, row, column in np.ndindex(2, 2, 2):  # channels run (channel, column, row)
        np.testing.assert_array_equal(patches[..., c * 4 + column * 2 + row], x[:, :, row::2, column::2, c])
    np.testing.assert_array_equal(unpatchify(patches, 2), x)
    down = average_down(x, 4, 2, 2, True)
    assert down.shape == (1, 2, 2, 3, 4)
    block = np.asarray(x[0, 1:3, 0:2, 2:4, 0]).reshape(-1)  # frames 1 and 2; 8 values make channels 0 and 1
    np.testing.assert_allclose(down[0, 1, 0, 1, :2], block.reshape(2, 4).mean(1), rtol=1e-5)
    np.testing.assert_allclose(down[0, 0, 0, 1, 0], 0, atol=1e-7)  # of the zero frame in front of frame 0
    up = repeat_up(x, 1, 2, 2, True)
    assert up.shape == (1, 5, 8, 12, 1)
    np.testing.assert_array_equal(repeat_up(x[:, 1:], 1, 2, 2, False), up[:, 1:])
