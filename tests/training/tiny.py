# SPDX-License-Identifier: Apache-2.0
"""A model, a task and a source that compile in a moment: stand-ins for the tests of training."""

import dataclasses
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jaxvid.config import call
from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw, cosine


class TinyNet(nn.Module):
    """Pixels to pixels, with a parameter of every kind: a matrix, a bias, a table and a scan's A_log."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        table = self.param(
            "table", nn.with_logical_partitioning(nn.initializers.ones, (None, "embed")), (1, self.width)
        )
        a_log = self.param("A_log", nn.initializers.zeros, (self.width,))
        self.variable("stats", "mean", jnp.zeros, (3,))
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        scale = jnp.broadcast_to(table[0] * jnp.exp(a_log), (*x.shape[:-1], self.width))
        h = nn.Dense(self.width, kernel_init=init)(x) * scale
        return nn.Dense(x.shape[-1])(nn.tanh(h))


@dataclasses.dataclass(frozen=True)
class TinyTask:
    """Give back a noisy clip; `poison` makes the loss NaN wherever a clip's first pixel is above it."""

    model: nn.Module = TinyNet()
    poison: float = 2.0

    def init(self, key, batch):
        return self.model.init(key, batch[0].x)

    def loss(self, variables, batch, key):
        x = batch[0].x
        noise = 0.1 * jax.random.normal(key, x.shape)
        error = jnp.mean((self.model.apply(variables, x + noise) - x) ** 2)
        error = jnp.where(jnp.max(x[:, 0, 0, 0, 0]) > self.poison, jnp.nan, error)
        return error, {"mse": error}


@dataclasses.dataclass(frozen=True)
class TinySource:
    """Clips of noise, the same for the same index; `slow` seconds each."""

    size: int = 12
    slow: float = 0.0

    def __len__(self):
        return self.size

    def clip(self, index: int, shape: ClipShape) -> Sample:
        time.sleep(self.slow)
        pixels = np.random.default_rng(index).integers(0, 256, (shape.frames, shape.height, shape.width, 3))
        return Sample(pixels.astype(np.uint8), ((0, f"clip {index}"),))

    def key(self, index: int, shape: ClipShape) -> str:
        return f"tiny {index} {shape}"


BUCKETS = (Bucket(frames=2, height=4, width=4, batch=4), Bucket(frames=1, height=4, width=4, batch=8))


def tiny_data(source=None, buckets=BUCKETS, **kw):
    return batches(source or TinySource(), buckets, fps=4.0, seed=3, text_length=8, threads=0, **kw)


def tiny_optimizer(steps: int = 100):
    return adamw(rate=cosine(1e-2, steps, 3))


def get_config():
    """A run of one stage, as a config file writes it."""
    c = ml_collections.ConfigDict()
    c.seed = 1
    c.order = ("only",)
    c.stages = ml_collections.ConfigDict()
    c.stages.only = ml_collections.ConfigDict(
        dict(
            task=call(TinyTask, model=call(TinyNet)),
            source=call(TinySource),
            held_out=call(TinySource, size=4),
            data=call(
                batches,
                buckets=(call(Bucket, frames=2, height=4, width=4, batch=4),),
                fps=4.0,
                seed=3,
                text_length=8,
                threads=0,
            ),
            optimizer=call(optax.adam, learning_rate=1e-2),
            train=call(Settings, steps=30, save_every=5, log_every=5),
            evaluate=dict(batches=1),
        )
    )
    return c
