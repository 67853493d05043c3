# SPDX-License-Identifier: Apache-2.0
"""Students of a teacher that is known in closed form: videos whose every number is N(mean, spread^2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvid.diffusion.given import First
from jaxvid.diffusion.process import Process
from jaxvid.diffusion.schedule import over_frames
from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.attention import Attention
from jaxvid.training.distill import ConsistencyTask, MatchingTask
from jaxvid.training.optimizer import adamw, parts
from jaxvid.types import InputError, Video

MEAN, SPREAD, SHAPE = 0.8, 0.5, (64, 3, 2, 1, 2)


class Known(nn.Module):
    """The guess of the clean video at `way` 0, the end of the flow's trajectory at `way` 1; both for N(mean, SPREAD^2)."""

    @nn.compact
    def __call__(self, x, t, cond, memory=None):
        mean, way = (self.param(name, nn.initializers.zeros, ()) for name in ("mean", "way"))
        a, s = over_frames(1 - t, x), over_frames(t, x)
        variance = a**2 * SPREAD**2 + s**2
        guess = a * SPREAD**2 / variance
        end = SPREAD * jax.lax.rsqrt(variance)
        return mean + ((1 - way) * guess + way * end) * (x - a * mean), memory


def params(mean=MEAN, way=0.0):
    return {"mean": jnp.float32(mean), "way": jnp.float32(way)}


def batch(shape=SHAPE):
    x = MEAN + SPREAD * jax.random.normal(jax.random.key(7), shape)
    return Video(x=x, sec=jnp.zeros(shape[:2]), ok=jnp.ones(shape[:2], bool)), {}


PROCESS = Process(predicts="x0", loss_on="x0")


def consistency(steps):
    task = ConsistencyTask(Known(), PROCESS, steps=steps, shift=1.0, guidance=1.0)

    @jax.jit
    def slope(way, key):
        loss = lambda p: task.loss({"params": p, "teacher": params()}, batch(), key)[0]
        return jax.value_and_grad(loss)(params(way=way))

    return slope


def test_what_ends_every_trajectory_is_consistent_and_what_learns_goes_there():
    """The map of every point of a trajectory to its end has next to no loss, the less the finer the ladder; gradients lead
    to it from the teacher's own guess."""
    key, losses = jax.random.key(1), {}
    for steps in (8, 64):
        slope = consistency(steps)
        losses[steps] = [float(slope(jnp.float32(way), key)[0]) for way in (0.0, 1.0)]
        assert slope(jnp.float32(0.5), key)[1]["way"] < 0
        assert slope(jnp.float32(1.5), key)[1]["way"] > 0
    assert losses[8][1] < 0.2 * losses[8][0] and losses[64][1] < 0.2 * losses[8][1]


def test_given_frames_are_left_alone_by_both():
    video, _ = batch()
    for task in (
        ConsistencyTask(Known(), PROCESS, steps=4, guidance=1.0, given=First(3)),
        ConsistencyTask(Known(), PROCESS, steps=4, guidance=1.0, given=First(1)),
    ):
        variables = {"params": params(way=0.3), "teacher": params()}
        loss = lambda x, task=task, held=variables: task.loss(
            held, (video.replace(x=x), {}), jax.random.key(0)
        )[0]
        moved = jax.jit(jax.grad(loss))(video.x)
        n = task.given.n if task.given.n < 3 else 2  # a frame is always left
        assert np.all(moved[:, :n] == 0) and np.abs(moved[:, n:]).max() > 0


def matching(**options):
    task = MatchingTask(Known(), PROCESS, steps=2, shift=2.0, guidance=1.0, every=2, **options)

    @jax.jit
    def slope(student, critic, key):
        held = {"student": student, "critic": critic}
        loss = lambda p: task.loss({"params": p, "teacher": params()}, batch(), key)
        return jax.value_and_grad(loss, has_aux=True)(held)

    return task, slope


def turns(slope, student, critic):
    """(gradients of the student's steps, of the critic's steps)."""
    found = [slope(student, critic, jax.random.key(n)) for n in range(8)]
    mine = [g for (_, m), g in found if float(m["critic"]) == 0]
    others = [g for (_, m), g in found if float(m["critic"]) > 0]
    assert mine and others
    return mine, others


def test_the_gradient_leads_to_the_data_and_vanishes_there():
    _, slope = matching()
    away, critics = turns(slope, params(0.0), params(0.0))
    assert all(g["student"]["mean"] < 0 for g in away)  # smaller than the data's mean
    assert all(g["critic"]["mean"] == g["critic"]["way"] == 0 for g in away)
    assert all(g["student"]["mean"] == g["student"]["way"] == 0 for g in critics)
    assert all(g["critic"]["mean"] != 0 for g in critics)
    there, _ = turns(slope, params(), params())
    assert all(g["student"]["mean"] == g["student"]["way"] == 0 for g in there)


def test_a_student_and_its_critic_learn_the_teachers_mean():
    task, _ = matching()
    optimizer = parts(student=optax.sgd(0.3), critic=optax.sgd(0.3))
    learned = {"student": params(0.0), "critic": params(0.0)}

    @jax.jit
    def train(learned, key):
        def step(carry, key):
            held, state = carry
            loss = lambda p: task.loss({"params": p, "teacher": params()}, batch((16, 2, 1, 1, 2)), key)[0]
            updates, state = optimizer.update(jax.grad(loss)(held), state, held)
            return (optax.apply_updates(held, updates), state), held["student"]["mean"]

        return jax.lax.scan(step, (learned, optimizer.init(learned)), jax.random.split(key, 400))[1]

    means = np.asarray(train(learned, jax.random.key(2)))
    assert means[0] == 0 and abs(means[-100:].mean() - MEAN) < 0.15


def test_a_causal_student_learns_on_roll_outs_of_its_own():
    """Each block is behind what the student made before it, not behind the data."""
    student = VideoDiT(
        mixers=(Attention(head=8, causal=True, window=4, block=2),),
        width=16,
        head=8,
        channels=3,
        patch=(1, 1, 1),
    )
    judge = VideoDiT(mixers=(Attention(head=8),), width=16, head=8, channels=3, patch=(1, 1, 1))
    task = MatchingTask(student, PROCESS, score=judge, steps=2, block=2, every=2, guidance=2.0)
    video, cond = batch((2, 4, 2, 2, 3))
    cond = {"text": jnp.zeros((2, 1, 1, 128)), "span": jnp.zeros((2, 4), jnp.int32)}
    optimizer = parts(student=adamw(1e-3, b1=0.0), critic=adamw(1e-3, b1=0.0))
    variables = nn.unbox(jax.jit(task.init)(jax.random.key(0), (video, cond)))
    assert set(variables["params"]) == {"student", "critic"}
    jax.tree.map(np.testing.assert_array_equal, variables["teacher"], variables["params"]["critic"])
    learned = jax.tree.map(
        lambda a: a + 0.02 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), variables["params"]
    )
    state = optimizer.init(learned)

    @jax.jit
    def step(learned, state, x, key):
        loss = lambda p: task.loss(
            {"params": p, "teacher": variables["teacher"]}, (video.replace(x=x), cond), key
        )
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(learned)
        updates, state = optimizer.update(grads, state, learned)
        return metrics, optax.apply_updates(learned, updates)

    moved = set()
    for n in range(5):
        metrics, after = step(learned, state, video.x, jax.random.key(n))
        other, _ = step(learned, state, 0 * video.x, jax.random.key(n))
        assert metrics["loss"] == other["loss"]  # the data say only what to make
        change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, learned)
        size = {name: max(jax.tree.leaves(part)) for name, part in change.items()}
        assert sorted(v > 0 for v in size.values()) == [False, True] and np.isfinite(metrics["loss"])
        moved |= {name for name, v in size.items() if v > 0}
    assert moved == {"student", "critic"}


def test_what_cannot_be_is_refused():
    for wrong in (
        lambda: MatchingTask(Known(), PROCESS, every=1),
        lambda: MatchingTask(Known(), PROCESS, block=2),
        lambda: MatchingTask(Known(), PROCESS, steps=0),
        lambda: ConsistencyTask(Known(), PROCESS, corner=0.0),
        lambda: parts(),
    ):
        with pytest.raises(InputError):
            wrong()
