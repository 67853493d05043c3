# SPDX-License-Identifier: Apache-2.0
"""The reader against the truth of rendered scenes: clean, blurred and noisy, at other sizes and rates."""

import json

import numpy as np
import pytest
from scipy import ndimage

from jaxvid.data.clips import ClipShape
from jaxvid.data.shapes import SHAPES, ShapesSource, parse, read, render, story_scene
from jaxvid.data.shapes.world import COLOURS, ROUND, SIZES
from jaxvid.eval.shapes_accuracy import add, score, summarise
from jaxvid.types import InputError


def accuracy(clips, height=64, fps=16.0, seed=0, spoil=None):
    """Accuracy per attribute over random clips of 4 to 8 seconds, half of them with events and two objects."""
    source = ShapesSource("all", seed=seed, paraphrase=False, objects=(0.5, 0.5), events=0.5)
    rng = np.random.default_rng(seed)
    parts = []
    for index in range(clips):
        frames = int(rng.uniform(4, 8) * fps)
        sample = source.clip(index, ClipShape(frames, height, height, fps))
        parts.append(score(spoil(sample.x, rng) if spoil else sample.x, fps, sample.captions))
    return {name: row["accuracy"] for name, row in summarise(add(parts)).items()}


def like_an_autoencoder(x, rng):
    sigma = 0.7 * x.shape[1] / 64
    x = ndimage.gaussian_filter(x.astype(np.float32), (0, sigma, sigma, 0)) + rng.integers(-6, 7, x.shape)
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def test_rendered_truth_is_read():
    for name, share in accuracy(36).items():
        assert share >= 0.995, name


def test_blurred_and_noisy_truth_is_read():
    for name, share in accuracy(18, seed=1, spoil=like_an_autoencoder).items():
        assert share >= 0.99, name


def like_a_coarse_codec(x, rng):
    """Every four frames become one, in which a thing is seen twice, and all is blurred."""
    groups = np.arange(len(x)) // 4 * 4
    late = np.minimum(groups + 3, len(x) - 1)
    mixed = (x[groups].astype(np.float32) + x[late]) / 2
    return like_an_autoencoder(mixed, rng)


def test_what_a_codec_smears_is_still_read():
    for name, share in accuracy(12, seed=3, spoil=like_a_coarse_codec).items():
        assert share >= 0.95, name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.0, 1.0, 1.5])
def test_blur_does_not_change_what_is_read(shape, size, sigma):
    rng = np.random.default_rng(5)
    motion = "pulses" if shape in ROUND else "spins"
    scene = story_scene([(0, parse(f"a {size} red {shape} {motion} on a white background"))], 4)
    frames = render(scene, 48, 16.0, 64).astype(np.float32)
    blurred = ndimage.gaussian_filter(frames, (0, sigma, sigma, 0)) + rng.normal(0, 3, frames.shape)
    for second in read(np.clip(blurred.round(), 0, 255).astype(np.uint8), 16.0):
        (found,) = second["objects"]
        assert (found["shape"], found["colour"], found["size"], found["motion"]) == (
            shape,
            "red",
            size,
            motion,
        )


def drawn(share):
    """A red thing of these shares ``[64, 64]`` on white, held for three seconds."""
    picture = 255.0 + share[..., None] * (np.array(COLOURS["red"]) - 255.0)
    return np.repeat(picture[None].round().astype(np.uint8), 48, 0)


def shape_of(share):
    return {found["shape"] for second in read(drawn(share), 16.0) for found in second["objects"]}


def test_what_is_like_no_shape_is_not_given_one():
    v, u = np.mgrid[:64, :64] - 31.5
    sausage = np.clip(6.5 - np.hypot(np.clip(np.abs(u) - 12, 0, None), v), 0, 1)
    crescent = (np.hypot(u, v) < 12) & (np.hypot(u - 6, v) > 10)
    bar = (np.abs(u) < 3) & (np.abs(v) < 14)
    for share in (sausage, crescent.astype(float), bar.astype(float)):
        assert shape_of(share) == {None}


@pytest.mark.parametrize("radius", [4.8, 6.0, 7.0, 8.8, 11.0])
def test_a_round_blob_is_never_more_than_round(radius):
    # A small disc has the area of a square or of a star, and nothing else of them.
    v, u = np.mgrid[:64, :64] - 31.5
    for blur in (0.0, 1.5, 2.5):
        disc = np.clip(radius + 0.5 - np.hypot(u, v), 0, 1)
        assert shape_of(ndimage.gaussian_filter(disc, blur)) <= {"circle", None}


def test_pieces_of_a_ring_are_one_thing():
    v, u = np.mgrid[:64, :64] - 31.5
    ring = (np.hypot(u, v) < 11) & (np.hypot(u, v) > 6)
    whole, torn = drawn(ring.astype(float)), drawn((ring & (np.abs(v) > 4)).astype(float))
    mixed = np.where((np.arange(48) % 4 == 3)[:, None, None, None], torn, whole)
    assert [[o["shape"] for o in second["objects"]] for second in read(mixed, 16.0)] == [["ring"]] * 3


@pytest.mark.parametrize("height, fps", [(32, 16.0), (96, 10.0), (128, 8.0), (64, 24.0)])
def test_other_sizes_and_rates(height, fps):
    for name, share in accuracy(6, height, fps, seed=2).items():
        assert share >= 0.98, name


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_is_read(shape):
    text = f"a large green {shape} and a small purple {shape} on a white background"
    frames = render(story_scene([(0, parse(text))], 3), 1, 16.0, 64)
    (second,) = read(frames, 16.0)
    assert second["background"] == "white"
    found = {(o["colour"], o["shape"], o["motion"]) for o in second["objects"]}
    assert found == {("green", shape, None), ("purple", shape, None)}


def test_a_story_is_read_with_its_borders():
    told = [
        (0, "a large red star bounces around on a gray background"),
        (5, "a small red star circles counterclockwise on a gray background"),
        (10, "a small red star circles counterclockwise and a large cyan ring pulses on a gray background"),
        (15, "a large cyan ring pulses on a gray background"),
    ]
    scene = story_scene([(second, parse(text)) for second, text in told], 2)
    frames = render(scene, 320, 16.0, 64)
    counts = score(frames, 16.0, [(16 * second, text) for second, text in told])
    assert all(right == total > 0 for right, total in counts.values()), counts
    verdict = read(frames, 16.0, [5, 10, 15])
    assert len(verdict) == 20 and [row["second"] for row in verdict] == list(range(20))
    assert json.loads(json.dumps(verdict)) == verdict
    assert [len(row["objects"]) for row in verdict] == [1] * 10 + [2] * 5 + [1] * 5


def test_nothing_there_and_nothing_but_noise():
    empty = np.full((32, 64, 64, 3), 128, np.uint8)
    assert read(empty, 16.0) == [{"second": s, "background": "gray", "objects": []} for s in (0, 1)]
    noise = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3)).astype(np.uint8)
    assert len(read(noise, 16.0)) == 1


def test_short_spans_have_no_motion():
    scene = story_scene([(0, parse("a red star spins on a black background"))])
    assert read(render(scene, 32, 16.0, 64), 16.0)[0]["objects"][0]["motion"] is None
    assert read(render(scene, 48, 16.0, 64), 16.0)[0]["objects"][0]["motion"] == "spins"
    assert read(render(scene, 48, 16.0, 64), 16.0, [1.5])[0]["objects"][0]["motion"] is None


def test_bad_frames():
    with pytest.raises(InputError, match="uint8"):
        read(np.zeros((4, 64, 64, 3), np.float32), 16.0)
    with pytest.raises(InputError, match="wanted uint8"):
        read(np.zeros((64, 64, 3), np.uint8), 16.0)
    with pytest.raises(InputError, match="fps"):
        read(np.zeros((4, 64, 64, 3), np.uint8), 0)
