# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion.schedule import RectifiedFlow, add_noise, over_frames
from jaxvid.models.video_vae import VideoVAE
from jaxvid.sampling import plan as plans
from jaxvid.sampling import sample as loop
from jaxvid.sampling import solvers, stream
from jaxvid.sampling.noise import frame_noise, seed_keys
from jaxvid.types import InputError

KEYS, FRAME = seed_keys([3, 4]), (2, 2, 2)


@pytest.mark.parametrize(
    "pixels,frames,count,last",
    [(257, 65, 3, 25), (377, 95, 5, 15), (737, 185, 9, 25), (1457, 365, 18, 25), (237, 60, 3, 20)],
)
def test_chunks_of_skyreels(pixels, frames, count, last):
    assert VideoVAE(temporal=(True, True)).latent_frames(pixels) == frames
    starts = stream.chunk_starts(frames, 25, 5)
    assert len(starts) == count and frames - starts[-1] == last
    assert stream.chunk_starts(10, 25, 5) == [0]
    for count in range(1, 6):  # FVDM: windows of 16 that are shown 8 frames
        assert len(stream.chunk_starts(16 + 8 * (count - 1), 16, 8)) == count


def test_a_sliding_window_as_printed():
    """Six frames, a window of three, four steps, a lag of two: rows 1-6, 7-8, 9-10, 11-14 see [0,3) [1,4) [2,5) [3,6)."""
    segments = stream.queue(6, 4, 2, window=3)
    rows = [segment.start for segment in segments for _ in range(segment.plan.rows)]
    assert rows == [0] * 6 + [1] * 2 + [2] * 2 + [3] * 4
    assert [segment.ready for segment in segments] == [1, 2, 3, 4, 5, 6]


def test_queues_are_the_staircase_of_the_whole_video(fresh):
    draw = np.random.default_rng(fresh)
    for _ in range(300):
        steps, block = int(draw.integers(1, 9)), int(draw.integers(1, 4))
        lag, blocks, more = (
            int(draw.integers(1, steps + 1)),
            int(draw.integers(1, 9)),
            int(draw.integers(0, 4)),
        )
        alive = -(-steps // lag)
        window = (alive + more) * block
        segments = stream.queue(blocks * block, steps, lag, block, window)
        reach = segments[-1].start + window
        whole = plans.staircase(steps, max(reach, blocks * block), lag, block)
        row, ready = 0, 0
        for plan, start, done in segments:
            here = slice(row, row + plan.rows)
            assert np.array_equal(plan.k, whole.k[here, start : start + window])
            outside = np.delete(whole.update[here], np.s_[start : start + window], 1)
            assert not outside[:, :start].any()  # what has left the window is finished
            late = whole.update[here, start + window :]
            assert not late.any() and done == ready + block
            assert np.all(plan.k[-1, : done - start] + plan.update[-1, : done - start] == steps + 1)
            assert start <= ready  # what is new is still there
            row, ready = row + plan.rows, done
        assert row == steps + lag * (blocks - 1)
    for wrong in ((6, 4, 1, 1, 3), (6, 4, 2, 2, 5), (6, 4, 0, 1, None)):
        with pytest.raises(InputError):
            stream.queue(*wrong)


def test_fifo_as_printed():
    """A queue that is full from the start: 148 rows for 100 frames, 64 steps and a clip of 16; who is where in it."""
    segments, source = stream.full_queue(100, 64, 16)
    assert len(segments) == 148 and segments[-1].ready - (64 - 16) == 100
    assert source[[0, 47, 48, 49, 50, 63]].tolist() == [0, 0, 0, 1, 2, 15]
    whole = plans.staircase(64, 148 + 63, 1)  # where frame j is at solver index j - row
    for row, (plan, start, ready) in enumerate(segments):
        assert (start, ready) == (row, row + 1)
        assert np.array_equal(plan.k[0], whole.k[63 + row, start : start + 64]) and plan.update.all()
    for wrong in ((100, 64, 65), (100, 64, 0), (0, 64, 16)):
        with pytest.raises(InputError, match="clip"):
            stream.full_queue(*wrong)


def test_a_full_queue_goes_on_as_any_other():
    """Frames that entered behind the clip are those of any queue; the clip's own are made anew from their levels."""
    steps, clip, frames = 6, 3, 8
    times, solver = jnp.asarray(plans.time_table(steps, 2.0)), solvers.euler()
    segments, source = stream.full_queue(frames, steps, clip)
    noise = frame_noise(KEYS, 0, segments[-1].start + steps, FRAME)
    value = jax.random.normal(jax.random.key(1), (2, clip, *FRAME))
    level = jnp.broadcast_to(times[segments[0].plan.k], (2, steps))
    filled = add_noise(RectifiedFlow(), value[:, source], noise[:, :steps], level)
    carry, out = loop.init(solver, filled), []
    for plan, start, _ in segments:
        if start:
            carry = stream.advance(solver, carry, noise[:, start + steps - 1 : start + steps])
        carry = loop.rows(alone, solver, times, carry, plan.k, plan.update)
        out.append(carry.x[:, :1])
    made = jnp.concatenate(out, 1)
    assert made.shape[1] - (steps - clip) == frames
    plain = loop.sample(alone, solver, plans.together(steps, noise.shape[1]), times, noise)
    assert np.allclose(made[:, steps:], plain[:, steps : made.shape[1]], atol=1e-5)
    last = plans.from_level(plans.together(steps, 1), steps)  # the head had one step to go
    head = loop.sample(alone, solver, last, times, filled[:, :1])
    assert np.allclose(made[:, :1], head, atol=1e-5)


def alone(x, t, memory=None):
    return jnp.tanh(x) * over_frames(1 - 0.3 * t, x), memory


def follow(segments, window, denoise, solver, times):
    """The frames of a stream, by the loop and `advance` alone."""
    noise = frame_noise(KEYS, 0, segments[-1].start + window, FRAME)
    run = jax.jit(lambda carry, k, update: loop.rows(denoise, solver, times, carry, k, update))
    move = jax.jit(lambda carry, new: stream.advance(solver, carry, new))
    carry, at, ready, out = loop.init(solver, noise[:, :window]), 0, 0, []
    for plan, start, done in segments:
        if start > at:
            carry = move(carry, noise[:, at + window : start + window])
        at = start
        for r in range(plan.rows):
            carry = run(carry, plan.k[r : r + 1], plan.update[r : r + 1])
        out.append(np.asarray(carry.x[:, ready - start : done - start]))
        ready = done
    assert run._cache_size() == 1
    return np.concatenate(out, 1)


def test_with_frames_that_do_not_mix_every_way_makes_the_same_video():
    """So solver history is per frame, and moves with its frame."""
    times, solver = jnp.asarray(plans.time_table(6, 2.0)), solvers.dpmpp_2m()
    noise = frame_noise(KEYS, 0, 9, FRAME)
    plain = loop.sample(alone, solver, plans.together(6, 9), times, noise)
    fifo = follow(stream.queue(9, 6, 1, window=8), 8, alone, solver, times)
    slow = follow(stream.queue(9, 6, 4, 3), 6, alone, solver, times)
    held = lambda past: (
        plans.given(plans.together(6, 5), np.arange(5) < past) if past else plans.together(6, 5)
    )
    chunked = follow(stream.chunks(9, 5, 1, held), 5, alone, solver, times)
    for made in (fifo, slow, chunked):
        assert np.allclose(made[:, :9], plain, atol=1e-5)


def test_a_queue_in_which_frames_mix_is_the_staircase_when_nothing_leaves():
    def mixing(x, t, memory=None):
        return 0.6 * jnp.tanh(x) + 0.3 * jnp.mean(x, 1, keepdims=True), memory

    times, solver = jnp.asarray(plans.time_table(4)), solvers.euler()
    plan = plans.staircase(4, 5, 2)
    whole = loop.sample(mixing, solver, plan, times, frame_noise(KEYS, 0, 5, FRAME))
    assert np.allclose(follow(stream.queue(5, 4, 2, window=5), 5, mixing, solver, times), whole, atol=1e-6)
