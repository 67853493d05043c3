# SPDX-License-Identifier: Apache-2.0
"""Every config can be read, overridden, stored, built, and its step traced at full width on toy batches."""

import pathlib

import jax
import numpy as np
import pytest

from jaxvid.cli import train
from jaxvid.clip import Clip
from jaxvid.config import call, check, from_json, to_json
from jaxvid.data.pipeline import Bucket
from jaxvid.models.video_vae import micro
from jaxvid.sharding import make_mesh
from jaxvid.training.step import init_state, make_train_step, state_sharding

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.name != "__init__.py")
TOY = call(micro, base=4, mult=(1, 2, 4), temporal=(True, True), patch=2, z=16)  # 4x8x8, like the shipped one


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with a video of five seconds."""
    folder = tmp_path_factory.mktemp("videos")
    y, x = np.mgrid[:48, :64]
    frames = np.stack([np.stack([(4 * x + 5 * t) % 256, 5 * y, 0 * x + 4 * t], -1) for t in range(60)])
    Clip(frames.astype(np.uint8), 12.0).save(folder / "clip.mp4")
    return folder


@pytest.fixture(scope="module")
def codec():
    return train.untrained(TOY)


def read(path, videos, *options):
    arguments = ["train", f"--config={path}", "--dry_run", *options]
    if "data" in (config := train.parse(arguments)[1]) and "path" in config.data:
        config = train.parse([*arguments, f"--config.data.path={videos}"])[1]
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_is_read_checked_and_stored(path, videos):
    config = read(path, videos, "--config.seed=7")
    assert config.seed == 7
    check(config)
    assert to_json(from_json(to_json(config))) == to_json(config)
    assert f"--config=configs/{path.name}" in path.read_text()  # a config begins with its command


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_stage_learns(path, videos, codec, tmp_path):
    config, mesh = read(path, videos), make_mesh(devices=jax.devices()[:1])
    for name in config.order:
        node = config.stages[name]
        node.data.buckets = (
            call(Bucket, frames=9, height=32, width=32, batch=2 * node.train.get("accumulate", 1)),
        )
        needed = codec if node.get("codec") else None
        with train.open_stage(name, node, needed, str(tmp_path)) as stage:
            batch = next(stage.data)
            shapes, shardings = state_sharding(mesh, stage.task, stage.optimizer, batch)
            step = make_train_step(stage.task, stage.optimizer, mesh, shardings, ema=stage.settings.ema)
            after, metrics = jax.eval_shape(step, shapes, batch)
            assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
                lambda a: (a.shape, a.dtype), shapes
            )
            assert (
                metrics["loss"].shape == () and sum(x.size for x in jax.tree.leaves(shapes.params)) > 10_000
            )
            assert stage.held_out is None or len(stage.batches(stage.held_out, 1)[0][0].x)
            first = lambda key, batch, made=stage: init_state(made.task, made.optimizer, key, batch)
            again = jax.eval_shape(first, jax.random.key(0), batch)
            assert jax.tree.structure(again) == jax.tree.structure(shapes)
