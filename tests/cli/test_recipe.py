# SPDX-License-Identifier: Apache-2.0
"""`jaxvid recipe`: the printed command makes the same frames; a stranger's file is data and nothing more."""

import json
import shlex

import numpy as np
import pytest

from jaxvid.data.decode import read_video
from jaxvid.io.video_file import read_metadata, save_video
from jaxvid.recipe import check_recipe, command
from jaxvid.types import InputError
from tests.cli.conftest import SHORT
from tests.toy_pipeline import SIZE, toy_pipeline


@pytest.fixture
def loaded(pipe, bundle, monkeypatch):
    """The toy as if it had been loaded from its bundle: the fixture `jaxvid` loads it without that."""
    monkeypatch.setattr(pipe, "source", bundle)
    return pipe


def frames_of(path):
    return read_video(path)[0]


STORY = "[{at: 0, prompt: 'a red star'}, {at: 1.3, prompt: \"it's; $(a) `blue` ring\"}]"
ASKED = {
    "prompt": ("a red star", "--seed", "3", "--guidance-interval", "0.1", "0.9", "--guidance-kind", "apg"),
    "dash": ("--seed", "4", "--negative=-dim; rm -rf", "--", "-a red star"),
    "story": ("--story", STORY, "--fade", "0.5"),
    "method": ("a blue ring", "--method", "fifo", "--set", "window=2", "--set", "ahead=false"),
}


@pytest.mark.parametrize("which", ASKED)
def test_the_printed_command_makes_the_same_frames(generate, jaxvid, loaded, tmp_path, which):
    options = list(ASKED[which])
    at = options.index("--") if "--" in options else len(options)
    made = generate(*options[:at], "--out", "x.mp4", *options[at:])
    assert made.code == 0, made.err
    told = jaxvid("recipe", "x.mp4", "--out", "again.mp4")
    assert (told.code, told.err) == (0, "")
    assert len(told.out.splitlines()) == 1
    name, *words = shlex.split(told.out)
    assert name == "jaxvid"
    done = jaxvid(*words)
    assert (done.code, done.out) == (0, "again.mp4\n"), done.err
    np.testing.assert_array_equal(frames_of(tmp_path / "again.mp4"), frames_of(tmp_path / "x.mp4"))
    first, second = (read_metadata(tmp_path / name) for name in ("x.mp4", "again.mp4"))
    assert first == second


def test_what_was_given_is_named_and_held_against_what_is_there(generate, jaxvid, loaded, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    save_video(tmp_path / "begin.mp4", frames, 8)
    assert generate("a red star", "--video", "begin.mp4", "--out", "x.mp4").code == 0
    told = jaxvid("recipe", "x.mp4")
    assert "--video begin.mp4" in told.out and "--out x-again.mp4" in told.out
    assert (told.code, told.err) == (0, "")
    save_video(tmp_path / "begin.mp4", frames[:8], 8)
    assert "begin.mp4, which was given to it, is not here or has changed" in jaxvid("recipe", "x.mp4").err


def test_one_of_several_is_made_alone(generate, jaxvid, loaded, tmp_path):
    assert generate("a red star", "--num", "2", "--seed", "7", "--out", "x.mp4").code == 0
    told = jaxvid("recipe", "x-1.mp4", "--out", "again.mp4")
    assert "--seed 8" in told.out
    assert "beside 1 more at once" in told.err


def test_another_checkpoint_or_version_is_said(generate, jaxvid, loaded, tmp_path, bundle):
    other = str(toy_pipeline(seed=5).save(tmp_path / "other"))
    assert generate("a red star", "--out", "x.mp4").code == 0
    told = jaxvid("recipe", "x.mp4", "--checkpoint", other)
    assert f"--checkpoint {other}" in told.out
    assert f"checkpoint {other} is another one now (fingerprint" in told.err
    recipe = read_metadata(tmp_path / "x.mp4")
    recipe |= {"version": "9.9", "checkpoint": {**recipe["checkpoint"], "path": "gone"}}
    recipe["made_on"] = {"jax": "9.9", "device": "abacus"}
    save_video(tmp_path / "y.mp4", frames_of(tmp_path / "x.mp4"), 8, recipe)
    told = jaxvid("recipe", "y.mp4")
    assert told.code == 0
    for said in (
        "made by jaxvid 9.9, and this is",
        "with jax 9.9 on abacus",
        "checkpoint 'gone' does not exist",
    ):
        assert said in told.err


def test_a_fingerprint_is_that_of_the_numbers(pipe, bundle, tmp_path):
    from jaxvid.pipeline import Pipeline

    assert Pipeline.load(bundle).fingerprint == pipe.fingerprint == toy_pipeline().fingerprint
    assert toy_pipeline(seed=1).fingerprint != pipe.fingerprint


GOOD = {
    "prompt": "a red star",
    "seed": 0,
    "seconds": float(SHORT),
    "frames": 25,
    "fps": 8.0,
    "size": [16, 16],
    "steps": 3,
    "guidance": 2.0,
    "solver": "euler",
    "method": "oneshot",
    "options": {},
    "dtype": "float32",
    "version": "0.1.0",
}


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"prompt": "a\x1b]0;owned\x07 star"}, "control character U+001B"),
        ({"prompt": "a star\nrm -rf /"}, "control character U+000A"),
        ({"prompt": "a \u202erats\u202c"}, "control character U+202E"),
        ({"prompt": "a\x9bstar"}, "control character U+009B"),
        ({"prompt": ["a"]}, "'prompt': text was wanted"),
        ({"prompt": "  "}, "'prompt': it is empty"),
        ({"prompt": "x" * 200_000}, "'prompt': it has 200000 characters"),
        ({"story": [[0, "a"], ["now", "b"]]}, "'story': a finite number"),
        ({"story": {"at": 1}}, "'story'"),
        ({"seed": -1}, "'seed': a whole number"),
        ({"seed": True}, "'seed': a whole number"),
        ({"seconds": "4; rm"}, "'seconds': a finite number"),
        ({"seconds": float("nan")}, "'seconds': a finite number"),
        ({"method": "$(touch x)"}, "'method': a name"),
        ({"method": "--out"}, None),  # a name as names go; see below
        ({"solver": 3}, "'solver': it is of another kind"),
        ({"size": [16]}, "'size': it is of another kind"),
        ({"options": {"a b": 1}}, "'options': a name"),
        ({"options": [1]}, "'options': it is of another kind"),
        ({"options": {"window": [1]}}, "'options': a finite number"),
        ({"checkpoint": {"path": "a\rb", "fingerprint": "0"}}, "control character U+000D"),
        ({"checkpoint": "x"}, "'checkpoint'"),
        ({"given": {"image": {"path": 3}}}, "'given': text was wanted"),
        ({"given": {"image": {"path": None}}}, "no command"),
        ({"guidance_interval": [0, 1, 2]}, "'guidance_interval'"),
        ({"mesh": 7}, "'mesh': text was wanted"),
        ({"dtype": None}, "lacks dtype"),
    ],
)
def test_a_hostile_recipe_is_refused_or_quoted(jaxvid, tmp_path, wrong, said):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    recipe = {**GOOD, **wrong}
    if "story" in wrong:
        del recipe["prompt"]
    save_video(tmp_path / "x.mp4", frames, 8, recipe)
    done = jaxvid("recipe", "x.mp4")
    if said is None:
        assert "--method=--out" in shlex.split(done.out)
        return
    assert (done.code, done.out) == (2, "")
    assert said in done.error
    assert done.error.isprintable()


def test_what_is_quoted_stays_one_word_and_no_option():
    recipe = check_recipe(
        {**GOOD, "prompt": "--out=/etc/passwd", "checkpoint": {"path": "-c", "fingerprint": "0"}}, "x"
    )
    words = command(recipe, "a b.mp4")
    assert words[-2:] == ["--", "--out=/etc/passwd"]
    assert "--checkpoint=-c" in words
    assert shlex.split(shlex.join(words)) == words


@pytest.mark.parametrize(
    "metadata", [{}, {"prompt": "a"}, {"seed": 1}, {"comment": "Lavf"}, {"version": 1, "seed": 2}]
)
def test_a_foreign_file_has_no_recipe(jaxvid, tmp_path, metadata):
    save_video(tmp_path / "x.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8, metadata)
    assert "x.mp4 has no recipe of jaxvid in it" in jaxvid("recipe", "x.mp4").error


def test_files_that_are_none(jaxvid, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"not a video")
    assert "neither an mp4 nor a gif nor a webp" in jaxvid("recipe", "x.mp4").error
    assert "cannot read none.mp4" in jaxvid("recipe", "none.mp4").error
    save_video(
        tmp_path / "y.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8, {"x": json.loads("[" * 900 + "]" * 900)}
    )
    assert "has no recipe" in jaxvid("recipe", "y.mp4").error


def test_a_newline_in_a_file_name_is_not_printed(jaxvid, tmp_path):
    save_video(tmp_path / "x.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8, GOOD)
    assert "control character" in jaxvid("recipe", "x.mp4", "--out", "a\nb.mp4").error


def test_of_a_video_that_was_given_in_memory_there_is_no_command():
    given = {"given": {"video": {"path": None}}}
    with pytest.raises(InputError, match="lay in memory"):
        command(check_recipe({**GOOD, **given}, "x"), "y.mp4")
