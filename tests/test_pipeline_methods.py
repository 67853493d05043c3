# SPDX-License-Identifier: Apache-2.0
"""Every method through the pipeline at toy size: lengths, compilations, prompts, and what each promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.config import build, call
from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.mixers.longshort import LongShort
from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.nn.mixers.temporal import Temporal
from jaxvid.nn.mixers.window import Window
from jaxvid.sampling.methods.table import METHODS
from jaxvid.types import InputError
from tests.toy_pipeline import FPS, SIZE, spec, toy_pipeline

LONG = 93 / FPS  # seconds of 93 frames: 24 latent frames, where windows hold 16
COMMON = {"width": 32, "head": 16, "channels": 4, "text_width": 16}


def described(*mixers):
    made = spec()
    made["model"]["dit"] = call(VideoDiT, mixers=mixers, **COMMON).to_dict()
    return made


@pytest.fixture(scope="module")
def pipe():
    """Spatial and temporal attention, the twin whose attention can be edited."""
    made = described(call(Window, window=(1, 8, 8), head=16), call(Temporal, head=16))
    made["serves"]["student"] = True  # as if it had been distilled
    return toy_pipeline(described=made)


@pytest.fixture(scope="module")
def causal():
    mixers = (
        call(Attention, head=16, causal=True, window=16, block=8),
        call(Mamba, order=0, causal=True, review=None, head=16, state=8, chunk=16),
    )
    return toy_pipeline(described=described(*mixers))


@pytest.fixture(scope="module")
def far():
    return toy_pipeline(
        described=described(call(LongShort, head=16, window=16, past=16, pool=1, block=8)),
    )


@pytest.fixture
def able(pipe, causal, far):
    """Of the three, the one that can follow a method."""

    def choose(name):
        needs = METHODS[name].needs
        return far if "long memory" in needs else causal if "causal" in needs else pipe

    return choose


def make(pipe, method, seconds=LONG, **options):
    return pipe("a red star", seconds=seconds, seed=3, method=method, guidance=1, **options)


ONE = [
    (0, "a red star"),
    (6, "a red star"),
]  # a story of as many captions as the other, and so of its programs
TWO = [(0, "a red star"), (6, "a blue ring")]


def tell(pipe, method, story, **options):
    """A video of a story, as long as `LONG`."""
    settings = {"seconds": LONG, "seed": 3, "guidance": 1, **OPTIONS.get(method, {}), **options}
    return pipe(story=story, method=method, **settings)


@pytest.fixture(scope="module")
def plain(pipe):
    return make(pipe, "oneshot")


OPTIONS = {"sliding": {"ar_step": 1}, "fifo": {"window": 2}, "skyreels": {"ar_step": 2, "block": 8}}
MORE = {"vstar": 1}  # programs beside the one that a method's rows need: with and without its edit


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_video_of_its_own_from_one_program_and_hears_a_story(able, plain, name):
    pipe, options = able(name), OPTIONS.get(name, {})
    count = lambda: pipe.compilations.get("sample", 0)
    before = count()
    told = tell(pipe, name, TWO)
    # whatever the number of windows and rows; methods may share programs
    assert count() - before <= 1 + MORE.get(name, 0)
    assert told.latents.shape == plain.latents.shape == (24, 2, 2, 4) and len(told) == 93
    assert np.isfinite(told.latents).all() and told.latents.std() > 0.1
    assert told.recipe["method"] == name and told.recipe["options"] == options
    # another prompt and another seed compile nothing, but for the text encoder of one sentence, where two were heard
    others = lambda: {stage: n for stage, n in pipe.compilations.items() if stage != "text"}
    before = others()
    same, other = tell(pipe, name, ONE), tell(pipe, name, ONE, seed=4)
    assert others() == before and pipe.compilations["text"] <= 2
    assert np.abs(told.latents - same.latents)[-4:].max() > 1e-3
    assert np.abs(other.latents - same.latents).max() > 1e-3
    if name == "oneshot":  # a caption that goes on is one caption
        np.testing.assert_allclose(same.latents, plain.latents, atol=1e-4)
    else:
        assert np.abs(same.latents - plain.latents).max() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_by_what_is_given(able, plain, name):
    """Images at any time, a video to go on from, and one to make anew: no program more, and what is given stays."""
    pipe = able(name)
    tell(pipe, name, ONE)
    frames = plain.frames
    still = lambda frame: pipe.encode(np.repeat(frame[None], 29, 0))
    begin, _ = pipe.encode(frames[:25]), pipe.encode(frames)  # the second compiles what later pieces need
    before = pipe.compilations
    made = tell(
        pipe, name, TWO, image=frames[0], images=[(40 / FPS, frames[50])], last_image=frames[90]
    ).latents
    np.testing.assert_array_equal(made[0], still(frames[0])[0])
    np.testing.assert_array_equal(made[10], still(frames[50])[-1])  # frame 40 is in the 11th latent frame
    np.testing.assert_array_equal(made[-1], still(frames[90])[-1])
    longer = tell(pipe, name, TWO, video=frames[:25], last_image=frames[90])
    np.testing.assert_array_equal(longer.frames[:25], frames[:25])
    np.testing.assert_array_equal(longer.latents[:7], begin)
    np.testing.assert_array_equal(longer.latents[-1], still(frames[90])[-1])
    assert np.isfinite(longer.latents).all() and len(longer) == 93
    anew, other = (
        tell(pipe, name, TWO, video=video, strength=0.6).latents for video in (frames, 255 - frames)
    )
    assert np.isfinite(anew).all() and np.abs(anew - other).max() > 1e-3
    assert {**pipe.compilations, "text": 0} == {**before, "text": 0}


@pytest.mark.parametrize("name", ["rollout", "fifo", "genl"])
def test_a_mask_holds_through_windows(pipe, plain, name):
    mask = np.zeros(plain.frames.shape[:3], bool)
    mask[9:, : SIZE // 2] = True  # the upper half, from the fourth latent frame on
    source = pipe.encode(plain.frames)
    made = tell(pipe, name, TWO, video=plain.frames, mask=mask).latents
    np.testing.assert_array_equal(made[:3], source[:3])
    np.testing.assert_array_equal(made[3:, 1:], source[3:, 1:])
    assert np.abs(made[3:, :1] - source[3:, :1]).max() > 1e-2


STREAMS = {  # every method whose memory is constant, in all its forms
    **{name: (name, OPTIONS.get(name, {})) for name, entry in METHODS.items() if entry.memory == "constant"},
    "skyreels in step": ("skyreels", {}),
    "skyreels clean": ("skyreels", {"add_noise": 0.0}),
    "fifo coherent": ("fifo", {"window": 2, "coherent": True}),
    "fifo in partitions": ("fifo", {"window": 2, "ahead": False}),
    "history in part": ("history", {"fraction": 0.5}),
    "sliding in blocks": ("sliding", {"ar_step": 1, "block": 2}),
    "rollout, cached": ("rollout", {"cache": 0.1}),
}


def alive(pipe, name, seconds, options):
    """(latents, the most bytes that were in device arrays between two steps)."""
    most = 0
    run = pipe.stream(story=ONE, seconds=seconds, seed=3, method=name, guidance=1, **options)
    for _ in run:
        most = max(most, sum(array.nbytes for array in jax.live_arrays()))
    return pipe.latents[0], most


@pytest.mark.parametrize("which", STREAMS)
def test_a_longer_stream_compiles_nothing_takes_no_more_memory_and_begins_the_same(able, which):
    name, options = STREAMS[which]
    pipe = able(name)
    alive(pipe, name, LONG, options)
    before = pipe.compilations
    short, bytes_ = alive(pipe, name, LONG, options)
    longer, more = alive(pipe, name, 189 / FPS, options)
    assert pipe.compilations == before
    assert more == bytes_
    np.testing.assert_allclose(longer[:15], short[:15], atol=1e-4)


def test_one_shot_grows(pipe):
    """The other side of the law above: there is something to be measured."""
    (_, short), (_, longer) = (alive(pipe, "oneshot", seconds, {}) for seconds in (LONG, 189 / FPS))
    assert longer > short


def test_one_window_is_ordinary_sampling(pipe):
    short = 45 / FPS  # 12 latent frames, padded to the window of 16
    plain = make(pipe, "oneshot", short)
    for name in ("rollout", "genl", "blend", "freenoise", "freelong", "history"):
        options = {"shown": 0.0} if name == "history" else {}
        np.testing.assert_allclose(make(pipe, name, short, **options).latents, plain.latents, atol=1e-5)


def test_memory_makes_chunks_of_a_causal_model(causal):
    rolled, kv, state = (tell(causal, name, ONE) for name in ("rollout", "causal-kv", "mamba-state"))
    assert np.array_equal(rolled.latents, kv.latents) and np.array_equal(rolled.latents, state.latents)
    before = causal.compilations
    tell(causal, "causal-kv", ONE, seconds=189 / FPS)
    assert causal.compilations == before and before["commit"] == 1
    guided = tell(causal, "causal-kv", ONE, guidance=2)
    assert np.abs(guided.latents - kv.latents).max() > 1e-3


def test_a_student_is_sampled_in_its_own_way(pipe, causal):
    """It guesses and is noised afresh, in as many steps as it was taught, in windows or with a memory."""
    clip = make(pipe, "student", 45 / FPS, steps=4)
    assert clip.recipe["solver"] == "renoise" and pipe.engine.asked == 4
    again = make(pipe, "oneshot", 45 / FPS, steps=4, solver="renoise")
    np.testing.assert_allclose(clip.latents, again.latents, atol=1e-5)
    with pytest.raises(InputError, match="works with 'renoise' only"):
        make(pipe, "student", solver="euler")
    with pytest.raises(InputError, match="'student' needs .*few-step weights.* 'causal-kv'"):
        make(causal, "student")


def test_far_and_near_memory_by_name(far):
    long, kv = tell(far, "far", ONE), tell(far, "causal-kv", ONE)
    assert np.array_equal(long.latents, kv.latents) and np.isfinite(long.latents).all()
    assert far.compilations["sample"] == 1 and far.compilations["commit"] == 1


def test_wrong_pairings_are_refused(pipe, causal):
    with pytest.raises(InputError, match="'far' needs .*long memory.* 'causal-kv'"):
        make(causal, "far")
    with pytest.raises(InputError, match="'causal-kv' needs .* nearest that works is 'rollout'"):
        make(pipe, "causal-kv")
    with pytest.raises(InputError, match="'freenoise' needs .*temporal attention.* 'genl'"):
        make(causal, "freenoise")
    with pytest.raises(InputError, match="has no option 'stride'"):
        make(pipe, "fifo", stride=3)
    with pytest.raises(InputError, match="cannot be cached"):
        make(pipe, "oneshot", solver="heun", cache=0.1)


def test_motion_is_injected_where_there_is_a_story(pipe):
    one = [make(pipe, "freenoise", inject=inject).latents for inject in (True, False)]
    assert np.array_equal(*one)
    moved, plain = (
        tell(pipe, "freenoise", TWO, guidance=2, inject=inject).latents for inject in (True, False)
    )
    assert np.abs(moved - plain).max() > 1e-3


def test_captions_fade_into_each_other(pipe):
    told, faded = tell(pipe, "genl", TWO), tell(pipe, "genl", TWO, fade=2.0)
    assert np.abs(faded.latents - told.latents).max() > 1e-4 and faded.recipe["fade"] == 2.0
    with pytest.raises(InputError, match="fade=7 is longer than the 6 s"):
        pipe(story=TWO, seconds=LONG, fade=7)


def test_the_interval_saves_calls_and_guidance_kinds_differ(pipe):
    ask = lambda **more: pipe("a red star", seconds=45 / FPS, seed=3, guidance=3, **more).latents
    plain = pipe("a red star", seconds=45 / FPS, seed=3, guidance=1).latents
    # no level is inside: it is not guided at all
    np.testing.assert_array_equal(ask(guidance_interval=(0.01, 0.02)), plain)
    full = ask()
    np.testing.assert_array_equal(ask(guidance_interval=(0.0, 1.0)), full)
    part = ask(guidance_interval=(0.0, 0.9))
    assert np.abs(part - full).max() > 1e-3 and np.abs(part - plain).max() > 1e-3
    for kind in ("apg", "zero"):
        other = ask(guidance_kind=kind)
        assert np.isfinite(other).all() and np.abs(other - plain).max() > 1e-4


def test_the_cache_leaves_calls_out(pipe):
    ask = lambda cache: pipe("a red star", seconds=45 / FPS, seed=3, guidance=1, steps=8, cache=cache).latents
    exact = ask(None)
    assert pipe.engine.asked == 8
    np.testing.assert_allclose(ask(0.0), exact, atol=1e-4)
    assert pipe.engine.asked == 8
    rough = ask(100.0)
    assert pipe.engine.asked == 2 and np.abs(rough - exact).max() > 1e-4


def test_a_video_is_made_anew_from_a_level_on(pipe, plain):
    short = plain.frames[:45]
    source = pipe.encode(short)
    near, other = (
        pipe("a blue ring", video=video, strength=0.2, steps=8, seed=1, guidance=1)
        for video in (short, 255 - short)
    )
    assert len(near) == len(other) == 45  # as long as the video
    assert np.abs(near.latents - source).mean() > 0
    # An untrained network may go anywhere, but where it begins is the video's doing.
    assert np.abs(near.latents - other.latents).max() > 1e-3
    assert near.recipe["strength"] == 0.2
    with pytest.raises(InputError, match="seconds asks for"):
        pipe("a blue ring", video=short, strength=0.5, seconds=10)
    with pytest.raises(InputError, match="give a video"):
        pipe("a blue ring", strength=0.5)


def test_a_mask_keeps_the_rest_of_a_video(pipe, plain):
    short = plain.frames[:45]
    source, height = pipe.encode(short), short.shape[1]
    mask = np.zeros(short.shape[:3], bool)
    mask[9:, : height // 2] = True  # the upper half, from the fourth latent frame on
    made = pipe("a blue ring", video=short, mask=mask, seed=1, guidance=1).latents
    np.testing.assert_array_equal(made[:3], source[:3])
    np.testing.assert_array_equal(made[3:, 1:], source[3:, 1:])
    assert np.abs(made[3:, :1] - source[3:, :1]).max() > 1e-2
    with pytest.raises(InputError, match="the mask is"):
        pipe("a blue ring", video=short, mask=mask.astype(np.uint8))


def test_images_at_times_that_cannot_be_are_refused(pipe, plain):
    last = plain.frames[50]
    for wrong in ([(100, last)], [last], last):
        with pytest.raises(InputError):
            make(pipe, "rollout", images=wrong)


def test_an_edited_model_takes_the_same_parameters(pipe):
    from jaxvid import stages
    from jaxvid.sampling.edits import WindowFusion

    model = build(described(call(Temporal, head=16))["model"])
    other = stages.edited(model, WindowFusion(4, 2))
    held = [module.edit for module in stages.modules_of(other) if hasattr(module, "edit")]
    assert held == [WindowFusion(4, 2)]
    x, t = jnp.zeros((1, 2, 2, 2, 4)), jnp.zeros((1, 2))
    cond = {"tokens": jnp.zeros((1, 1, 80), jnp.int32)}
    shapes = lambda m: jax.tree.map(
        lambda a: a.shape, jax.eval_shape(lambda: m.init(jax.random.key(0), x, t, cond))
    )
    assert shapes(model) == shapes(other)


def test_a_coherent_queue_is_another_video_of_the_same_kind(pipe):
    plain, made = (tell(pipe, "fifo", ONE, coherent=coherent).latents for coherent in (False, True))
    np.testing.assert_array_equal(made[0], plain[0])  # the first frame enters before there is one to follow
    assert np.isfinite(made).all() and 0.5 < made.std() / plain.std() < 2
    assert np.abs(made - plain)[4:].max() > 1e-3


def test_a_shipped_model_is_found_for_a_method(causal, tmp_path, monkeypatch):
    from jaxvid import traits
    from jaxvid.pipeline import Pipeline

    plain = toy_pipeline()
    for name, one in (("shapes", plain), ("shapes_causal", causal)):
        one.save(tmp_path / name)
    monkeypatch.setattr(traits, "ASSETS", tmp_path)
    found = {
        name: traits.shipped_for(name) for name in ("oneshot", "rollout", "mamba-state", "far", "nonsense")
    }
    names = {name: path and path.name for name, path in found.items()}
    assert names == {
        "oneshot": "shapes",
        "rollout": "shapes",
        "mamba-state": "shapes_causal",
        "far": None,
        "nonsense": None,
    }
    assert Pipeline.load("shapes_causal").traits == causal.traits
    with pytest.raises(InputError, match="does not exist; .* name: shapes, shapes_causal"):
        Pipeline.load("shapes_student")
