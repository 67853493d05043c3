# SPDX-License-Identifier: Apache-2.0
"""Laws of the latent cache: it changes nothing, encodes once, and misses whatever is stale or broken."""

from __future__ import annotations

import time

import numpy as np
import pytest

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.latents import LatentSource
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.types import InputError

SHAPE = ClipShape(9, 8, 8, 4.0)
IMAGE = ClipShape(1, 8, 8, 4.0)


class Noise:
    """Clips of seeded noise that count how often they were made."""

    def __init__(self, items=20, seed=0, short=False):
        self.items, self.seed, self.short, self.made = items, seed, short, 0

    def __len__(self):
        return self.items

    def key(self, index, shape):
        return f"noise {self.seed} {index}"

    def clip(self, index, shape):
        self.made += 1
        rng = np.random.default_rng([self.seed, index])
        frames = max(shape.frames - 4, 1) if self.short else shape.frames
        x = rng.integers(0, 256, (frames, shape.height, shape.width, 3), np.uint8)
        return Sample(x, ((0, f"{index}"), (5, "later")) if shape.frames > 5 else ((0, f"{index}"),))


class Encoder:
    """Means over 4 frames (the first alone) and 4 x 4 pixels; counts its calls and shapes."""

    def __init__(self):
        self.calls = []

    def __call__(self, x):
        self.calls.append(x.shape)
        b, t, h, w, c = x.shape
        x = x.reshape(b, t, h // 4, 4, w // 4, 4, c).mean((3, 5))
        rest = [x[:, i : i + 4].mean(1, keepdims=True) for i in range(1, t, 4)]
        return np.concatenate([x[:, :1], *rest], 1)


def exact(source, index, shape):
    x = source.clip(index, shape).x.astype(np.float32) / 127.5 - 1
    return Encoder()(x[None])[0]


def test_latents_are_the_encoders_and_captions_stay(tmp_path):
    source, encode = Noise(), Encoder()
    latents = LatentSource(source, encode, "v1", tmp_path)
    for shape, frames in ((SHAPE, 3), (IMAGE, 1)):
        sample = latents.clip(7, shape)
        assert sample.x.shape == (frames, 2, 2, 3) and sample.x.dtype == np.float32
        np.testing.assert_allclose(sample.x, exact(source, 7, shape), atol=1e-3)
        assert sample.captions == source.clip(7, shape).captions


def test_prefill_encodes_once_in_equal_batches(tmp_path):
    source, encode, seen = Noise(), Encoder(), []
    latents = LatentSource(source, encode, "v1", tmp_path)
    total = latents.prefill([SHAPE, IMAGE], batch=8, progress=lambda *state: seen.append(state))
    assert total == 40 and seen[-1] == (40, 40) and source.made == 40
    assert encode.calls == [(8, 9, 8, 8, 3)] * 3 + [(8, 1, 8, 8, 3)] * 3
    assert latents.prefill([SHAPE, IMAGE]) == 0
    again = LatentSource(source, encode, "v1", tmp_path)  # another run
    for index in range(20):
        np.testing.assert_allclose(again.clip(index, SHAPE).x, latents.clip(index, SHAPE).x)
        assert again.clip(index, SHAPE).captions == ((0, f"{index}"), (5, "later"))
    assert len(encode.calls) == 6 and source.made == 40
    for index in (0, 19):
        np.testing.assert_allclose(again.clip(index, SHAPE).x, exact(source, index, SHAPE), atol=1e-3)


@pytest.mark.parametrize("change", ["codec", "content", "dtype", "shape", "version"])
def test_stale_entries_miss(tmp_path, change, monkeypatch):
    LatentSource(Noise(), Encoder(), "v1", tmp_path).prefill([SHAPE])
    if change == "version":
        monkeypatch.setattr("jaxvid.data.latents.VERSION", 2)
    other = LatentSource(
        Noise(seed=int(change == "content")),
        Encoder(),
        "v2" if change == "codec" else "v1",
        tmp_path,
        dtype="float32" if change == "dtype" else "float16",
    )
    shape = ClipShape(9, 8, 8, 8.0) if change == "shape" else SHAPE
    assert len(other.missing([shape])) == 20
    same = LatentSource(Noise(), Encoder(), "v1", tmp_path)
    if change != "version":
        assert same.missing([SHAPE]) == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_broken_shards_miss(tmp_path, damage):
    first = LatentSource(Noise(), Encoder(), "v1", tmp_path)
    first.prefill([SHAPE])
    (shard,) = tmp_path.rglob("*.safetensors")
    data = shard.read_bytes()
    shard.unlink()
    shard.write_bytes({"truncated": data[:-5], "empty": b"", "foreign": b"not a shard" * 99}[damage])
    again = LatentSource(Noise(), Encoder(), "v1", tmp_path)
    assert len(again.missing([SHAPE])) == 20 and again.shards.bad == [shard.name]
    assert again.prefill([SHAPE]) == 20
    assert LatentSource(Noise(), Encoder(), "v1", tmp_path).missing([SHAPE]) == []


def test_an_interrupted_prefill_keeps_what_it_has(tmp_path):
    def stop(done, total):
        if done == 12:
            raise KeyboardInterrupt

    latents = LatentSource(Noise(), Encoder(), "v1", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        latents.prefill([SHAPE], batch=4, progress=stop)
    again = LatentSource(Noise(), Encoder(), "v1", tmp_path)
    assert len(again.missing([SHAPE])) == 8
    assert not list(tmp_path.rglob("*.part"))


def test_processes_share_a_cache(tmp_path):
    parts = [LatentSource(Noise(), Encoder(), "v1", tmp_path) for _ in range(2)]
    counts = [parts[i].prefill([SHAPE], list(range(20)), process_index=i, process_count=2) for i in range(2)]
    assert counts == [10, 10]
    for part in parts:
        part.refresh()
        assert part.missing([SHAPE]) == []


def test_short_clips_keep_their_length(tmp_path):
    source = Noise(short=True)
    latents = LatentSource(source, Encoder(), "v1", tmp_path)
    assert latents.clip(0, SHAPE).x.shape[0] == 2  # 5 of 9 frames
    np.testing.assert_allclose(latents.clip(0, SHAPE).x, exact(source, 0, SHAPE), atol=1e-3)


def test_a_small_bank_through_the_batches(tmp_path):
    latents = LatentSource(Noise(), Encoder(), "v1", tmp_path, size=5)
    latents.prefill([SHAPE])
    with batches(latents, [Bucket(9, 8, 8, batch=5)], fps=4, seed=0) as data:
        for _ in range(3):
            video, cond = next(data)
            assert latents.fresh == {}  # all from disk: fps 4 and 4.0 are one shape
            assert video.x.shape == (5, 3, 2, 2, 3) and video.ok.all()
            np.testing.assert_allclose(video.sec[0], np.array([0, 2.5, 6.5]) / 4)
            assert cond["span"].tolist() == [[0, 0, 1]] * 5
            firsts = sorted(video.x[:, 0, 0, 0, 0])
            np.testing.assert_allclose(firsts, sorted(latents.clip(i, SHAPE).x[0, 0, 0, 0] for i in range(5)))


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(InputError, match="size=21"):
        LatentSource(Noise(), Encoder(), "v1", tmp_path, size=21)
    with pytest.raises(InputError, match="float16"):
        LatentSource(Noise(), Encoder(), "v1", tmp_path, dtype="int8")
    with pytest.raises(InputError, match="time_factor=2"):
        LatentSource(Noise(), Encoder(), "v1", tmp_path, time_factor=2).clip(0, SHAPE)
    with pytest.raises(InputError, match="cannot hold"):
        LatentSource(Noise(), lambda x: Encoder()(x) * np.inf, "v1", tmp_path).clip(0, SHAPE)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the directory"):
        LatentSource(Noise(), Encoder(), "v1", tmp_path / "file")


def test_reading_back_is_cheap(tmp_path):
    latents = LatentSource(Noise(400), Encoder(), "v1", tmp_path)
    shape = ClipShape(61, 16, 16, 4.0)
    z = np.random.default_rng(0).normal(size=(16, 8, 8, 8)).astype(np.float16)
    for i in range(400):
        latents.fresh[latents.key(i, shape)] = z, '[[0, "a"]]'
    latents.flush()
    again = LatentSource(Noise(400), Encoder(), "v1", tmp_path)
    start = time.perf_counter()
    for i in range(400):
        assert again.clip(i, shape).x.shape == (16, 8, 8, 8)
    assert (
        400 / (time.perf_counter() - start) > 300
    )  # some thousands on an idle core; far more than training eats
