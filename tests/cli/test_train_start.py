# SPDX-License-Identifier: Apache-2.0
"""Where a stage's first weights come from."""

import types

import flax.linen as nn
import numpy as np
import pytest

from jaxvid.cli.train_start import starter
from jaxvid.diffusion.process import Process
from jaxvid.io.weights import save_weights
from jaxvid.training.distill import ConsistencyTask, MatchingTask
from jaxvid.training.step import TrainState
from jaxvid.types import InputError

SHAPE = (2, 3)


def weights(number):
    return {"layer": {"kernel": np.full(SHAPE, number, np.float32)}}


def state(params, **rest):
    return TrainState(0, params, params, rest, None, None, 0)


def stage(task, **node):
    return types.SimpleNamespace(name="mine", task=task, node=node, captions=None)


@pytest.fixture
def files(tmp_path):
    for name, number in (("student", 1.0), ("teacher", 2.0)):
        save_weights(tmp_path / f"{name}.safetensors", weights(number))
    return {name: str(tmp_path / f"{name}.safetensors") for name in ("student", "teacher")}


def value(tree):
    (leaf,) = [np.unique(kernel) for kernel in (tree["layer"]["kernel"],)]
    return float(leaf[0])


def test_a_student_begins_as_its_own_weights_or_as_its_teacher(files, tmp_path):
    task = ConsistencyTask(nn.Dense(1), Process())
    for node, wanted in (
        ({"teacher": files["teacher"]}, (2.0, 2.0)),
        ({"teacher": files["teacher"], "init": files["student"]}, (1.0, 2.0)),
    ):
        made = starter(stage(task, **node), str(tmp_path))(state(weights(0.0), teacher=weights(0.0)))
        assert (value(made.params), value(made.rest["teacher"])) == wanted
        assert value(made.ema) == wanted[0]


def test_teacher_and_critic_begin_the_same(files, tmp_path):
    task = MatchingTask(nn.Dense(1), Process())
    node = {"teacher": files["teacher"], "init": files["student"]}
    before = state({"student": weights(0.0), "critic": weights(0.0)}, teacher=weights(0.0))
    made = starter(stage(task, **node), str(tmp_path))(before)
    assert value(made.params["student"]) == 1.0 and value(made.ema["critic"]) == 2.0
    assert value(made.params["critic"]) == value(made.rest["teacher"]) == 2.0
    assert value(before.params["critic"]) == 0.0  # the state is a value


def test_what_is_missing_or_too_much_is_named(files, tmp_path):
    plain = types.SimpleNamespace()
    assert starter(stage(plain), str(tmp_path)) is None
    made = starter(stage(plain, init=files["student"]), str(tmp_path))(state(weights(0.0)))
    assert value(made.params) == 1.0
    with pytest.raises(InputError, match="distils nothing"):
        starter(stage(ConsistencyTask(nn.Dense(1), Process()), init=files["student"]), str(tmp_path))
    with pytest.raises(InputError, match="no use for one"):
        starter(stage(plain, teacher=files["teacher"]), str(tmp_path))


def test_parts_in_common_are_adopted(tmp_path):
    """What has the same name, or the other name that is given for it, and the same shape; the rest stays."""
    there = {"window": weights(1.0), "head": weights(2.0), "text": {"kernel": np.ones(5, np.float32)}}
    save_weights(tmp_path / "there.safetensors", there)
    mine = {"longshort": weights(0.0), "head": weights(0.0), "text": {"kernel": np.zeros(4, np.float32)}}
    plain, heard = types.SimpleNamespace(), []
    node = {"init": str(tmp_path / "there.safetensors"), "adopt": {"longshort": "window"}}
    made = starter(stage(plain, **node), str(tmp_path), heard.append)(state(mine))
    assert (value(made.params["longshort"]), value(made.params["head"])) == (1.0, 2.0)
    assert not made.params["text"]["kernel"].any()
    assert heard == [f"75 % of the parameters begin as in {node['init']}; by chance: text"]
    made = starter(stage(plain, **{**node, "adopt": {}}), str(tmp_path), heard.append)(state(mine))
    assert value(made.params["longshort"]) == 0.0 and value(made.ema["head"]) == 2.0
    with pytest.raises(InputError, match="nothing of .* fits"):
        starter(stage(plain, **node), str(tmp_path))(state({"other": weights(0.0)}))
    with pytest.raises(InputError, match="adopt says what to take of init"):
        starter(stage(plain, adopt={}), str(tmp_path))
