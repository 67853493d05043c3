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
from jaxvid.sampling.plan import make_level_plan
from jaxvid.training.distill import ConsistencyTask, MatchingTask
from jaxvid.training.optimizer import adamw, parts
from jaxvid.training.progressive import ProgressiveTask
from jaxvid.training.students import draw_rungs
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


def consistency(steps, lags):
    task = ConsistencyTask(Known(), PROCESS, steps=steps, shift=1.0, guidance=1.0, lags=lags)

    @jax.jit
    def slope(way, key):
        loss = lambda p: task.loss({"params": p, "teacher": params()}, batch(), key)[0]
        return jax.value_and_grad(loss)(params(way=way))

    return slope


@pytest.mark.parametrize("lags", [(0,), (0, 3)], ids=["level", "staircases"])
def test_what_ends_every_trajectory_is_consistent_and_what_learns_goes_there(lags):
    """The map of every point of a trajectory to its end has next to no loss, the less the finer the ladder; gradients lead
    to it from the teacher's own guess."""
    key, losses = jax.random.key(1), {}
    for steps in (8, 64):
        slope = consistency(steps, lags)
        losses[steps] = [float(slope(jnp.float32(way), key)[0]) for way in (0.0, 1.0)]
        assert slope(jnp.float32(0.5), key)[1]["way"] < 0
        assert slope(jnp.float32(1.5), key)[1]["way"] > 0
    assert losses[8][1] < 0.2 * losses[8][0] and losses[64][1] < 0.2 * losses[8][1]


def test_rungs_are_those_of_a_staircase():
    """Every row of the sampler's staircase is drawn, with what moves in it, and nothing else."""
    steps, frames = 4, 5
    for lag in (0, 1, 3):
        drawn = {tuple(map(int, row)) for row in draw_rungs(jax.random.key(3), 2000, frames, steps, (lag,))}
        plan = make_level_plan(frames, steps, lag)
        assert drawn == {tuple(map(int, row)) for row in plan.k}


@pytest.mark.parametrize("kind", [ConsistencyTask, ProgressiveTask])
def test_frames_that_have_not_begun_or_are_done_are_not_scored(kind):
    """Three frames, one on its way at a time: what the others hold changes nothing for a network that does not mix them."""
    task = kind(Known(), PROCESS, steps=2, shift=1.0, guidance=1.0, lags=(2,))
    video, _ = batch()
    loss = lambda x: task.loss(
        {"params": params(way=0.3), "teacher": params()}, (video.replace(x=x), {}), jax.random.key(5)
    )[0]
    moved = np.any(np.asarray(jax.jit(jax.grad(loss))(video.x)) != 0, axis=(2, 3, 4))
    assert moved.sum(1).max() == 1 and np.all(moved.any(0))  # at the first rung there is only noise


def test_the_boundary_is_the_end_of_the_teachers_last_step():
    """f(x, 0) = x: on the lowest rung the goal is where the teacher arrives, whatever the student would say there."""
    slope = consistency(1, (0,))
    (same, still), (other, moving) = (slope(jnp.float32(way), jax.random.key(1)) for way in (0.0, 1.0))
    assert abs(same) < 1e-6 and abs(still["way"]) < 1e-5
    assert other > 1e-2 and moving["way"] > 0


@pytest.mark.parametrize("lags", [(0,), (1,)], ids=["level", "staircases"])
def test_one_step_learns_to_arrive_where_the_teachers_several_steps_do(lags):
    """With one step inside, the teacher's own guess is right. With many, a student of one step in all should say the end
    of the trajectory; one step of the teacher itself does not get there."""
    slopes = {}
    for inner in (1, 32):
        options = dict(steps=1 if inner > 1 else 3, shift=1.0, inner=inner, guidance=1.0, lags=lags)
        task = ProgressiveTask(Known(), PROCESS, **options)
        loss = lambda p, task=task: task.loss({"params": p, "teacher": params()}, batch(), jax.random.key(2))[
            0
        ]
        slopes[inner] = jax.jit(jax.value_and_grad(loss))
    value, slope = slopes[1](params())
    assert value < 1e-6 and abs(slope["way"]) < 1e-4
    # at t = 1 Known says its mean whatever `way` is: the end of a trajectory from noise is mean + SPREAD * noise
    (near, _), (far, _) = slopes[32](params(way=1.0)), slopes[32](params())
    assert near < 0.1 * far


def test_given_frames_are_left_alone_by_both():
    video, _ = batch()
    for task in (
        ProgressiveTask(Known(), PROCESS, steps=4, guidance=1.0, given=First(3)),
        ProgressiveTask(Known(), PROCESS, steps=4, guidance=1.0, given=First(1)),
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


class Behind(nn.Module):
    """A causal student: a guess that leans on the mean of the clean frames before its block."""

    causal = True

    @nn.nowrap
    def init_memory(self, batch, height, width):
        return jnp.zeros((batch, height, width, SHAPE[-1]))

    @nn.compact
    def __call__(self, x, t, cond, memory=None):
        gain = self.param("gain", nn.initializers.constant(0.5), ())
        if memory is None:
            return jnp.tanh(gain * x), None
        return jnp.tanh(gain * x) + gain * memory[:, None], (memory + jnp.mean(x, 1)) / 2


def test_a_causal_student_learns_on_roll_outs_of_its_own():
    """Each block is behind what the student made before it, and not behind the data; student and critic take turns."""
    task = MatchingTask(Behind(), PROCESS, score=Known(), steps=2, block=2, every=2, guidance=1.0)
    video, cond = batch((2, 4, 2, 1, 2))
    variables = nn.unbox(task.init(jax.random.key(0), (video, cond)))
    assert set(variables["params"]) == {"student", "critic"} and set(variables["teacher"]) == {"mean", "way"}
    optimizer = parts(student=adamw(1e-2, b1=0.0), critic=adamw(1e-2, b1=0.0))
    state = optimizer.init(variables["params"])

    @jax.jit
    def step(params, x, key):
        loss = lambda p: task.loss(
            {"params": p, "teacher": {"mean": MEAN, "way": 0.0}}, (video.replace(x=x), cond), key
        )
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return metrics, optax.apply_updates(params, optimizer.update(grads, state, params)[0])

    moved = set()
    for n in range(5):
        metrics, after = step(variables["params"], video.x, jax.random.key(n))
        other, _ = step(variables["params"], 0 * video.x, jax.random.key(n))
        assert metrics["loss"] == other["loss"] and np.isfinite(metrics["loss"])  # data say only what to make
        changed = [
            name
            for name, part in after.items()
            if any(after[name][leaf] != variables["params"][name][leaf] for leaf in part)
        ]
        assert len(changed) == 1
        moved |= set(changed)
    assert moved == {"student", "critic"}
    student, given = variables["params"]["student"], jnp.zeros((2, 4), bool)
    make = lambda task: task.rollout(student, video.x, given, {}, 1, jax.random.key(5))
    alone = make(MatchingTask(Behind(), PROCESS, score=Known(), steps=2, every=2))
    np.testing.assert_allclose(make(task)[:, :2], alone[:, :2], atol=1e-6)
    assert np.abs(make(task)[:, 2:] - alone[:, 2:]).max() > 1e-3


def test_what_cannot_be_is_refused():
    for wrong in (
        lambda: MatchingTask(Known(), PROCESS, every=1),
        lambda: MatchingTask(Known(), PROCESS, block=2),
        lambda: MatchingTask(Known(), PROCESS, steps=0),
        lambda: ConsistencyTask(Known(), PROCESS, corner=0.0),
        lambda: ConsistencyTask(Known(), PROCESS, lags=()),
        lambda: ProgressiveTask(Known(), PROCESS, lags=(-1,)),
        lambda: ProgressiveTask(Known(), PROCESS, inner=0),
        lambda: ProgressiveTask(Known(), PROCESS, corner=0.0),
        lambda: ConsistencyTask(Known(), PROCESS, lags=(0, -1)),
        lambda: parts(),
    ):
        with pytest.raises(InputError):
            wrong()
