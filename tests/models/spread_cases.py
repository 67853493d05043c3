# SPDX-License-Identifier: Apache-2.0
"""What `test_spread.py` runs in an interpreter of its own, with four CPU devices: two steps of training, and a video.

Prints JSON: mesh -> the largest relative differences of losses and of the video to one device.
"""

import json
import sys

from tests import conftest  # noqa: F401  the rules of all tests, before JAX

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
import optax

from jaxvid.diffusion.levels import Vectorised
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import RectifiedFlow
from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.mixers.mate import mate
from jaxvid.nn.refine import Refine
from jaxvid.sampling.plan import time_table, together
from jaxvid.sampling.sample import sample
from jaxvid.sampling.solvers import by_name
from jaxvid.sharding import make_mesh, put_batch, spread
from jaxvid.training.step import make_init, make_train_step, state_sharding
from jaxvid.training.task import DiffusionTask
from jaxvid.types import Video

SMALL = dict(window=(2, 2, 4), head=8, window_head=8, state=4, expand=1)
# a scan across frames with review tokens and shifted windows; attention in zig-zag or with a halo
MIXERS = (mate(3, **SMALL), Attention(head=8, causal=True, block=2, window=3))
MODEL = VideoDiT(
    mixers=MIXERS, width=16, channels=3, patch=(1, 2, 2), head=8, text_width=8, refine=Refine(8, 1)
)
PROCESS = Process(RectifiedFlow())
TASK, OPTIMIZER = DiffusionTask(MODEL, PROCESS, Vectorised(0.5)), optax.adam(1e-2)
MESHES = {"sequence": dict(data=1, sequence=4), "both": dict(data=1, fsdp=2, sequence=2)}


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def batch():
    span = np.repeat([[0, 1]], 4, 1).repeat(2, 0).astype(np.int32)
    cond = {"text": draw(2, 2, 5, 8), "text_mask": np.ones((2, 2, 5), bool), "span": span}
    return Video(draw(2, 8, 4, 8, 3), np.zeros((2, 8), np.float32), np.ones((2, 8), bool)), cond


def moved(params):
    """What begins at zero hides what is behind it."""
    return jax.tree.map(
        lambda p: p + 0.02 * np.cos(np.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )


def begin():
    """The state before the first step, on the host."""
    mesh, task, optimizer, data = make_mesh(devices=jax.devices()[:1]), TASK, OPTIMIZER, batch()
    _, places = state_sharding(mesh, task, optimizer, data)
    state = jax.device_get(make_init(task, optimizer, mesh, places)(jax.random.key(0), put_batch(data, mesh)))
    return state.replace(params=moved(state.params))


def run(mesh, state):
    """Losses and norms of gradients of two steps, and a video from what was learnt."""
    task, optimizer, data = TASK, OPTIMIZER, batch()
    _, places = state_sharding(mesh, task, optimizer, data)
    state = jax.device_put(state, places)
    step, losses = make_train_step(task, optimizer, mesh, places), []
    for _ in range(2):
        state, metrics = step(state, put_batch(data, mesh))
        losses += [float(metrics["loss"]), float(metrics["grad_norm"])]

    def video(params, noise):
        def network(x, t, cond, memory):
            return MODEL.apply({"params": params}, x, t, cond, memory)

        with spread(mesh):
            denoise = PROCESS.denoiser(network, jax.tree.map(jnp.asarray, data[1]))
            solver = by_name("euler", PROCESS.schedule)
            return sample(denoise, solver, together(2, 8), time_table(2, 1.0), noise)

    return np.asarray(losses), np.asarray(jax.jit(video)(state.params, draw(2, 8, 4, 8, 3, seed=1)))


def main():
    jax.config.update("jax_disable_most_optimizations", True)
    state = begin()
    print("begun", file=sys.stderr, flush=True)
    losses, video = run(make_mesh(devices=jax.devices()[:1]), state)
    print("one device", losses, file=sys.stderr, flush=True)
    found = {}
    for name, sizes in reversed(MESHES.items()):
        count = int(np.prod(list(sizes.values())))
        theirs, other = run(make_mesh(**sizes, devices=jax.devices()[:count]), state)
        apart = np.abs(theirs / losses - 1).max(), np.abs(other - video).max() / np.abs(video).max()
        found[name] = [float(a) for a in apart]
        print(name, found[name], file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
