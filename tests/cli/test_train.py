# SPDX-License-Identifier: Apache-2.0
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from jaxvid.cli import train
from jaxvid.cli.main import call
from jaxvid.cli.train_report import write_report
from jaxvid.cli.train_stage import averaged, check_stage
from jaxvid.io.checkpoint import all_steps, load_ema, load_meta
from jaxvid.types import InputError

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "from tests.training.tiny import get_config\n"
HEAVY = """
from jaxvid.config import call
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.data.shapes import ShapesSource
from jaxvid.diffusion.given import Prefix
from jaxvid.diffusion.levels import Independent
from jaxvid.diffusion.process import Process
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.text_to_video import TextToVideo
from jaxvid.models.video_dit import dit
from jaxvid.models.video_vae import micro
from jaxvid.training.loop import Settings
from jaxvid.training.optimizer import adamw
from jaxvid.training.task import AutoencoderTask, DiffusionTask
import ml_collections

def get_config():
    c = ml_collections.ConfigDict()
    c.order = ("autoencoder", "backbone")
    shared = lambda: dict(
        source=call(ShapesSource, size=6), held_out=call(ShapesSource, size=2, seed=1), evaluate=dict(batches=1),
        data=call(batches, buckets=(call(Bucket, frames=3, height=16, width=16, batch=2),), fps=4.0, seed=0),
        optimizer=call(adamw, rate=3e-3), train=call(Settings, steps=4, log_every=1))
    c.stages = ml_collections.ConfigDict(dict(
        autoencoder=dict(task=call(AutoencoderTask, model=call(micro, base=4), weights=dict(structure=0.0)),
            statistics=6, **shared()),
        backbone=dict(codec="autoencoder", samples=dict(never=True), serve=dict(steps=2), **shared(),
            task=call(DiffusionTask, process=call(Process), levels=call(Independent), given=call(Prefix),
                model=call(TextToVideo, text_encoder=call(ByteTextEncoder, width=16, layers=1, head=8),
                    dit=call(dit, width=32, layers=1, channels=4, head=16, text_width=16))))))
    return c
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(CONFIG)
    return path


def go(config, workdir, *more):
    return call(["train", f"--config={config}", f"--workdir={workdir}", *more])


def test_a_run_leaves_what_it_promises_and_is_done_once(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert go(config, workdir, "--config.stages.only.train.steps=10") == 0
    out = capsys.readouterr()
    assert out.out.splitlines()[-1] == str(workdir / "report.md")
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["stages"]["only"]["train"]["steps"] == 10
    assert "--config.stages.only.train.steps=10" in (workdir / "command.txt").read_text()
    assert json.loads((workdir / "env.json").read_text())["jax"]
    assert list((workdir / "only" / "tensorboard").iterdir())
    report = (workdir / "report.md").read_text()
    history = json.loads((workdir / "only" / "done.json").read_text())["history"]
    assert [row["step"] for row in history] == [0, 10] and history[-1]["loss"] < history[0]["loss"]
    assert f"{history[-1]['loss']:.5g}" in report and "compile" in report
    assert go(config, workdir, "--config.stages.only.train.steps=10") == 0
    assert "is done" in capsys.readouterr().err
    assert go(config, workdir) == 2
    assert (
        "config.stages" not in (said := capsys.readouterr().err)
        and "stages.only.train.steps: 10 -> 30" in said
    )
    assert "--allow_config_change" in said
    assert go(config, workdir, "--allow_config_change") == 0
    assert load_meta(workdir / "only" / "checkpoints")["step"] == 30
    assert "continuing at step 10" in capsys.readouterr().err


def test_dry_run_shows_and_writes_nothing(config, tmp_path, capsys):
    assert go(config, tmp_path / "never", "--dry_run") == 0
    said = capsys.readouterr().out
    for what in ("parameters", "Dense_0", "video.x", "[4, 2, 4, 4, 3]", "compiled the step", '"kind"'):
        assert what in said
    assert said.index("compiled the step") < said.index('"kind"')  # what was looked at, then the long config
    assert re.search(r"^learns from: \d+ clips$", said, re.M)
    assert not (tmp_path / "never").exists()
    assert go(config, tmp_path / "never", "--dry_run", "--config.stages.only.task.poison=x") == 2


@pytest.mark.parametrize(
    "options, said",
    [
        (["--config.stages.only.train.step=3"], "did you mean 'steps'"),
        (["--config.stages.onli.train.steps=3"], "did you mean 'only'"),
        (["--config.sed=3"], "did you mean 'seed'"),
        (["--config.stpes=3"], "did you mean config.stages.only.train.steps?"),
        (["--config.stages.only.train.steps=many"], "steps=many"),
        (["--config.stages.only.train.steps=0"], "nothing to do"),
        (["--config.stages.only.task.model.width=[1]"], "width"),
        (["--config.stages.only.source.kind=tests.training.tiny:TinySauce"], "did you mean 'TinySource'"),
        (["--config.stages.only.source.kind=nowhere:x"], "no module nowhere"),
        (["--config.stages.only.source.size=0"], "has no clips"),
        (["--config.order=('oenly',)"], "'oenly'"),
        (["--config.mesh.data=3"], "does not fill 1 devices"),
        (["--wrokdir=x"], "wrokdir"),
        (["stray"], "is not an option"),
    ],
)
def test_slips_are_one_line_and_leave_nothing(config, tmp_path, capsys, options, said):
    assert go(config, tmp_path / "run", *options) == 2
    complaint = capsys.readouterr().err.strip().splitlines()
    assert complaint[-1].startswith("jaxvid: error:") and said in complaint[-1], complaint
    assert not (tmp_path / "run" / "only" / "checkpoints").exists()


def test_a_run_that_never_began_may_have_another_config(config, tmp_path, capsys):
    assert go(config, tmp_path / "run", "--config.stages.only.source.size=0") == 2
    assert go(config, tmp_path / "run", "--config.stages.only.source.kind=nowhere:x") == 2
    assert "another config" not in capsys.readouterr().err


def test_files_of_no_use_are_named_and_counted(tmp_path):
    one, two = (
        types.SimpleNamespace(bad=bad)
        for bad in ({"a": "a.mp4 is cut"}, {"a": "a.mp4 is cut", "b": "b is text"})
    )
    said = []
    train.tell_bad(train.bad_files(one, two), "is left out", said.append)
    assert said == ["file 1 of 2 that is left out: a.mp4 is cut", "file 2 of 2 that is left out: b is text"]
    told = {
        "stage": "s",
        "step": 1,
        "seconds": 1.0,
        "history": [],
        "times": {},
        "bad": train.bad_files(one, two),
    }
    write_report(str(tmp_path), [told])
    assert (
        "2 files could not be used:\n\n- a.mp4 is cut\n- b is text\n" in (tmp_path / "report.md").read_text()
    )
    assert train.bad_files(object(), None) == {}


def test_files_and_places_that_cannot_be_used(config, tmp_path, capsys):
    assert call(["train", f"--workdir={tmp_path}"]) == 2
    assert "--config=FILE" in capsys.readouterr().err
    assert call(["train", f"--config={config}"]) == 2
    assert "--workdir=DIR" in capsys.readouterr().err
    assert go(tmp_path / "tou.py", tmp_path / "run") == 2
    assert "did you mean" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert go(config, tmp_path / "file" / "run") == 2
    assert "writable" in capsys.readouterr().err
    assert go(config, tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "x"


def test_option_and_value_may_be_two_words(config, tmp_path):
    flags, made = train.parse(
        ["train", "--config", str(config), "--workdir", str(tmp_path), "--config.seed=4"]
    )
    assert flags.workdir == str(tmp_path) and made.seed == 4
    minutes = "--config.stages.only.train.minutes="  # None in the config
    assert (
        train.parse(["train", f"--config={config}", "--dry_run", f"{minutes}0.5"])[
            1
        ].stages.only.train.minutes
        == 0.5
    )
    with pytest.raises(InputError, match="minutes"):
        train.parse(["train", f"--config={config}", "--dry_run", f"{minutes}soon"])
    with pytest.raises(InputError, match="no option 'dta'; did you mean 'data'"):
        stage = made.stages.only.copy_and_resolve_references()
        with stage.unlocked():
            stage.dta = 1
        check_stage("only", stage)


def start(config, workdir, *more):
    command = [sys.executable, "-m", "experiments.run", f"--config={config}", f"--workdir={workdir}", *more]
    env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1][-2000:]
        time.sleep(0.02)


def test_terminated_or_killed_the_same_command_ends_where_it_would_have(config, tmp_path):
    """SIGTERM, then SIGKILL, then the end: bit for bit what one uninterrupted run makes."""
    slow = "--config.stages.only.source.slow=0.02"
    whole = start(config, tmp_path / "whole", slow)
    broken, steps = tmp_path / "broken", tmp_path / "broken" / "only" / "checkpoints"
    first = start(config, broken, slow)
    wait_for(lambda: all_steps(steps), first)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=300)
    assert first.returncode == 130 and "saved at step" in said and "--workdir=" in said.splitlines()[-1]
    reached = max(all_steps(steps))
    assert reached < 30
    second = start(config, broken, slow)
    wait_for(lambda: max(all_steps(steps)) > reached, second)
    second.kill()
    second.communicate()
    third = start(config, broken, slow)
    assert third.communicate(timeout=300) and third.returncode == 0
    assert whole.communicate(timeout=300) and whole.returncode == 0
    one, two = (load_ema(tmp_path / name, "only")["params"] for name in ("whole", "broken"))
    for layer in one:
        for name in one[layer] if isinstance(one[layer], dict) else ():
            np.testing.assert_array_equal(one[layer][name], two[layer][name])
    metas = [load_meta(tmp_path / name / "only" / "checkpoints") for name in ("whole", "broken")]
    assert metas[0]["data"] == metas[1]["data"] and metas[0]["history"] == metas[1]["history"]


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "toy.py").write_text(HEAVY)
    assert go(folder / "toy.py", folder / "run") == 0
    return folder / "run"


def test_an_autoencoder_and_a_backbone_on_it(two_stages):
    from jaxvid.cli.codec import load_codec
    from jaxvid.data.clips import ClipShape
    from jaxvid.data.shapes import ShapesSource
    from jaxvid.pipeline import Pipeline

    report = (two_stages / "report.md").read_text()
    assert "## autoencoder" in report and "## backbone" in report and "reconstruction.png" in report
    codec = load_codec("autoencoder", two_stages, ["autoencoder"])
    assert codec.key == load_codec(str(two_stages), ".").key
    shape = ClipShape(3, 16, 16, 4.0)
    x = np.stack([ShapesSource(size=6).clip(i, shape).x for i in range(6)]).astype(np.float32) / 127.5 - 1
    z = np.asarray(codec.encode(x)).reshape(-1, 4)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-3)
    pipe = Pipeline.load(two_stages)
    assert pipe.serves["sizes"] == [[16, 16]] and pipe.defaults["steps"] == 2
    np.testing.assert_array_equal(
        np.asarray(pipe.engine.params["dit"]["null"]),
        load_ema(two_stages, "backbone")["params"]["dit"]["null"],
    )


def test_a_codec_that_is_not_there(two_stages, tmp_path):
    from jaxvid.cli.codec import load_codec

    with pytest.raises(InputError, match="codec='nowhere'.*autoencoder"):
        load_codec("nowhere", tmp_path, ["autoencoder"])
    (tmp_path / "vae.json").write_text('{"kind": "os:system", "command": "touch hacked"}')
    (tmp_path / "vae.safetensors").write_bytes((two_stages / "codec" / "vae.safetensors").read_bytes())
    with pytest.raises(InputError, match="not allowed"):
        load_codec(str(tmp_path), tmp_path)


def test_a_loss_of_few_frames_counts_for_few():
    rows = [
        {"loss": 1.0, "loss_q1": 4.0, "frames_q1": 1.0, "loss_q2": 0.0, "frames_q2": 0.0},
        {"loss": 3.0, "loss_q1": 8.0, "frames_q1": 3.0, "loss_q2": 0.0, "frames_q2": 0.0},
    ]
    assert averaged(rows) == {"loss": 2.0, "loss_q1": 7.0}


def test_evaluation_looks_all_over_a_source():
    from jaxvid.cli.train_stage import Spread
    from tests.training.tiny import TinySource

    assert [Spread(TinySource(size=12), 4).place(i) for i in range(4)] == [0, 3, 6, 9]
    assert len(Spread(TinySource(size=3), 8)) == 3 and Spread(TinySource(size=3), 8).place(2) == 2
