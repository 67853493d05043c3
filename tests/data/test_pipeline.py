# SPDX-License-Identifier: Apache-2.0
"""Laws of the batches: the order is a function of (seed, n), exact to resume and to split."""

from __future__ import annotations

import collections
import json
import subprocess
import sys

import grain
import numpy as np
import pytest

from jaxvid.data.clips import Sample
from jaxvid.data.collate import collate, frame_times, latent_frames, padded_spans, spans_of
from jaxvid.data.pipeline import PERIOD, Bucket, Order, batches, fixed_batches, shares
from jaxvid.data.text import decode_text, encode_text
from jaxvid.types import InputError


class Numbers:
    """Clip i is filled with the value i, and its caption says so; every fifth has three captions."""

    def __init__(self, items=10):
        self.items = items

    def __len__(self):
        return self.items

    def clip(self, index, shape):
        x = np.full((shape.frames, shape.height, shape.width, 3), index, np.uint8)
        captions = ((0, f"number {index}"),)
        if index % 5 == 0:
            captions += ((2, "second"), (3, "third"))
        return Sample(x, captions)


TWO = (Bucket(4, 2, 2, batch=4, weight=3.0), Bucket(1, 4, 4, batch=6))


def same(a, b):
    (video, cond), (other, others) = a, b
    for name in ("x", "sec", "ok"):
        np.testing.assert_array_equal(getattr(video, name), getattr(other, name))
    assert cond.keys() == others.keys()
    for name in cond:
        np.testing.assert_array_equal(cond[name], others[name])


def test_batches_have_the_contract():
    with batches(Numbers(), TWO, fps=8, seed=0, text_length=16) as data:
        seen = [next(data) for _ in range(24)]
    sizes = collections.Counter(video.x.shape for video, _ in seen)
    assert set(sizes) == {(4, 4, 2, 2, 3), (6, 1, 4, 4, 3)}
    for video, cond in seen:
        assert video.x.dtype == np.float32 and video.x.min() >= -1 and video.x.max() <= 1
        assert video.ok.dtype == bool and video.ok.all()
        assert cond["tokens"].dtype == np.int32 and cond["span"].dtype == np.int32
        np.testing.assert_allclose(video.sec[0], np.arange(video.x.shape[1]) / 8)
        items = np.rint((video.x[:, 0, 0, 0, 0] + 1) * 127.5).astype(int)
        for row, item in enumerate(items):
            assert decode_text(cond["tokens"][row, 0]) == f"number {item}"
        most = 3 if (items % 5 == 0).any() else 1
        assert cond["tokens"].shape[1] == (4 if most == 3 else 1)
        if video.x.shape[1] == 4:
            for row, item in enumerate(items):
                assert cond["span"][row].tolist() == ([0, 0, 1, 2] if item % 5 == 0 else [0, 0, 0, 0])


def test_every_item_once_per_epoch_and_bucket():
    order = Order(10, TWO, seed=3)
    drawn = {0: [], 1: []}
    for n in range(2 * PERIOD + 17):
        bucket, items = order(n)
        drawn[bucket] += items
    for items in drawn.values():
        epochs = [items[i : i + 10] for i in range(0, len(items) - 9, 10)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > len(epochs) // 2


def test_a_bucket_may_use_only_the_first_clips():
    few = (Bucket(4, 8, 8, batch=2, clips=3), Bucket(1, 8, 8, batch=4, clips=99))
    order = Order(10, few, seed=3)
    drawn = {0: [], 1: []}
    for n in range(60):
        bucket, items = order(n)
        drawn[bucket] += items
    assert all(sorted(drawn[0][i : i + 3]) == [0, 1, 2] for i in range(0, len(drawn[0]) - 2, 3))
    assert set(drawn[1]) == set(range(10))
    with pytest.raises(InputError, match="clips=0"):
        Bucket(4, 8, 8, batch=2, clips=0)


def test_buckets_take_their_share():
    order = Order(5, TWO, seed=0)
    for period in (0, 1, 7):
        turns = [order(period * PERIOD + place)[0] for place in range(PERIOD)]
        assert turns.count(0) == PERIOD * 3 // 4
    assert shares([1000, 1, 1], 8) == [6, 1, 1]
    assert sum(shares([0.3, 0.3, 0.4], 7)) == 7


@pytest.mark.parametrize("threads", [0, 3])
def test_resume_is_exact(threads):
    make = lambda **kw: batches(Numbers(), TWO, fps=8, seed=5, threads=threads, **kw)
    with make() as data:
        seen, states = [], []
        for _ in range(9):
            states.append(json.loads(json.dumps(data.get_state())))
            seen.append(next(data))
        for place in (6, 0, 3):  # back and forth in the same iterator
            data.set_state(states[place])
            same(next(data), seen[place])
    for place, state in enumerate(states):
        with make() as other:
            other.set_state(state)
            same(next(other), seen[place])
        with make(first_batch=place) as other:
            same(next(other), seen[place])


def test_grain_agrees_on_checkpoints():
    class Few(grain.IterDataset):
        def __iter__(self):
            return batches(Numbers(), TWO[:1], fps=8, seed=1)

    from grain.experimental import LimitIterDataset, assert_equal_output_after_checkpoint

    few = LimitIterDataset(Few().map(lambda batch: batch[0].x), 5)
    assert_equal_output_after_checkpoint(few)
    assert len(list(few)) == 5


def test_orbax_round_trip(tmp_path):
    import orbax.checkpoint as ocp

    data = batches(Numbers(), TWO, fps=8, seed=5)
    for _ in range(4):
        next(data)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(data)))
        manager.wait_until_finished()
        want = next(data)
        other = batches(Numbers(), TWO, fps=8, seed=5)
        manager.restore(0, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(other)))
    same(next(other), want)
    data.close()
    other.close()


def test_another_order_is_refused():
    with batches(Numbers(), TWO, fps=8, seed=5) as data:
        state = data.get_state()
    for other in (
        batches(Numbers(), TWO, fps=8, seed=6),
        batches(Numbers(11), TWO, fps=8, seed=5),
        batches(Numbers(), TWO[:1], fps=8, seed=5),
    ):
        with other, pytest.raises(InputError, match="data order changed"):
            other.set_state(state)


@pytest.mark.parametrize("processes", [2])
def test_processes_partition_the_global_batch(processes):
    with batches(Numbers(), TWO, fps=8, seed=2, spans=(4,)) as data:
        whole = [next(data) for _ in range(5)]
    parts = []
    for index in range(processes):
        with batches(
            Numbers(), TWO, fps=8, seed=2, spans=(4,), process_index=index, process_count=processes
        ) as data:
            parts.append([next(data) for _ in range(5)])
    for n, (video, cond) in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[n][0].x for part in parts]), video.x)
        tokens = np.concatenate([part[n][1]["tokens"] for part in parts])
        np.testing.assert_array_equal(tokens, cond["tokens"])


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="processes"):
        batches(Numbers(), TWO, fps=8, seed=0, process_count=4)
    with pytest.raises(InputError, match="empty"):
        batches(Numbers(0), TWO, fps=8, seed=0)
    with pytest.raises(InputError, match="no buckets"):
        batches(Numbers(), (), fps=8, seed=0)
    with pytest.raises(InputError, match="weight"):
        Bucket(1, 2, 2, batch=1, weight=0)
    with pytest.raises(InputError, match="frames"):
        Bucket(0, 2, 2, batch=1)


def test_an_exception_of_the_source_reaches_the_caller():
    class Broken(Numbers):
        def clip(self, index, shape):
            raise InputError("this clip is broken")

    with batches(Broken(), TWO, fps=8, seed=0) as data, pytest.raises(InputError, match="broken"):
        next(data)


def test_short_clips_are_padded_and_masked():
    short = Sample(np.full((2, 2, 2, 3), 255, np.uint8), ((0, "a"),))
    whole = Sample(np.zeros((3, 2, 2, 3), np.uint8), ((0, "b"),))
    video, cond = collate([short, whole], TWO[0].shape(8), frames_multiple=8)
    assert video.x.shape == (2, 8, 2, 2, 3)
    assert video.ok.sum(1).tolist() == [2, 3]
    np.testing.assert_array_equal(video.x[0], np.ones((8, 2, 2, 3)))
    assert cond["span"].shape == (2, 8)


def test_latent_frames_take_the_caption_of_most_of_their_pixels():
    frames = 41
    for factor in (1, 2, 4):
        t = latent_frames(frames, factor)
        for border in range(1, frames):
            captions = ((0, "a"), (border, "b"))
            got = spans_of(captions, frame_times(t, factor))
            for i in range(t):
                covered = [0] if i == 0 else range(factor * (i - 1) + 1, factor * i + 1)
                new = sum(frame >= border for frame in covered)
                old = len(covered) - new
                assert got[i] == (1 if new > old else 0) or new == old


def test_fixed_batches_repeat():
    bucket = Bucket(4, 2, 2, batch=4)
    one, two = (list(fixed_batches(Numbers(), bucket, 3, fps=8)) for _ in range(2))
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        same(a, b)


def test_spans_are_padded_to_few_sizes():
    assert [padded_spans(n, (1, 2, 4)) for n in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 8, 12]


@pytest.mark.parametrize("text", ["", "a red star", "żółć", "日本語", "👩‍🚀", "\x00\x7f"])
def test_text_round_trip_and_cut(text):
    assert decode_text(encode_text(text, 64)) == text
    for length in range(1, 12):
        tokens = encode_text(text, length)
        assert tokens.shape == (length,) and tokens.min() >= 0 and tokens.max() <= 256
        assert text.startswith(decode_text(tokens))
    assert decode_text(encode_text("a\ud800b", 8)) == "a?b"


def test_no_tensorflow_and_no_parsed_flags_are_needed():
    code = (
        "import sys, numpy as np\n"
        "from jaxvid.data.pipeline import batches, Bucket\n"
        "from jaxvid.data.clips import Sample\n"
        "class S:\n"
        "    def __len__(self): return 3\n"
        '    def clip(self, i, s): return Sample(np.zeros((1, 2, 2, 3), np.uint8), ((0, ""),))\n'
        "with batches(S(), [Bucket(1, 2, 2, 2)], fps=1, seed=0) as data: print(next(data)[0].x.shape)\n"
        'assert "tensorflow" not in sys.modules\n'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 1, 2, 2, 3)"


def test_large_sources_are_permuted_without_a_table():
    order = Order(70_000, TWO, seed=3)
    items = [order.item(0, g) for g in range(70_000)]
    assert sorted(items) == list(range(70_000))
    assert items != [order.item(0, g) for g in range(70_000, 140_000)]
