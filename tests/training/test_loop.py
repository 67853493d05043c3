# SPDX-License-Identifier: Apache-2.0
import os
import signal

import jax
import numpy as np
import pytest

from jaxvid.io.checkpoint import Checkpoints, load_ema, load_meta
from jaxvid.sharding import make_mesh
from jaxvid.training.loop import Settings, run
from jaxvid.types import InputError
from tests.training.tiny import BUCKETS, TinySource, TinyTask, tiny_data, tiny_optimizer

N = 7


class Spy:
    """A tracker that remembers, and may send this process a signal at a step."""

    def __init__(self, at=None):
        self.rows, self.at = {}, at

    def scalars(self, step, values):
        self.rows.setdefault(step, {}).update(values)
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)

    def video(self, step, name, frames, fps):
        pass

    def close(self):
        pass


def train(
    folder, steps, *, task=None, source=None, spy=None, evaluate=None, said=None, buckets=1, **settings
):
    """A run in a folder; returns the result and the next batch that it would read."""
    with (
        tiny_data(source, BUCKETS[:buckets]) as data,
        Checkpoints(folder / "only" / "checkpoints", keep=2) as checkpoints,
    ):
        defaults = dict(steps=steps, log_every=1, save_every=1000, ema=0.9)
        result = run(
            task or TinyTask(),
            tiny_optimizer(),
            data,
            make_mesh(),
            Settings(**{**defaults, **settings}),
            checkpoints,
            seed=5,
            meta={"config": "{}"},
            evaluate=evaluate,
            tracker=spy or Spy(),
            say=(lambda text: None) if said is None else said.append,
        )
        data.set_state(load_meta(folder / "only" / "checkpoints")["data"])
        return result, next(data)


def same(a, b):
    leaves = jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b) and leaves is not None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """2N steps in one go."""
    spy = Spy()
    result, batch = train(tmp_path_factory.mktemp("whole"), 2 * N, spy=spy, buckets=2)
    return result, batch, spy


def test_stopped_and_continued_is_the_same_run_bit_for_bit(whole, tmp_path):
    result, batch, spy = whole
    train(tmp_path, N, buckets=2)
    again = Spy()
    continued, next_batch = train(tmp_path, 2 * N, spy=again, buckets=2)
    same(continued.state, result.state)  # parameters, average, optimizer, key, counters
    same(next_batch, batch)
    for step in range(N + 1, 2 * N + 1):
        now, then = again.rows[step], spy.rows[step]
        assert {k: v for k, v in now.items() if k.startswith("train/")} == {
            k: v for k, v in then.items() if k.startswith("train/")
        }


def test_a_signal_saves_at_the_next_boundary_and_the_rest_is_the_same(whole, tmp_path):
    said, before = [], signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
    stopped, _ = train(tmp_path, 2 * N, spy=Spy(at=4), said=said, buckets=2)
    assert not stopped.finished and 4 <= stopped.step <= 6
    assert any("SIGTERM: saved at step" in line for line in said)
    assert signal.getsignal(signal.SIGINT) is before
    result, batch = train(tmp_path, 2 * N, buckets=2)
    assert result.finished
    same(result.state, whole[0].state)
    same(batch, whole[1])


def test_every_bucket_compiles_once_and_is_timed(whole):
    times = whole[0].times
    assert len(times) == 2 and sum(t["steps"] for t in times.values()) == 2 * N
    assert all(t["compile"] > 0 for t in times.values())
    assert any(t["step"] > 0 for t in times.values())


def test_the_average_is_found_again(whole, tmp_path):
    train(tmp_path, N)
    variables = load_ema(tmp_path, "only")
    assert set(variables) == {"params", "stats"}
    continued, _ = train(tmp_path, N)
    same(variables["params"], jax.tree.map(np.asarray, continued.state.ema))


def test_held_out_is_measured_at_both_ends_and_between(tmp_path):
    seen = []

    def evaluate(shardings):
        return lambda state, step: seen.append(step) or {"loss": float(step)}

    result, _ = train(tmp_path, N, evaluate=evaluate, eval_every=3)
    assert seen == [0, 3, 6, N] and [row["step"] for row in result.history] == seen
    result, _ = train(tmp_path, N, evaluate=evaluate)
    assert seen == [0, 3, 6, N] and len(result.history) == 4


def test_time_is_a_limit_too_and_is_used_up_once(tmp_path):
    result, _ = train(tmp_path, 10_000, source=TinySource(slow=0.003), minutes=1 / 60)
    assert result.finished and 0 < result.step < 10_000
    again, _ = train(tmp_path, 10_000, source=TinySource(slow=0.003), minutes=1 / 60)
    assert again.finished and again.step == result.step


def test_losses_that_are_not_numbers_end_the_run_and_keep_the_checkpoint(tmp_path):
    train(tmp_path, 2)
    with pytest.raises(InputError, match="3 steps in a row, up to step 5"):
        train(tmp_path, 50, task=TinyTask(poison=-2.0), give_up=3)
    assert load_meta(tmp_path / "only" / "checkpoints")["step"] == 2


def test_now_and_then_a_bad_step_is_only_counted(tmp_path):
    # One clip of the twelve is above the threshold, and every clip comes once in three batches of four.
    result, _ = train(tmp_path, 12, task=TinyTask(poison=0.85))
    assert int(result.state.skipped) == 4 and int(result.state.opt_state[1][0].count) == 8


def test_settings_that_do_nothing():
    for wrong in (
        dict(steps=0),
        dict(steps=1, minutes=0.0),
        dict(steps=1, save_every=0),
        dict(steps=1, keep=0),
    ):
        with pytest.raises(InputError, match="train"):
            Settings(**wrong)
