# SPDX-License-Identifier: Apache-2.0
"""Methods as values: they cover the video, end every frame clean, and refuse what they cannot do."""

import numpy as np
import pytest

from jaxvid.sampling import plan as plans
from jaxvid.sampling.edits import DiagonalBias, SpectralBlend, WindowFusion
from jaxvid.sampling.methods.method import Setting, check_options
from jaxvid.sampling.methods.table import METHODS, check_method, make
from jaxvid.types import InputError

SETTING = Setting(frames=40, steps=6, window=16, overlap=8)
ALL = frozenset({"bidirectional", "temporal attention"})


@pytest.mark.parametrize("frames", [8, 16, 24, 40])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_finishes_every_frame_in_its_place(name, frames):
    setting = Setting(frames, 6, 16, 8, causal="memory" in " ".join(METHODS[name].needs))
    method = make(name, setting)
    level = np.zeros(method.frames, int)  # what each frame's level is, as rows go by
    before = 0
    for plan, start, ready in method.segments:
        assert plan.frames == method.window and start >= 0
        here = slice(start, start + method.window)
        for k, update in zip(plan.k, plan.update, strict=True):
            moves = np.maximum(k, 1)  # untouched frames are at level 1 as well
            assert np.array_equal(np.where(level[here] == 0, 1, level[here]), moves)
            level[here] = np.where(update, k + 1, level[here])
        assert before <= ready and start <= before and np.all(level[:ready] == 7)
        before = ready
    assert before == frames <= method.frames
    assert method.noise_numbers().shape == (method.frames,) and method.noise_numbers().max() < method.frames
    assert method.calls >= 6
    if method.windows is not None:
        assert method.windows.weight.shape[1] == method.window and np.allclose(
            method.windows.weight.sum(0), 1
        )


def test_concrete_values():
    assert make("oneshot", SETTING).segments[0].plan == plans.together(6, 40)
    rolled = make("rollout", SETTING)
    assert [s.start for s in rolled.segments] == [0, 8, 16, 24] and not rolled.remembers
    assert np.all(rolled.segments[1].plan.k[:, :8] == 7)
    remembered = make("rollout", Setting(40, 6, 16, 8, causal=True))
    assert [s.start for s in remembered.segments] == [0, 16, 32] and remembered.remembers
    sky = make("skyreels", Setting(65, 30, 25, 5), {"ar_step": 5, "block": 5})
    assert sky.segments[0].plan.rows == 50 and len(sky.segments) == 3 and sky.scheme == ((0.02, 1.0),)
    assert sky.segments[0].plan == plans.make_level_plan(25, 30, 5, 5)
    assert sky.segments[1].plan == plans.make_level_plan(25, 30, 5, 5, prefix=5)
    assert make("history", SETTING, {"scale": 4.0}).scheme == ((0.02, 4.0), (1.0, -3.0))
    assert len(make("history", SETTING, {"scale": 4.0, "fraction": 0.5}).scheme) == 3
    fifo = make("fifo", Setting(100, 8, 4, 2))
    assert fifo.window == 10 and fifo.windows.start.tolist() == [0, 2, 4, 6]
    assert fifo.segments[50].plan.k.tolist() == [[9, 9, 8, 7, 6, 5, 4, 3, 2, 1]]
    assert sum(s.plan.rows for s in fifo.segments) == 8 + 100 - 1
    assert make("fifo", SETTING, {"coherent": True}).tail
    for steps, lag in ((30, 4), (8, 1), (9, 2), (4, 1)):  # at most 8 of 12 frames are on their way
        slid = make("sliding", Setting(40, steps, 12, 4))
        assert sum(s.plan.rows for s in slid.segments) == steps + lag * 39 and slid.window == 12
    free = make("freenoise", SETTING)
    assert free.edit == WindowFusion(16, 4) and set(free.numbers[16:20]) == {0, 1, 2, 3}
    assert make("freelong", SETTING).edit == SpectralBlend(16)
    star = make("vstar", Setting(40, 50, 16, 8))
    assert star.edit == DiagonalBias() and star.edited == 13
    assert make("genl", SETTING).windows.start.tolist() == [0, 8, 16, 24]
    blend = make("blend", Setting(40, 6, 24, 8))
    assert blend.cuts and blend.windows.start.tolist() == [0, 16]
    assert make("genl", Setting(16, 6, 16, 8)).windows is None  # one window is ordinary sampling


def test_fifo_with_lookahead_as_printed():
    """Windows of 4 in 2 partitions: copies of the cleanest level in front, and the later half of each window moves."""
    method = make("fifo", Setting(100, 8, 4, 2))
    plan = method.segments[50].plan
    assert np.maximum(8 - plan.k[0], 0).tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    windows = method.windows
    assert [(s, s + windows.length) for s in windows.start] == [(0, 4), (2, 6), (4, 8), (6, 10)]
    written = [np.flatnonzero((row > 0) & plan.update[0]).tolist() for row in windows.weight]
    assert written == [[2, 3], [4, 5], [6, 7], [8, 9]]
    plain = make("fifo", Setting(100, 8, 4, 2), {"ahead": False})
    assert plain.windows.start.tolist() == [0, 4] and plain.window == 8
    assert (8 - plain.segments[50].plan.k[0]).tolist() == list(range(8))


def test_a_wrong_pairing_is_refused_with_the_nearest_method_that_works():
    with pytest.raises(InputError, match="'causal-kv' needs a causal model with attention memory.*'rollout'"):
        check_method("causal-kv", {}, ALL)
    with pytest.raises(InputError, match="'freenoise' needs a model with temporal attention.*'genl'"):
        check_method("freenoise", {}, {"causal", "state memory"})
    with pytest.raises(InputError, match="'causal-kv'.*nearest that works is 'mamba-state'"):
        check_method("causal-kv", {}, {"causal", "state memory"})
    with pytest.raises(InputError, match="unknown; choose one of oneshot, "):
        check_method("fast", {}, ALL)


@pytest.mark.parametrize(
    "name, options",
    [
        ("blend", {"overlap": 16}),
        ("freelong", {"space": 0.0}),
        ("vstar", {"width": 0.0}),
        ("vstar", {"share": 1.5}),
        ("freenoise", {"stride": 0}),
        ("genl", {"stride": 0}),
        ("sliding", {"ar_step": 0}),
        ("fifo", {"window": 0}),
        ("fifo", {"window": 10**9}),
        ("sliding", {"window": 10**9}),
        ("skyreels", {"block": 0}),
        ("skyreels", {"add_noise": -1}),
        ("skyreels", {"add_noise": 1.0}),
        ("skyreels", {"ar_step": 2, "block": 3}),
        ("history", {"fraction": 2.0}),
        ("rollout", {"overlap": 16}),
        ("keyframes", {"every": 0}),
    ],
)
def test_options_that_cannot_work_are_refused(name, options):
    with pytest.raises(InputError):
        make(name, SETTING, options)


@pytest.mark.parametrize(
    "name, options",
    [
        ("fifo", {"window": -2}),
        ("fifo", {"window": float("inf")}),
        ("sliding", {"ar_step": float("nan")}),
        ("history", {"scale": float("nan")}),
        ("history", {"scale": "1e999"}),
    ],
)
def test_numbers_that_mean_nothing_are_refused(name, options):
    with pytest.raises(InputError, match=f"{name} {next(iter(options))}="):
        check_options(name, METHODS[name], options)


def test_options_are_named_and_typed():
    entry = METHODS["fifo"]
    assert entry.options == {"window": -1, "ahead": True, "coherent": False}
    assert check_options("fifo", entry, {"window": "8", "ahead": "false"}) == {"window": 8, "ahead": False}
    assert check_options("vstar", METHODS["vstar"], {"width": 2}) == {"width": 2.0}
    assert check_options("genl", METHODS["genl"], {"weights": "pyramid"}) == {"weights": "pyramid"}
    for wrong in (
        {"stride": 2},
        {"window": 1.5},
        {"window": "wide"},
        {"ahead": 2},
        {"ahead": "2"},
        {"window": True},
    ):
        with pytest.raises(InputError):
            check_options("fifo", entry, wrong)


def test_settings_that_cannot_be_are_refused():
    for name, options in (
        ("skyreels", {"overlap": 16}),
        ("skyreels", {"block": 3}),
        ("sliding", {"ar_step": 1, "window": 4}),
        ("fifo", {"window": 0}),
        ("genl", {"weights": "round"}),
        ("keyframes", {"every": 0}),
    ):
        with pytest.raises(InputError):
            make(name, SETTING, options)


def test_the_table_says_what_every_method_is():
    for name, entry in METHODS.items():
        assert entry.summary and entry.reference and entry.calls and entry.memory in ("constant", "grows"), (
            name
        )
        assert all(other in METHODS for other in entry.nearest)
