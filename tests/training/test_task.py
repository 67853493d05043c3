# SPDX-License-Identifier: Apache-2.0
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.given import Chance, Prefix
from jaxvid.diffusion.levels import Independent, OnePerClip, Scored
from jaxvid.diffusion.process import Process
from jaxvid.models.video_vae import micro
from jaxvid.training.task import AutoencoderTask, DecoderTask, DiffusionTask
from jaxvid.types import InputError, Video

B, T = 64, 6


@dataclasses.dataclass
class Seen:
    cond: dict
    t: object
    x: object


class Told:
    """What was said, in order; not a list, which a module would freeze."""

    def __init__(self):
        self.all = []


class Spy(nn.Module):
    """A network that guesses zero times a parameter and tells what it was told."""

    told: Told

    @nn.compact
    def __call__(self, x, t, cond, memory=None):
        self.told.all.append(Seen(dict(cond), t, x))
        return x * self.param("gain", nn.initializers.zeros, ()), memory


def batch(ok=None):
    x = np.random.default_rng(0).standard_normal((B, T, 2, 2, 3)).astype(np.float32)
    ok = np.ones((B, T), bool) if ok is None else ok
    cond = {"tokens": np.ones((B, 1, 4), np.int32), "span": np.zeros((B, T), np.int32)}
    return jax.tree.map(jnp.asarray, (Video(x=x, sec=np.zeros((B, T), np.float32), ok=ok), cond))


def ask(key=0, ok=None, **kw):
    told = Told()
    task = DiffusionTask(Spy(told), Process(), **{"levels": Independent(), **kw})
    variables = task.init(jax.random.key(0), batch(ok))
    told.all.clear()
    loss, metrics = task.loss(variables, batch(ok), jax.random.key(key))
    return loss, metrics, told.all[0]


def test_text_is_dropped_as_often_as_asked():
    for chance, most, least in ((0.0, 0, 0), (1.0, B, B), (0.25, 30, 4)):
        drop = ask(drop_text=chance)[2].cond["drop"]
        assert drop.shape == (B,) and drop.dtype == bool and least <= int(drop.sum()) <= most


def test_given_frames_are_shown_clean_and_not_scored():
    loss, metrics, seen = ask(given=Prefix(share=0.5), levels=OnePerClip())
    given = np.asarray(seen.cond["given"])
    assert given.any() and not given.all(1).any()
    np.testing.assert_array_equal(np.asarray(seen.t)[given], 0)
    np.testing.assert_array_equal(np.asarray(seen.x)[given], np.asarray(batch()[0].x)[given])
    np.testing.assert_allclose(metrics["scored"], 1 - given.mean(), rtol=1e-6)
    assert np.isfinite(loss)
    level = np.where(given, np.nan, seen.t)  # and the others have one level (Ca2-VDM)
    np.testing.assert_array_equal(np.nanmin(level, 1), np.nanmax(level, 1))


def test_far_scores_the_noised_ones_of_the_last_frames():
    """Stochastic clean context, before and among the frames that are scored."""
    _, metrics, seen = ask(given=Chance(0.3), levels=Scored(Independent(), 2))
    given = np.asarray(seen.cond["given"])
    scored = ~given & (np.arange(T) >= T - 2)
    assert given[:, T - 2 :].any() and given[:, : T - 2].any()
    np.testing.assert_allclose(metrics["scored"], scored.mean(), rtol=1e-6)


def test_padding_is_neither_given_nor_scored():
    ok = np.arange(T)[None] < np.arange(B)[:, None] % T + 1
    _, metrics, seen = ask(ok=ok, given=Prefix())
    assert not (np.asarray(seen.cond["given"]) & ~ok).any()
    assert float(metrics["scored"]) <= ok.mean()


def test_without_given_the_network_is_not_told_of_any():
    assert "given" not in ask()[2].cond


def test_a_key_decides_everything():
    assert float(ask(1)[0]) == float(ask(1)[0]) != float(ask(2)[0])


@pytest.mark.parametrize("chance", [-0.1, 1.1])
def test_chances_are_checked(chance):
    with pytest.raises(InputError, match="drop_text"):
        DiffusionTask(Spy(Told()), Process(), Independent(), drop_text=chance)


class Mirror(nn.Module):
    """An autoencoder of one gain, whose sample adds noise when it has a key."""

    @nn.compact
    def __call__(self, x, key=None):
        gain = self.param("gain", nn.initializers.ones, ())
        return gain * x + (0.0 if key is None else 0.1 * jax.random.normal(key, x.shape)), None


def test_autoencoders_learn_from_samples_of_real_frames():
    task = AutoencoderTask(Mirror(), {"haar": 0.0, "structure": 0.0, "gradient": 0.0})
    variables = task.init(jax.random.key(0), batch())
    x = np.asarray(batch()[0].x)
    loss, metrics = task.loss(variables, batch(), jax.random.key(1))
    np.testing.assert_allclose(metrics["l1"], 0.1 * np.sqrt(2 / np.pi), rtol=0.05)
    broken = np.where(np.arange(T)[None, :, None, None, None] < 3, x, np.nan).astype(np.float32)
    video = batch(np.broadcast_to(np.arange(T) < 3, (B, T)))[0].replace(x=jnp.asarray(broken))
    assert np.isfinite(task.loss(variables, (video, {}), jax.random.key(1))[0])


def test_the_decoder_learns_alone():
    model = micro(base=4, temporal_init="random")
    x = jax.random.uniform(jax.random.key(0), (2, 3, 8, 8, 3), minval=-1.0)
    batch = Video(x=x, sec=jnp.zeros((2, 3)), ok=jnp.ones((2, 3), bool)), {}
    task = DecoderTask(model, {"haar": 0.0, "structure": 0.0, "l2": 1.0}, noise=0.1)
    variables = nn.unbox(task.init(jax.random.key(1), batch))
    rest = {k: v for k, v in variables.items() if k != "params"}

    def loss(params, key):
        return task.loss({"params": params, **rest}, batch, key)[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(variables["params"], jax.random.key(2))
    other = jax.jit(loss)(variables["params"], jax.random.key(3))
    sizes = {
        name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(part))
        for name, part in grads.items()
    }
    assert sizes["encoder"] == sizes["quant_conv"] == 0
    assert sizes["decoder"] > 0 and sizes["post_quant_conv"] > 0
    assert value != other, "the noise in the latents is drawn by the key"
