# SPDX-License-Identifier: Apache-2.0
"""From an imported bundle and a folder of videos to a tuned bundle: in full, and by adapters, at toy size."""

import json

import numpy as np
import pytest

from jaxvid.cli import main
from jaxvid.cli.captions import Captions
from jaxvid.clip import Clip
from jaxvid.imports import stored_part, table_of
from jaxvid.io.lazy import open_safetensors
from jaxvid.io.weights import flatten, unflatten
from jaxvid.training import lora
from tests.interop.seeded import NODES
from tests.interop.test_import import make_diffusers

pytest.importorskip("tokenizers")

CONFIG = """
from configs.{name} import get_config as real
from jaxvid.config import call
from jaxvid.data.pipeline import Bucket
from jaxvid.models.wan_dit import WanDiT

def get_config():
    c = real()
    s = c.stages.tune
    s.data.buckets = (call(Bucket, frames=5, height=16, width=16, batch=2),)
    task = s.task.task if "task" in s.task else s.task
    task.model = call(WanDiT, width=64, layers=3, hidden=160, head=32, text_width=48, level_channels=64)
    s.optimizer.rate.peak, s.optimizer.rate.warmup = 1e-2, 1
    s.train.steps, s.train.ema, s.evaluate.batches, s.held_out = 3, 0.0, 1, None
    s.blank.text, s.blank.codec.base = 48, 8
    if "rank" in s.task:
        s.task.rank = 2
    return c
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tuned")
    main.dispatch(
        ["import", str(make_diffusers(root / "source")), "--to", str(root / "wan"), "--size", "16x16"]
    )
    (root / "videos").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3)).astype(np.uint8)
    for name in "ab":
        Clip(frames, 16.0).save(root / "videos" / f"{name}.mp4")
        (root / "videos" / f"{name}.txt").write_text(f"a cat runs {name}")
    for name in ("wan_1_3b", "wan_1_3b_lora"):
        (root / f"{name}.py").write_text(CONFIG.format(name=name))
    return root


def train(root, name, *more):
    argv = ["train", f"--config={root / name}.py", f"--workdir={root / 'runs' / name}"]
    argv += [f"--config.checkpoint={root / 'wan'}", f"--config.data.path={root / 'videos'}", *more]
    assert main.call(argv) == 0
    return root / "runs" / name / "tune"


def transformer(bundle):
    return {name: array.read() for name, array in stored_part(bundle, "dit", True).items()}


@pytest.fixture(scope="module")
def adapted(root):
    """The stage's folder of a run that learns adapters."""
    return train(root, "wan_1_3b_lora")


def test_adapters_are_learned_saved_and_merged(root, adapted, tmp_path):
    """What the run leaves as adapters, in either style, makes of the imported weights the bundle it leaves."""
    node = NODES["wan"][1]
    leaves, shapes = table_of("dit", node)
    before, after = transformer(root / "wan"), transformer(adapted / "bundle")
    adapters = lora.load(adapted / "lora.safetensors", leaves, shapes)
    lora.save(tmp_path / "theirs.safetensors", adapters, leaves, "original")
    assert any("lora_down" in key for key in open_safetensors(tmp_path / "theirs.safetensors"))
    for read in (adapters, lora.load(tmp_path / "theirs.safetensors", leaves, shapes)):
        merged = flatten(lora.merge(unflatten(before), read))
        assert set(merged) == set(after)
        for name, value in merged.items():
            np.testing.assert_allclose(value, after[name], atol=1e-6)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == set(adapters) and len(changed) == 8
    back = flatten(lora.unmerge(unflatten(after), adapters))
    for name, value in back.items():
        np.testing.assert_allclose(value, before[name], atol=1e-6)


def test_a_tuned_bundle_is_one_like_any_other(root, adapted, tmp_path):
    from jaxvid.pipeline import Pipeline

    assert (adapted / "bundle" / "LICENSE.txt").read_text() == (root / "wan" / "LICENSE.txt").read_text()
    pipe = Pipeline.load(root / "runs" / "wan_1_3b_lora")
    made = pipe.engine.params["dit"]["blocks"]["self"]["q"]["kernel"]
    np.testing.assert_array_equal(made, transformer(adapted / "bundle")["blocks/self/q/kernel"])
    argv = ["export", str(adapted / "bundle"), "--format", "original", "--to", str(tmp_path / "out")]
    assert main.call(argv) == 0
    arrays = open_safetensors(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    np.testing.assert_array_equal(arrays["blocks.1.self_attn.q.weight"].read(), np.asarray(made)[1].T)


def test_all_weights_are_tuned_and_clips_and_captions_are_kept(root, adapted, monkeypatch):
    folder = train(root, "wan_1_3b")
    before, after = transformer(root / "wan"), transformer(folder / "bundle")
    assert set(before) == set(after) and not (folder / "lora.safetensors").exists()
    assert all(np.isfinite(value).all() for value in after.values())
    assert sum(not np.array_equal(before[name], after[name]) for name in before) > 30
    one, two = (
        open_safetensors(at / "model.safetensors") for at in (root / "wan", folder / "bundle")
    )  # the text encoder is untouched
    assert all(
        np.array_equal(one[name].read(), two[name].read()) for name in one if name.startswith("text_encoder/")
    )
    history = json.loads((folder / "done.json").read_text())
    assert history["step"] == 3

    kept = Captions(root / "wan", root / "runs" / "wan_1_3b" / "latents", 512)
    monkeypatch.setattr(kept, "_encoded", lambda text: pytest.fail("it was encoded already"))
    rows, mask = kept("  a cat runs  a ")  # cleaned, it is a caption of the folder
    assert rows.shape == (512, 48) and 2 < mask.sum() < 30
    assert np.abs(rows[mask]).max() > 0.1 and not rows[~mask].any()


def test_it_can_be_tried_without_a_checkpoint(root, capsys):
    argv = [
        "train",
        f"--config={root / 'wan_1_3b_lora'}.py",
        "--dry_run",
        f"--config.data.path={root / 'videos'}",
    ]
    assert main.call([*argv, "--config.checkpoint=nowhere"]) == 0
    said = capsys.readouterr().out
    assert "compiled the step" in said and "cond.text" in said
    assert main.call([*argv[:2], f"--workdir={root / 'never'}", "--config.checkpoint=nowhere"]) == 2
    assert "jaxvid import" in capsys.readouterr().err
