# SPDX-License-Identifier: Apache-2.0
"""`jaxvid.quickstart`: trains for the time given, shows what came of it, and goes on when it is called again."""

import contextlib
import io

import jax
import numpy as np
import pytest

import jaxvid
from jaxvid import nano
from jaxvid.config import call, check
from jaxvid.data.pipeline import Bucket
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.video_dit import dit
from jaxvid.types import InputError


def toy(minutes=3.0, seed=0, recipe=nano.get_config):
    """The recipe with a network and batches that compile in seconds."""
    config = recipe(minutes, seed)
    stage = config.stages.backbone
    stage.data.buckets = (call(Bucket, frames=9, height=64, width=64, batch=2, clips=4),)
    stage.task.model.dit = call(dit, layers=1, width=32, head=16, channels=16, text_width=16)
    stage.task.model.text_encoder = call(ByteTextEncoder, width=16, layers=1, head=8, pool=8)
    stage.held_out = None
    stage.serve.steps = 2
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of a second, the call that goes on with it, and what that says."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nano, "get_config", toy)
        patch.setattr(nano, "use_compilation_cache", lambda: None)  # nothing goes to the home
        first = nano.quickstart(1 / 60, workdir=folder)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            second = nano.quickstart(3 / 60, workdir=folder, prompt="a small red ring spins")
        return first, second, said.getvalue()


def test_the_name_is_public_and_is_the_function():
    assert jaxvid.quickstart is nano.quickstart and "quickstart" in jaxvid.__all__


def test_the_recipe_is_checked_as_every_config_is():
    config = nano.get_config(0.5, seed=3)
    check(config)
    assert config.stages.backbone.train.minutes == 0.5 and config.seed == 3
    assert config.stages.backbone.codec == "shipped" and "init" not in config.stages.backbone


def test_it_leaves_a_run_that_loads_and_a_video(made):
    first, _, _ = made
    assert first.report["step"] >= 1 and first.workdir.is_dir()
    assert (
        first.video.frames.shape == (nano.FRAMES, 64, 64, 3) and first.video.recipe["prompt"] == nano.PROMPT
    )
    assert (first.workdir / "quickstart.mp4").is_file() and repr(first.video) in repr(first)
    assert first.pipeline.spec["text_length"] == 80


def test_called_with_more_minutes_it_goes_on(made):
    first, second, said = made
    assert f"continuing at step {first.report['step']}" in said and str(second.workdir) in said
    assert second.report["step"] >= first.report["step"]
    assert second.video.recipe["prompt"] == "a small red ring spins"
    loaded = jaxvid.Pipeline.load(second.workdir).engine.params
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(second.pipeline.engine.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_run_is_not_touched(made):
    first, _, _ = made
    before = (first.workdir / "config.json").read_text()
    with pytest.raises(InputError, match="holds another run.*another workdir"):
        nano.quickstart(1, workdir=first.workdir)
    assert (first.workdir / "config.json").read_text() == before


@pytest.mark.parametrize("minutes", [0, -3, float("nan"), float("inf")])
def test_minutes_are_a_time(minutes, tmp_path):
    with pytest.raises(InputError, match="no time to train in"):
        nano.quickstart(minutes, workdir=tmp_path / "never")
    assert not (tmp_path / "never").exists()
