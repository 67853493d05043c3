# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.sharding import make_mesh, put_batch
from jaxvid.training.optimizer import parts as apart
from jaxvid.training.step import make_eval_step, make_init, make_train_step, state_sharding
from jaxvid.types import InputError, Video
from tests.training.tiny import TinyTask, tiny_data, tiny_optimizer

EMA = 0.9


@pytest.fixture(scope="module")
def made():
    """(mesh, task, optimizer, batch, shardings, step): compiled once for the module."""
    mesh, task, optimizer = make_mesh(), TinyTask(), tiny_optimizer()
    with tiny_data() as data:
        batch = put_batch(next(b for b in data if b[0].x.shape[0] == 4), mesh)
    shardings = state_sharding(mesh, task, optimizer, batch)[1]
    return mesh, task, optimizer, batch, shardings, make_train_step(task, optimizer, mesh, shardings, ema=EMA)


def fresh(made, seed=0):
    mesh, task, optimizer, batch, shardings, _ = made
    return make_init(task, optimizer, mesh, shardings)(jax.random.key(seed), batch)


def host(tree):
    return jax.tree.map(np.array, tree)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_shapes_foretold_are_those_made(made):
    mesh, task, optimizer, batch, _, _ = made
    shapes, _ = state_sharding(mesh, task, optimizer, batch)
    state = fresh(made)
    jax.tree.map(
        lambda s, x: (s.shape, s.dtype) == (x.shape, x.dtype) or pytest.fail(f"{s} {x}"), shapes, state
    )


@dataclasses.dataclass(frozen=True)
class TwoTask:
    """Two networks of which neither knows the other."""

    one: TinyTask = TinyTask()

    def init(self, key, batch):
        made = dict(self.one.init(key, batch))
        return {**made, "params": dict.fromkeys(("left", "right"), made["params"])}

    def loss(self, variables, batch, key):
        return self.one.loss({**variables, "params": variables["params"]["left"]}, batch, key)


def test_parts_have_moments_where_their_parameters_lie(made):
    """An optimizer for each part: the one that learns moves, the one whose gradient is zero rests."""
    mesh, batch = made[0], made[3]
    task, optimizer = TwoTask(), apart(left=tiny_optimizer(), right=tiny_optimizer())
    shapes, shardings = state_sharding(mesh, task, optimizer, batch)
    assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(shapes))
    state = make_init(task, optimizer, mesh, shardings)(jax.random.key(0), batch)
    before = host(state.params)
    state, _ = make_train_step(task, optimizer, mesh, shardings)(state, batch)
    same(before["right"], state.params["right"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before["left"], host(state.params["left"]))
    assert max(jax.tree.leaves(moved)) > 0


def test_learning_lowers_the_loss_and_compiles_once(made):
    state, batch, step = fresh(made), made[3], made[5]
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert step._cache_size() == 1
    assert int(state.step) == 30 and int(state.skipped) == 0


def test_the_key_is_folded_with_the_step(made):
    state, batch, step = fresh(made), made[3], made[5]
    key = host(state.key)
    one, first = step(state, batch)
    same(host(one.key), key)
    _, second = step(fresh(made).replace(step=jnp.int32(1)), batch)
    assert float(first["loss"]) != float(second["loss"])
    _, again = step(fresh(made), batch)
    assert float(first["loss"]) == float(again["loss"])


def test_the_average_follows_its_law(made):
    state, batch, step = fresh(made), made[3], made[5]
    average = host(state.ema)
    for n in range(4):
        state, _ = step(state, batch)
        decay = min(EMA, (1 + n) / (10 + n))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, host(state.params))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), host(state.ema), average
        )


def poisoned(batch, value):
    video, cond = batch
    return Video(x=video.x.at[0, 0, 0, 0, 0].set(value), sec=video.sec, ok=video.ok), cond


@pytest.mark.parametrize("value", [3.0, np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(made, value):
    state, batch, step = fresh(made), made[3], made[5]
    state, _ = step(state, batch)
    before = host(state)
    state, metrics = step(state, poisoned(batch, value))
    after = host(state)
    same(
        after.replace(step=None, skipped=None),
        before.replace(step=None, skipped=None),
    )
    assert int(after.step) == 2 and int(after.skipped) == 1 == int(metrics["skipped"])
    state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"]) and not np.array_equal(
        host(state.params)["Dense_0"]["kernel"], before.params["Dense_0"]["kernel"]
    )


class Plain(TinyTask):
    """Without noise: the gradient of a batch is the mean over its parts, exactly."""

    def loss(self, variables, batch, key):
        error = jnp.mean((self.model.apply(variables, batch[0].x) - batch[0].x) ** 2)
        return error, {}


def test_accumulation_is_the_whole_batch_at_once(made):
    mesh, _, optimizer, batch, shardings, _ = made
    states = []
    for parts in (1, 2, 4):
        step = make_train_step(Plain(), optimizer, mesh, shardings, accumulate=parts)
        state, metrics = step(fresh(made), batch)
        states.append((host(state.params), float(metrics["loss"]), float(metrics["grad_norm"])))
    for other in states[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), states[0], other)
    with pytest.raises(InputError, match="accumulate=3"):
        make_train_step(Plain(), optimizer, mesh, shardings, accumulate=3)(fresh(made), batch)


def test_evaluation_does_not_learn(made):
    mesh, task, _, batch, shardings, _ = made
    run = make_eval_step(task, mesh, shardings)
    state = fresh(made)
    one = run(state.ema, state.rest, batch, jax.random.key(1))
    two = run(state.ema, state.rest, batch, jax.random.key(1))
    assert float(one["loss"]) == float(two["loss"]) and "mse" in one


def test_rest_is_not_optimised(made):
    state = fresh(made)
    assert set(state.rest) == {"stats"}
    before = host(state.rest)
    state, _ = made[5](state, made[3])
    same(host(state.rest), before)


@pytest.mark.parametrize("wrong", [dict(ema=1.0), dict(ema=-0.1), dict(accumulate=0)])
def test_bad_settings(made, wrong):
    with pytest.raises(InputError):
        make_train_step(made[1], made[2], made[0], made[4], **wrong)


def test_any_mesh_learns_the_same(run_python):
    """One, two and four devices, copied and cut (fsdp), agree to rounding."""
    code = """
import jax, numpy as np
from jaxvid.sharding import make_mesh, put_batch
from jaxvid.training.step import make_init, make_train_step, state_sharding
from tests.training.tiny import TinyTask, tiny_data, tiny_optimizer
task, optimizer, out = TinyTask(), tiny_optimizer(), []
with tiny_data() as data:
    host = next(b for b in data if b[0].x.shape[0] == 4)
for data_ways, fsdp in ((1, 1), (4, 1), (2, 2), (1, 4)):
    mesh = make_mesh(data_ways, fsdp, devices=jax.devices()[: data_ways * fsdp])
    batch = put_batch(host, mesh)
    _, shardings = state_sharding(mesh, task, optimizer, batch)
    state = make_init(task, optimizer, mesh, shardings)(jax.random.key(0), batch)
    if fsdp > 1:
        kernel = state.params['Dense_0']['kernel']
        assert kernel.sharding.spec == jax.sharding.PartitionSpec(), kernel.sharding  # 3 rows do not divide
        assert state.params['table'].sharding.spec[1] == 'fsdp'
        assert state.opt_state[1][0].mu['table'].sharding.spec[1] == 'fsdp'
    step = make_train_step(task, optimizer, mesh, shardings)
    for _ in range(4):
        state, metrics = step(state, batch)
    assert step._cache_size() == 1
    out.append(jax.tree.map(np.asarray, (state.params, metrics['loss'])))
for other in out[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), out[0], other)
print('agree')
"""
    assert "agree" in run_python(code, devices=4)
