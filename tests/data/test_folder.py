# SPDX-License-Identifier: Apache-2.0
"""A folder as a source: nothing of the held-out part is shown, bad files are named and replaced, order is
fixed."""

from __future__ import annotations

import csv
import json
import os
import re
import time

import numpy as np
import pytest
from PIL import Image

from jaxvid.data.clips import ClipShape
from jaxvid.data.folder import FolderSource, captions_of
from jaxvid.data.images import fit, read_image
from jaxvid.data.latents import LatentSource
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.data.scan import scan
from jaxvid.types import InputError

SHAPE = ClipShape(5, 16, 16, 10.0)
IMAGE = ClipShape(1, 16, 16, 10.0)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two videos of 25 numbered frames (levels 16 + 8 n) in folders, one with a caption beside it, and an
    image."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "films", os.path.join(os.path.dirname(__file__), "conftest.py")
    )
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    folder = tmp_path_factory.mktemp("films")
    (folder / "b" / "c").mkdir(parents=True)
    make.write(folder / "b" / "c" / "one.mp4", make.grays(25))
    (folder / "b" / "c" / "one.txt").write_text("  a gray film\n")
    make.write(folder / "two.mkv", make.grays(25))
    (folder / ".hidden.mp4").write_bytes(b"")
    (folder / "notes.md").write_text("nothing")
    return folder


def test_splits_do_not_overlap(films, make):
    shown = {}
    for split in ("train", "heldout"):
        source = FolderSource(films, split=split, stride=0.25 if split == "train" else 0.1)
        assert source.bad == {} and [os.path.basename(e.path) for e in source.entries] == [
            "one.mp4",
            "two.mkv",
        ]
        seen = set()
        for shape in (SHAPE, ClipShape(40, 16, 16, 16.0)):
            for index in range(len(source)):
                sample = source.clip(index, shape)
                assert sample.x.dtype == np.uint8 and sample.x.shape[1:] == (16, 16, 3)
                assert 1 <= len(sample.x) <= shape.frames
                seen |= set(make.which(sample.x))
        shown[split] = seen
    assert FolderSource(films).summary() == "2 videos of 4.0 s in all"
    assert shown["train"] == set(range(20)) and shown["heldout"] >= {22, 23, 24}
    assert not shown["train"] & shown["heldout"]


def test_clips_are_spread_and_the_same_whenever_asked(films, make):
    source, again = (FolderSource(films, stride=0.5, memory=memory) for memory in (0, 1 << 20))
    starts = []
    for index in reversed(range(len(source))):
        sample, other = source.clip(index, SHAPE), again.clip(index, SHAPE)
        np.testing.assert_array_equal(sample.x, other.x)
        np.testing.assert_array_equal(sample.x, again.clip(index, SHAPE).x)
        assert sample.captions == other.captions and source.key(index, SHAPE) == again.key(index, SHAPE)
        frames = make.which(sample.x)
        assert frames == list(range(frames[0], frames[0] + 5))
        starts.append(frames[0])
    assert starts[: len(starts) // 2] == sorted(starts[: len(starts) // 2], reverse=True)
    assert min(starts) == 0 and max(starts) == 15
    assert len({source.key(i, s) for i in range(len(source)) for s in (SHAPE, IMAGE)}) == 2 * len(source)


def test_captions_beside_the_file(films):
    source = FolderSource(films)
    texts = {source.clip(i, SHAPE).captions for i in range(len(source))}
    assert texts == {((0, "a gray film"),), ((0, ""),)}


def test_captions_of_a_clip():
    story = ((0.0, "a"), (1.0, "b"), (1.5, "c"), (9.0, "d"))
    assert captions_of(story, 0.0, 20, 10) == ((0, "a"), (10, "b"), (15, "c"))
    assert captions_of(story, 1.2, 8, 10) == ((0, "b"), (3, "c"))
    assert captions_of(story, 2.0, 8, 10) == ((0, "c"),)
    assert captions_of(((5.0, "x"),), 0.0, 8, 10) == ((0, ""),)


def test_manifests(films, tmp_path, make):
    rows = [
        {"path": "two.mkv", "caption": 'the second, "quoted"', "start": "1.0", "end": "2.0"},
        {"path": "b/c/one.mp4", "caption": "", "start": "", "end": ""},
        {"path": "../outside.mp4", "caption": "x"},
        {"path": "/etc/passwd", "caption": "x"},
        {"path": "missing.mp4", "caption": "x"},
        {"path": "two.mkv", "start": "7", "end": "8"},
        {"path": "two.mkv", "start": "nan"},
        {"path": "two.mkv", "start": "2", "end": "1"},
        {"path": ""},
    ]
    with open(films / "list.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "caption", "start", "end"])
        writer.writeheader()
        writer.writerows(rows)
    source = FolderSource(films / "list.csv", split="all")
    assert [(os.path.basename(e.path), e.start, e.end) for e in source.entries] == [
        ('two.mkv', 1.0, 2.0), ('one.mp4', 0.0, 2.5),
    ]  # fmt: skip
    assert len(source.bad) == 7 and all("\n" not in reason for reason in source.bad.values())
    sample = source.clip(0, ClipShape(10, 16, 16, 10.0))
    assert sample.captions == ((0, 'the second, "quoted"'),)
    assert make.which(sample.x) == list(range(10, 20))
    lines = [
        json.dumps({"path": "two.mkv", "captions": [{"at": 0, "text": "a"}, {"at": 1.2, "text": "b"}]}),
        '{"path": "two.mkv", "start": NaN}',
        '{"path": "two.mkv", "caption": 7}',
        '["two.mkv"]',
        "not json",
        '{"path": "two.mkv", "caption": "' + "x" * 70000 + '"}',
        "",
        json.dumps({"path": "two.mkv", "captions": [{"at": 2, "text": "a"}, {"at": 1, "text": "b"}]}),
    ]
    (films / "list.jsonl").write_text("\n".join(lines))
    source = FolderSource(films / "list.jsonl", split="all")
    assert len(source.entries) == 1 and len(source.bad) == 6
    assert source.clip(0, ClipShape(25, 16, 16, 10.0)).captions == ((0, "a"), (12, "b"))
    (films / "list.csv").unlink()
    (films / "list.jsonl").unlink()
    (tmp_path / "other.csv").write_text("file,text\na.mp4,b\n")
    with pytest.raises(InputError, match='no column "path"'):
        FolderSource(tmp_path / "other.csv")


def damaged(path, make, frames=25):
    """A video whose header is good and whose later frames are not there."""
    noise = np.random.default_rng(0).integers(0, 256, (frames, 64, 64, 3), np.uint8)
    data = make.write(path, noise).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_bad_files_are_named_and_replaced_the_same_way(tmp_path, make):
    make.write(tmp_path / "good.mp4", make.grays(25))
    damaged(tmp_path / "half.mp4", make)
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    results = []
    for order in (1, -1):
        source = FolderSource(tmp_path, stride=0.4)
        assert {os.path.basename(name) for name in source.bad} == {"text.mp4", "empty.png"}
        clips = {index: source.clip(index, SHAPE) for index in list(range(len(source)))[::order]}
        assert {os.path.basename(name) for name in source.bad} == {"text.mp4", "empty.png", "half.mp4"}
        results.append(clips)
    for index, sample in results[0].items():
        np.testing.assert_array_equal(sample.x, results[1][index].x)
        assert len(sample.x) == 5


def test_only_bad_files_end_at_once(tmp_path, make):
    for n in range(3):
        (tmp_path / f"{n}.mp4").write_text("hello")
    start = time.monotonic()
    with pytest.raises(InputError, match="nothing usable.*3 bad") as error:
        FolderSource(tmp_path)
    assert "\n" not in str(error.value)
    damaged(tmp_path / "half.mp4", make, 12)
    source = FolderSource(tmp_path, split="heldout")
    with batches(source, [Bucket(5, 16, 16, batch=2)], fps=10, seed=0) as data:
        with pytest.raises(InputError, match="in a row"):
            next(data)
    assert time.monotonic() - start < 20


def test_nothing_there(tmp_path):
    for path, words in ((tmp_path, "put .mp4"), (tmp_path / "none", "does not exist")):
        with pytest.raises(InputError, match=words):
            FolderSource(path)
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(InputError, match="neither a video"):
        FolderSource(tmp_path / "a.md")
    with pytest.raises(InputError, match="split"):
        FolderSource(tmp_path, split="test")
    with pytest.raises(InputError, match="held_out"):
        FolderSource(tmp_path, held_out=1.5)


def test_the_scan_is_remembered_by_content(films, tmp_path, monkeypatch):
    cache = tmp_path / "new" / "scan.json"
    entries, _ = scan(films, cache=cache)
    monkeypatch.setattr("jaxvid.data.scan.probe", lambda *a: pytest.fail("probed again"))
    assert scan(films, cache=cache)[0] == entries
    monkeypatch.undo()
    for text in ("", '{"version": 0}', "[]", '{"version": 1, "files": {'):
        cache.write_text(text)
        assert scan(films, cache=cache)[0] == entries
    assert os.listdir(cache.parent) == ["scan.json"]


def test_keys_follow_content_and_captions(tmp_path, make):
    make.write(tmp_path / "a.mp4", make.grays(25))
    key = FolderSource(tmp_path).key(0, SHAPE)
    os.rename(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert FolderSource(tmp_path).key(0, SHAPE) == key
    (tmp_path / "b.txt").write_text("now with words")
    worded = FolderSource(tmp_path).key(0, SHAPE)
    make.write(tmp_path / "b.mp4", make.grays(25, first=17))
    assert len({key, worded, FolderSource(tmp_path).key(0, SHAPE)}) == 3


def test_images_are_clips_of_one_frame(tmp_path, make):
    for n in range(10):
        Image.new("RGB", (40, 30), (n * 20, 0, 0)).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text(f"red {n}")
    train, held = (FolderSource(tmp_path, split=split) for split in ("train", "heldout"))
    assert (len(train), len(held)) == (8, 2)
    for source, numbers in ((train, [0, 1, 2, 3, 5, 6, 7, 8]), (held, [4, 9])):
        for index, n in enumerate(numbers):
            sample = source.clip(index, SHAPE)
            assert sample.x.shape == (1, 16, 16, 3) and sample.captions == ((0, f"red {n}"),)
            assert (sample.x[..., 0] == n * 20).all()
    make.write(tmp_path / "film.mp4", make.grays(25))
    mixed = FolderSource(tmp_path)
    assert train.summary() == "8 images"
    assert re.fullmatch(r"1 video of [\d.]+ s in all and 8 images", mixed.summary())
    assert all(len(mixed.clip(i, SHAPE).x) == 5 for i in range(len(mixed)))  # a film stands in for an image
    assert {mixed.clip(i, IMAGE).captions[0][1] for i in range(8)} >= {"red 0", "red 8"}
    with batches(mixed, [Bucket(5, 16, 16, 2), Bucket(1, 16, 16, 4)], fps=10, seed=0) as data:
        assert {next(data)[0].x.shape for _ in range(16)} == {(2, 5, 16, 16, 3), (4, 1, 16, 16, 3)}


def test_images_upright_and_plain(tmp_path):
    marked = np.zeros((20, 30, 3), np.uint8)
    marked[:10, :10] = (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    Image.fromarray(marked).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(marked, -1))
    Image.fromarray(np.dstack([marked, marked[..., :1] // 5])).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png").max() == 51
    Image.fromarray(marked[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), marked)
    Image.fromarray(marked[..., 0]).save(tmp_path / "gray.jpg", quality=95)
    assert read_image(tmp_path / "gray.jpg", (10, 10)).shape == (10, 10, 3)
    whole = (tmp_path / "turned.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (14000, 14000)).save(tmp_path / "bomb.png")
    Image.new("1", (8000, 8000)).save(tmp_path / "large.png")
    for name in ("cut.png", "bomb.png", "large.png", "none.png"):
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name)


def test_fit_keeps_the_centre():
    ramp = np.broadcast_to(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], (50, 100, 3))
    np.testing.assert_array_equal(fit(ramp, 50, 50), ramp[:, 25:75])
    np.testing.assert_array_equal(fit(ramp, 50, 100), ramp)
    half = fit(ramp, 25, 25).astype(int)
    assert np.abs(half[:, 2:-2] - (ramp[:25, 25:75:2].astype(int) + 1)[:, 2:-2]).max() <= 1


def test_latents_of_a_folder_through_batches(films, tmp_path):
    calls = []

    def encode(x):
        calls.append(x.shape)
        return np.concatenate([x[:, :1], x[:, 4::4]], 1)[:, :, ::8, ::8]

    source = LatentSource(FolderSource(films), encode, "v1", tmp_path)
    bucket = Bucket(5, 16, 16, batch=2)
    source.prefill([bucket.shape(10)], batch=4)
    count = len(calls)
    with batches(source, [bucket], fps=10, seed=0) as data:
        for _ in range(6):
            video, _ = next(data)
            assert video.x.shape == (2, 2, 2, 2, 3) and video.ok.all()
    assert len(calls) == count
