# SPDX-License-Identifier: Apache-2.0
"""`jaxvid generate`: what it writes, what it says, and that nothing is lost or overwritten when it fails."""

import contextlib
import json
import os
import pathlib
import re
import signal

import imageio.v3
import numpy as np
import pytest

from jaxvid.data.decode import read_video
from jaxvid.engine import Engine
from jaxvid.io.video_file import VideoWriter, read_metadata, save_video
from tests.toy_pipeline import FPS, SIZE

KEPT = re.compile(r"the latents are kept in (\S+):")


def test_the_last_line_is_the_path_and_the_file_is_what_was_asked_for(generate, tmp_path):
    done = generate("a red star", "--seed", "3", "--out", "x.mp4", "--contact-sheet", "x.png")
    assert done.code == 0, done.err
    assert done.out == "x.mp4\n"
    frames, fps = read_video(tmp_path / "x.mp4")
    assert (frames.shape, fps) == ((25, SIZE, SIZE, 3), FPS)
    recipe = read_metadata(tmp_path / "x.mp4")
    assert (recipe["prompt"], recipe["seed"], recipe["steps"]) == ("a red star", 3, 3)
    assert recipe["version"]
    assert (tmp_path / "x.png").stat().st_size > 0
    assert re.search(r"25 frames of 16x16 at 8 fps, 3 steps of euler, guidance 2, seed 3", done.err)
    assert re.search(r"done in .*compiling took .*GiB at most", done.err)
    assert sorted(os.listdir(tmp_path)) == ["x.mp4", "x.png"]


def test_a_cache_says_how_often_the_network_was_called(generate):
    done = generate("a red star", "--cache", "100", "--out", "x.mp4")
    assert done.code == 0, done.err
    assert "the network was asked in 2 of 3 calls, cache 100" in done.err


def test_several_videos_have_numbered_names(generate, tmp_path):
    done = generate("a red star", "--num", "2", "--out", "x.webp")
    assert done.out.splitlines() == ["x-0.webp", "x-1.webp"]
    assert [read_metadata(tmp_path / name)["seed"] for name in ("x-0.webp", "x-1.webp")] == [0, 1]


def test_a_story_file(generate, tmp_path):
    (tmp_path / "s.yaml").write_text("- {at: 0, prompt: a red star}\n- {at: 1.5, prompt: a blue ring}\n")
    done = generate("a green cross", "--story", "s.yaml", "--out", "x.mp4")
    assert done.code == 0, done.err
    assert "PROMPT is not used" in done.err
    assert read_metadata(tmp_path / "x.mp4")["story"] == [[0.0, "a red star"], [1.5, "a blue ring"]]


def test_a_video_goes_on(generate, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8).repeat(1, 0)
    save_video(tmp_path / "begin.mp4", frames, FPS)
    done = generate("a red star", "--video", "begin.mp4", "--out", "x.mp4")
    assert done.code == 0, done.err
    begin, whole = (read_video(tmp_path / name)[0].astype(float) for name in ("begin.mp4", "x.mp4"))
    assert len(whole) == 25
    assert np.abs(whole[:9] - begin).mean() < 10  # encoded twice


def fails_after(monkeypatch, error):
    def append(self, frames):
        raise error

    monkeypatch.setattr(VideoWriter, "append", append)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("codec broke"), KeyboardInterrupt()]
)
def test_a_failing_writer_loses_nothing(generate, jaxvid, bundle, tmp_path, monkeypatch, error):
    """The old file stays, the half-written one goes, and the latents decode to what would have been written."""
    good = generate("a red star", "--seed", "3", "--out", "good.mp4")
    assert good.code == 0, good.err
    (tmp_path / "x.mp4").write_bytes(b"precious")
    with monkeypatch.context() as patch:
        fails_after(patch, error)
        failed = generate("a red star", "--seed", "3", "--out", "x.mp4")
    assert failed.code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert failed.out == ""
    kept = KEPT.search(failed.error)[1]
    assert (tmp_path / "x.mp4").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["good.mp4", "x.latents.safetensors", "x.mp4"]
    again = jaxvid("decode", kept, "--out", "again.mp4", "--checkpoint", bundle)
    assert (again.code, again.out) == (0, "again.mp4\n"), again.err
    np.testing.assert_array_equal(read_video(tmp_path / "again.mp4")[0], read_video(tmp_path / "good.mp4")[0])
    assert read_metadata(tmp_path / "again.mp4")["seed"] == 3


def test_latents_that_cannot_lie_beside_the_output_lie_elsewhere(generate, tmp_path, monkeypatch):
    from jaxvid.cli import record

    monkeypatch.setattr(record.tempfile, "gettempdir", lambda: str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    save = record.save_weights

    def only_elsewhere(path, *args, **kwargs):
        if pathlib.Path(path).parent != tmp_path / "other":
            raise record.InputError("no")
        save(path, *args, **kwargs)

    monkeypatch.setattr(record, "save_weights", only_elsewhere)
    fails_after(monkeypatch, OSError(28, "No space left on device"))
    failed = generate("a red star", "--out", "x.mp4")
    assert KEPT.search(failed.error)[1] == str(tmp_path / "other" / "x.latents.safetensors")
    assert os.path.exists(tmp_path / "other" / "x.latents.safetensors")


def test_interrupted_while_sampling(generate, tmp_path, monkeypatch):
    def stop(self, *_, **__):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Engine, "sample", stop)
    done = generate("a red star", "--out", "x.mp4")
    assert done.code == 130
    assert done.error == "interrupted; no video was written and nothing was kept"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_was_swallowed_ends_the_run_all_the_same(
    generate, tmp_path, monkeypatch, number
):
    """As when it is raised in a callback of the garbage collector, where Python drops it."""
    sample, handlers = Engine.sample, [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def interrupted(self, *args, **kwargs):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        yield from sample(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "sample", interrupted)
    (tmp_path / "x.mp4").write_bytes(b"precious")
    done = generate("a red star", "--out", "x.mp4")
    assert done.code == 130 and done.error.startswith("interrupted")
    assert (tmp_path / "x.mp4").read_bytes() == b"precious"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.setattr(Engine, "sample", sample)
    assert generate("a red star", "--out", "x.mp4").code == 0  # nothing of it is left


@pytest.mark.parametrize(
    "options, name",
    [
        (["--video", "whole.mp4", "--out", "./whole.mp4"], "whole.mp4"),
        (["--video", "whole.mp4", "--num", "2", "--out", "who.mp4"], "who-1.mp4"),
        (["--image", "first.png", "--contact-sheet", "first.png"], "first.png"),
        (["--image-at", "1", "first.png", "--contact-sheet", "link.png"], "link.png"),
    ],
)
def test_what_is_given_is_not_written_over(generate, pipe, tmp_path, options, name):
    prepare_files(tmp_path, pipe)
    (tmp_path / "who-1.mp4").symlink_to("whole.mp4")
    imageio.v3.imwrite(tmp_path / "first.png", np.zeros((16, 16, 3), np.uint8))
    (tmp_path / "link.png").symlink_to("first.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = generate("a", *options)
    assert done.code == 2
    assert f"{name} is the file" in done.error and "which would be lost" in done.error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_wild_numbers_are_an_error_that_names_the_step(generate, pipe, tmp_path, monkeypatch):
    import jax

    sick = jax.tree.map(lambda leaf: leaf * np.nan, pipe.engine.weights("params"))
    monkeypatch.setitem(pipe.engine._on_device, "params", sick)
    done = generate("a red star", "--out", "x.mp4")
    assert done.code == 1
    assert "after step 1 of 3" in done.error
    assert os.listdir(tmp_path) == []


def prepare_files(folder, pipe):
    """Files that are wrong in every way."""
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    frames = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    save_video(folder / "whole.mp4", frames, FPS)
    data = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("not a picture")
    for name, text in {
        "unordered": "- {at: 0, prompt: a}\n- {at: 2, prompt: b}\n- {at: 1, prompt: c}\n",
        "late": "- {at: 1, prompt: a}\n",
        "negative": "- {at: -1, prompt: a}\n",
        "typed": "- {at: soon, prompt: a}\n",
        "fields": "- {at: 0, text: a}\n",
        "mapping": "at: 0\nprompt: a\n",
        "broken": "- {at: 0, prompt: [\n",
        "empty": "",
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "folder").mkdir()
    foreign = folder / "foreign"
    foreign.mkdir()
    (foreign / "model_index.json").write_text("{}")
    cut = pipe.save(folder / "cut")
    (cut / "vae.safetensors").write_bytes((cut / "vae.safetensors").read_bytes()[:1000])
    other = pipe.save(folder / "other")
    (other / "pipeline.json").write_text(json.dumps({"format": "another"}))
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_text('{"order": ["vae"], "stages": {"vae": {}}}')


@pytest.mark.parametrize(
    "options, said",
    [
        (["", "--out", "x.mp4"], "the prompt is empty"),
        (["a" * 100_000], "100000 bytes"),
        ([], "give a prompt or a story"),
        (["a", "--seconds", "0"], "seconds=0"),
        (["a", "--seconds", "-5"], "seconds=-5"),
        (["a", "--seconds", "nan"], "seconds=nan"),
        (["a", "--seconds", "inf"], "seconds=inf"),
        (["a", "--seconds", "1e30"], "more than the 100"),
        (["a", "--seconds", "long"], "--seconds"),
        (["a", "--seed", "1.5"], "--seed"),
        (["a", "--seed", "-1"], "seed=-1"),
        (["a", "--num", "0"], "num=0"),
        (["a", "--mesh", "data=3"], "does not fill 1 devices"),
        (["a", "--mesh", "rows=2"], "not axis=size"),
        (["a", "--steps", "0"], "steps=0"),
        (["a", "--steps", "many"], "--steps"),
        (["a", "--guidance", "nan"], "guidance=nan"),
        (["a", "--fps", "7"], "choose one of 8, 16"),
        (["a", "--size", "7"], "choose one of 16x16, 16x32"),
        (["a", "--size", "big"], "HEIGHTxWIDTH"),
        (["a", "--dtype", "int4"], "float32, bfloat16"),
        (["a", "--solver", "magic"], "choose one of"),
        (["a", "--method", "magic"], "oneshot, rollout"),
        (["a", "--nonsense", "1"], "unrecognized arguments: --nonsense 1; see"),
        (["a", "--sekonds", "3"], "did you mean '--seconds'?"),
        (["a", "--sekonds=3"], "did you mean '--seconds'?"),
        (["a", "--solver", "dpmp_2m"], "did you mean 'dpmpp_2m'?"),
        (["a", "--method", "fiffo"], "did you mean 'fifo'?"),
        (["a", "--method", "fifo", "--set", "windw=3"], "did you mean 'window'?"),
        (["a", "--method", "fifo", "--set", "zzz=3"], "'fifo' has no such option; there are"),
        (["a", "--set", "windw=3"], "no method has such an option; did you mean 'window'?"),
        (["a", "--set", "window"], "give NAME=VALUE"),
        (["a", "--checkpoint", "shapes_studnt"], "did you mean 'shapes_student'?"),
        (["a", "--checkpoint", ""], "checkpoint '' does not exist"),
        (["a", "--out", "x.txt"], "ends in none of"),
        (["a", "--out", "nowhere/x.mp4"], "make its directory first"),
        (["a", "--out", "folder.mp4"], "is a directory"),
        (["a", "--contact-sheet", "x.txt"], "ends in none of"),
        (["a", "--contact-sheet", "nowhere/x.png"], "make its directory first"),
        (["a", "--contact-sheet", "x.png", "--out", "x.gif"], "from an .mp4"),
        (["a", "--negative", " "], "leave it out"),
        (["--story", "/dev/zero"], "too large"),
        (["a", "--image", "nowhere.png"], "nowhere.png"),
        (["a", "--image", "text.png"], "text.png"),
        (["a", "--last-image", "text.png"], "text.png"),
        (["a", "--video", "nowhere.mp4"], "nowhere.mp4"),
        (["a", "--video", "text.mp4"], "text.mp4"),
        (["a", "--video", "cut.mp4"], "cut.mp4"),
        (["a", "--video", "whole.mp4"], "seconds counts the whole result"),
        (["a", "--story", "nowhere.yaml"], "nowhere.yaml"),
        (["--story", "unordered.yaml"], "order them by time"),
        (["--story", "late.yaml"], "must be at 0"),
        (["--story", "negative.yaml"], "-1"),
        (["--story", "typed.yaml"], "number of seconds"),
        (["--story", "fields.yaml"], "'at' and 'prompt'"),
        (["--story", "mapping.yaml"], "YAML list"),
        (["--story", "broken.yaml"], "broken.yaml"),
        (["--story", "empty.yaml"], "YAML list"),
        (["a", "--checkpoint", "nowhere"], "does not exist"),
        (["a", "--checkpoint", "text.mp4"], "is a file"),
        (["a", "--checkpoint", "foreign"], "neither a bundle"),
        (["a", "--checkpoint", "cut"], "vae.safetensors"),
        (["a", "--checkpoint", "other"], "not the description"),
        (["a", "--checkpoint", "run"], "no stage that makes videos"),
    ],
)
def test_bad_input_is_one_line_and_overwrites_nothing(generate, pipe, tmp_path, options, said):
    prepare_files(tmp_path, pipe)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "out.mp4").write_bytes(b"precious")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    compiled = pipe.compilations
    done = generate(*options)
    assert said in done.error
    assert done.code == 2
    assert done.out == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert pipe.compilations == compiled
