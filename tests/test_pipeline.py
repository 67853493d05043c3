# SPDX-License-Identifier: Apache-2.0
"""What a pipeline promises: lengths, seeds, one compilation, given frames, cancelling, saving and loading.

One pipeline at toy size is shared, and shapes repeat from test to test, so that little is compiled.
"""

import json
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid import stages
from jaxvid.clip import Clip
from jaxvid.config import to_json
from jaxvid.io.checkpoint import Checkpoints
from jaxvid.io.weights import save_weights
from jaxvid.pipeline import Pipeline
from jaxvid.run import _told
from jaxvid.sampling.noise import frame_noise, seed_keys
from jaxvid.sampling.plan import time_table, together
from jaxvid.sampling.sample import sample
from jaxvid.sampling.solvers import by_name
from jaxvid.types import InputError
from tests.toy_pipeline import FPS, SIZE, spec, toy_pipeline

SHORT = 25 / FPS  # seconds of 25 frames: 7 latent frames, one piece of the decoder


@pytest.fixture(scope="module")
def pipe():
    return toy_pipeline()


@pytest.fixture(scope="module")
def star(pipe):
    return pipe("a red star", seconds=SHORT, seed=3)


def test_a_clip_has_exactly_the_frames_asked_for(star):
    assert star.frames.shape == (25, SIZE, SIZE, 3)
    assert star.fps == FPS
    assert star.latents.shape == (7, 2, 2, 4)
    assert star.frames.std() > 5
    assert star.recipe["seed"] == 3
    assert star.recipe["prompt"] == "a red star"
    json.dumps(star.recipe)


def test_one_compilation_per_stage_and_shape(pipe, star):
    """Other prompts, seeds, guidance scales and numbers of steps compile nothing; the decoder has two forms."""
    before = pipe.compilations
    assert before["text"] == before["sample"] == before["begin"] == before["decode"] == 1
    pipe("a blue ring on a white background", seconds=SHORT, seed=4, guidance=3.5, steps=5)
    assert pipe.compilations == before
    # 9 latent frames: the second piece is decoded with a past
    longer = pipe("a blue ring", seconds=4, seed=4)
    assert len(longer) == 32
    assert pipe.compilations == {**before, "sample": 2, "begin": 2, "decode": 2}
    pipe("a green cross", seconds=4, seed=5)
    assert pipe.compilations == {**before, "sample": 2, "begin": 2, "decode": 2}
    assert pipe.seconds["sample"]["compile"] > 0
    assert pipe.seconds["sample"]["steady"] < pipe.seconds["sample"]["compile"]


def test_alone_as_in_a_batch(pipe, star):
    first, second = pipe(["a red star", "a blue ring"], seconds=SHORT, seed=[3, 11])
    assert np.abs(first.frames.astype(int) - star.frames).max() <= 1
    assert np.abs(second.frames.astype(int) - star.frames).max() > 5
    assert second.recipe["seed"] == 11
    np.testing.assert_array_equal(
        frame_noise(seed_keys([3]), 0, 8, (2, 2, 4))[0], frame_noise(seed_keys([11, 3]), 0, 8, (2, 2, 4))[1]
    )


def test_num_takes_the_seeds_that_follow(pipe, star):
    same, other = pipe("a red star", seconds=SHORT, seed=3, num=2)
    assert (same.recipe["seed"], other.recipe["seed"]) == (3, 4)
    assert np.abs(same.frames.astype(int) - star.frames).max() <= 1


def test_rows_one_by_one_are_the_whole_scan(pipe, star):
    """Sampling in slices that can be watched gives what one scan over the plan gives."""
    engine = pipe.engine
    text, mask = engine.text(["a red star"], "float32")
    cond = {
        "text": text[None],
        "text_mask": mask[None],
        "span": np.zeros((1, 8), np.int32),
        "given": np.zeros((1, 8), bool),
    }
    denoise = stages._denoiser(
        engine.model,
        engine.process,
        engine.weights("params"),
        jax.tree.map(jnp.asarray, cond),
        None,
        2.0,
        True,
    )
    noise = frame_noise(seed_keys([3]), 0, 8, (2, 2, 4))
    whole = sample(
        denoise, by_name("euler", engine.process.schedule), together(3, 8), time_table(3, 2.0), noise
    )
    np.testing.assert_allclose(whole[0, :7], star.latents, atol=2e-4)


def test_stream_gives_the_same_frames_and_tells_what_it_does(pipe, star):
    events = list(pipe.stream("a red star", seconds=SHORT, seed=3))
    frames = np.concatenate([event.frames for event in events if event.frames is not None])
    np.testing.assert_array_equal(frames, star.frames)
    assert [event.stage for event in events] == ["text", "text", "sample", "sample", "sample", "decode"]
    assert [event.done for event in events if event.stage == "sample"] == [1, 2, 3]
    assert events[-1].done == events[-1].total == 25


def test_a_run_can_be_cancelled_and_the_next_one_is_whole(pipe, star):
    run = pipe.stream("a red star", seconds=SHORT, seed=3)
    assert next(run).stage == "text"
    next(run), next(run)
    run.close()
    assert list(run) == []
    np.testing.assert_array_equal(pipe("a red star", seconds=SHORT, seed=3).frames, star.frames)


def test_rollout_is_as_long_as_asked_for_in_windows(pipe):
    events = list(pipe.stream("a red star", seconds=12, seed=3, method="rollout"))
    frames = np.concatenate([event.frames for event in events if event.frames is not None])
    assert frames.shape == (96, SIZE, SIZE, 3)
    assert pipe.latents.shape == (1, 25, 2, 2, 4)
    stages_seen = [event.stage for event in events if not event.note]
    last_sample = len(stages_seen) - 1 - stages_seen[::-1].index("sample")
    assert stages_seen.index("decode") < last_sample  # decodes on the way
    before = pipe.compilations
    pipe("a red star", seconds=20, method="rollout")
    assert pipe.compilations == before  # nothing depends on the length


def test_story_spans_speak_about_their_frames(pipe):
    story = [(0, "a red star"), (1.5, "a blue ring"), (2.5, "a green cross")]
    whole = pipe(story=story, seconds=SHORT, seed=3)
    assert whole.recipe["story"] == [[0.0, "a red star"], [1.5, "a blue ring"], [2.5, "a green cross"]]
    run = pipe.prepare(story=story, seconds=SHORT, seed=3)
    told = _told(pipe.engine, run.request, run.given, [text for _, text in story], 8)
    # middles of latent frames in seconds: 0, 2.5/8, 6.5/8, 10.5/8, 14.5/8, 18.5/8, 22.5/8, 26.5/8
    assert told["span"].tolist() == [[0, 0, 0, 0, 1, 1, 2, 2]]
    assert told["text"].shape[:2] == (1, 4)
    later = pipe("a red star", story=[(1.5, "a blue ring"), (2.5, "a green cross")], seconds=SHORT, seed=3)
    np.testing.assert_array_equal(later.frames, whole.frames)


def test_negative_text_and_guidance_matter(pipe, star):
    negative = pipe("a red star", seconds=SHORT, seed=3, negative="a blue ring")
    plain = pipe("a red star", seconds=SHORT, seed=3, guidance=1)
    assert np.abs(negative.latents - star.latents).max() > 1e-3
    assert np.abs(plain.latents - star.latents).max() > 1e-3
    # What it should not look like is what it should look like: guidance cancels.
    same = pipe("a red star", seconds=SHORT, seed=3, negative="a red star")
    np.testing.assert_allclose(same.latents, plain.latents, atol=2e-4)


def test_images_are_the_first_and_the_last_latent(pipe):
    rng = np.random.default_rng(0)
    first, last = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    clip = pipe("a red star", seconds=SHORT, image=first, last_image=last)
    still = pipe.encode(np.repeat(first[None], 29, 0))
    np.testing.assert_array_equal(clip.latents[0], still[0])
    np.testing.assert_array_equal(clip.latents[-1], pipe.encode(np.repeat(last[None], 29, 0))[-1])
    alone = pipe.decode(still[:1])
    assert np.abs(clip.frames[0].astype(int) - alone.frames[0]).max() <= 1


def test_a_video_goes_on(pipe, star):
    """The result begins with the given frames, bit for bit, and goes on from their latents."""
    whole = pipe("a red star", seconds=6, seed=5, video=star)
    assert len(whole) == 48
    np.testing.assert_array_equal(whole.frames[:25], star.frames)
    np.testing.assert_array_equal(whole.latents[:7], pipe.encode(star.frames))
    decoded = pipe.decode(whole.latents)
    assert np.abs(decoded.frames[25:48].astype(int) - whole.frames[25:]).max() <= 1
    run = pipe.prepare("a red star", seconds=12, video=np.concatenate([star.frames] * 2))
    assert (run.given.first, run.given.mask.sum()) == (50 - 29, 8)


def test_kept_latents_decode_to_the_same_frames(pipe, star):
    again = pipe.decode(star.latents, len(star))
    np.testing.assert_array_equal(again.frames, star.frames)
    for bad in (star.latents[..., :3], star.latents[0], np.full_like(star.latents, np.nan)):
        with pytest.raises(InputError, match="latents"):
            pipe.decode(bad)


def test_encoding_in_pieces_is_encoding_the_whole(pipe):
    frames = np.random.default_rng(1).integers(0, 256, (45, SIZE, SIZE, 3), np.uint8)
    whole = pipe.encode(frames)
    assert whole.shape[0] == pipe.engine.vae.latent_frames(45) == 12
    parts = [frames[:7], frames[7:8], frames[8:]]
    pieces = np.concatenate([latents for latents, _ in pipe.engine.encode(parts, "float32")])
    np.testing.assert_array_equal(pieces, whole)


def test_numbers_out_of_range_name_the_step(pipe, star, monkeypatch):
    sick = jax.tree.map(lambda leaf: leaf * np.nan, pipe.engine.weights("params"))
    with monkeypatch.context() as patch:
        patch.setitem(pipe.engine._on_device, "params", sick)
        with pytest.raises(FloatingPointError, match="after step 1 of 3 in float32"):
            pipe("a red star", seconds=SHORT)
    assert pipe.latents is None
    sick = dict(pipe.engine.weights("variables"))
    sick["params"] = jax.tree.map(lambda leaf: leaf * np.nan, sick["params"])
    with monkeypatch.context() as patch:
        patch.setitem(pipe.engine._on_device, "variables", sick)
        with pytest.raises(FloatingPointError, match=r"frames 0\.\.28 are not finite"):
            pipe("a red star", seconds=SHORT, seed=3)
    np.testing.assert_array_equal(pipe.latents[0], star.latents)  # sampling was not in vain


def test_save_and_load(pipe, tmp_path):
    pipe.save(tmp_path / "b")
    again = Pipeline.load(tmp_path / "b")
    assert again.card == "# Toy\n"
    assert repr(again) == repr(pipe)
    assert (again.serves, again.defaults, again.text_length) == (pipe.serves, pipe.defaults, pipe.text_length)
    jax.tree.map(np.testing.assert_array_equal, again.engine.params, pipe.engine.params)
    jax.tree.map(np.testing.assert_array_equal, again.engine.variables, pipe.engine.variables)
    half = pipe.save(tmp_path / "half", dtype="bfloat16")
    assert (half / "model.safetensors").stat().st_size < 0.7 * (
        tmp_path / "b" / "model.safetensors"
    ).stat().st_size
    close = Pipeline.load(half).engine.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), close, pipe.engine.params)


@flax.struct.dataclass
class State:
    """What a training run keeps, as far as a pipeline is concerned."""

    ema: Any
    rest: Any
    step: Any


def test_a_training_run_is_loaded_as_it_is(pipe, tmp_path):
    """No conversion: config.json, the stage's pipeline.json, its newest checkpoint's average, and the codec."""
    (tmp_path / "config.json").write_text(
        json.dumps({"order": ["vae", "dit"], "stages": {"vae": {}, "dit": {}}})
    )
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "pipeline.json").write_text(to_json(spec()))
    (tmp_path / "codec").mkdir()
    save_weights(tmp_path / "codec" / "vae.safetensors", pipe.engine.variables)
    with pytest.raises(InputError, match="no checkpoint"):
        Pipeline.load(tmp_path)
    with Checkpoints(tmp_path / "dit" / "checkpoints") as checkpoints:
        for step in (1, 2):
            params = jax.tree.map(lambda leaf: leaf * step / 2, pipe.engine.params)  # noqa: B023
            checkpoints.save(step, State(params, {}, np.int32(step)), {})
    loaded = Pipeline.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.engine.params, pipe.engine.params)
    for file in (tmp_path / "dit" / "checkpoints").rglob("manifest.json"):
        file.write_text("{}")
    with pytest.raises(InputError, match="manifest.json") as error:
        Pipeline.load(tmp_path)
    one_line(error)


def test_bfloat16_is_close(pipe, star):
    clip = pipe("a red star", seconds=SHORT, seed=3, dtype="bfloat16")
    assert np.abs(clip.latents - star.latents).mean() < 0.1
    assert clip.recipe["dtype"] == "bfloat16"


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "  \n"}, "the prompt is empty"),
        ({"prompt": "x" * 100_000}, "100000 bytes and this model reads at most 80"),
        ({"prompt": 7}, "of type int"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": None}, "give a prompt or a story"),
        ({"seconds": 0}, "greater than 0"),
        ({"seconds": -3}, "greater than 0"),
        ({"seconds": float("nan")}, "finite"),
        ({"seconds": float("inf")}, "finite"),
        ({"seconds": 1e12}, "more than the 100"),
        ({"seconds": 0.01}, "less than one frame"),
        ({"seconds": "long"}, "of type str"),
        ({"fps": 7}, "choose one of 8, 16"),
        ({"size": 100}, "choose one of 16x16, 16x32"),
        ({"size": (16, 0)}, "size=0"),
        ({"steps": 0}, "1..1000"),
        ({"steps": 2.5}, "of type float"),
        ({"seed": -1}, "0..4294967295"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 videos"),
        ({"num": 0}, "1..64"),
        ({"guidance": float("nan")}, "finite"),
        ({"solver": "rk4"}, "choose one of euler"),
        ({"method": "magic"}, "oneshot, rollout"),
        ({"dtype": "int8"}, "float32, bfloat16"),
        ({"negative": ""}, "negative prompt is empty"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "an image is a path"),
        ({"video": "nowhere.mp4"}, "nowhere.mp4"),
        ({"video": np.zeros((99, SIZE, SIZE, 3), np.uint8)}, "seconds counts the whole result"),
        ({"story": []}, "the story is empty"),
        ({"story": [(5, "a"), (0, "b")], "prompt": None}, "must be at 0"),
        ({"story": [(0, "a"), (3, "b"), (2, "c")], "prompt": None}, "order them by time"),
        ({"story": [(0, "a"), (0, "b")], "prompt": None}, "order them by time"),
        ({"story": [(0, "a"), (50, "b")], "prompt": None}, "the video ends at 4 s"),
        ({"story": [(-1, "a")], "prompt": None}, "times start at 0"),
        ({"story": [("0", "a")], "prompt": None}, "number of seconds"),
        ({"story": [{"at": 0, "text": "a"}], "prompt": None}, "'at' and 'prompt'"),
        ({"story": "a red star", "prompt": None}, "a story is a list"),
        ({"story": [(0, "a")], "prompt": ["a", "b"]}, "cannot be combined"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(pipe, options, said):
    before = pipe.compilations
    with pytest.raises(InputError) as error:
        pipe.prepare(**{"prompt": "a red star", **options})
    assert said in one_line(error)
    assert pipe.compilations == before


def test_unknown_options_are_named(pipe):
    with pytest.raises(TypeError, match="stepz"):
        pipe("a red star", stepz=3)


def test_image_and_video_exclude_each_other(pipe, star):
    with pytest.raises(InputError, match="cannot be combined"):
        pipe("a red star", seconds=6, image=star.frames[0], video=star)


@pytest.mark.parametrize("what", ["missing", "file", "empty", "truncated", "foreign", "kind"])
def test_a_bad_checkpoint_is_one_line(pipe, tmp_path, what):
    path = tmp_path / "b"
    if what == "file":
        path.write_text("x")
    elif what == "empty":
        path.mkdir()
    elif what != "missing":
        pipe.save(path)
        weights = path / "model.safetensors"
        if what == "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        else:
            described = json.loads((path / "pipeline.json").read_text())
            if what == "foreign":
                described["model"]["dit"]["width"] = 64
            else:
                described["model"]["kind"] = "os:system"
            (path / "pipeline.json").write_text(json.dumps(described))
    with pytest.raises(InputError) as error:
        Pipeline.load(path)
    one_line(error)


def test_a_clip_can_be_saved_and_extended_from_its_file(pipe, star, tmp_path):
    path = star.save(tmp_path / "star.mp4")
    run = pipe.prepare("a red star", seconds=6, video=path)
    assert run.given.before.shape == star.frames.shape
    assert isinstance(star, Clip)


def test_the_shipped_architecture_at_toy_size():
    """All four scan orders, shifted windows, review tokens: from a sentence to frames."""
    clip = toy_pipeline(described=spec(whole=True))("a red star", seconds=1 / FPS, steps=2)
    assert clip.frames.shape == (1, SIZE, SIZE, 3)
    assert np.isfinite(clip.latents).all()
