# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from jaxvid.sampling import plan as plans
from jaxvid.sampling.plan import LevelPlan, make_level_plan
from jaxvid.types import InputError


def digits(k):
    return ["".join(map(str, row)) for row in np.asarray(k, int)]


def walked(num_frames, steps, lag, block, prefix):
    """An independent construction: a clock for each block, which starts `lag` ticks after its neighbour's."""
    blocks, first, done = num_frames // block, prefix // block, steps + 1
    clock: dict = dict.fromkeys(range(first, blocks))
    rows, updates = [], []
    while True:
        row, moves = [], []
        for b in range(blocks):
            if b < first:
                row.append(done), moves.append(False)
                continue
            if clock[b] is None:
                before = clock.get(b - 1)
                free = b == first or (before is not None and before > min(lag, steps))
                clock[b] = 0 if free else None
            if clock[b] is None:
                row.append(0), moves.append(False)
            else:
                clock[b] = min(clock[b] + 1, done)
                row.append(clock[b]), moves.append(clock[b] <= steps)
        if not any(moves):
            return np.repeat(rows, block, 1), np.repeat(updates, block, 1)
        rows.append(row)
        updates.append(moves)


def test_thousands_of_random_plans_against_an_independent_construction(fresh):
    draw = np.random.default_rng(fresh)
    for _ in range(3000):
        block, blocks, steps = draw.integers(1, 5), draw.integers(1, 9), int(draw.integers(1, 12))
        prefix, lag = block * draw.integers(0, blocks), int(draw.integers(0, steps + 4))
        case = (int(block * blocks), steps, lag, int(block), int(prefix))
        plan = make_level_plan(*case)
        k, update = walked(*case)
        assert np.array_equal(plan.k, k) and np.array_equal(plan.update, update), case
        left = blocks - prefix // block
        assert plan.rows == steps + (left - 1) * min(lag, steps) and plan.steps == steps
        counts = plan.update.sum(0)
        assert np.all(counts[:prefix] == 0) and np.all(counts[prefix:] == steps)
        assert np.all(np.diff(plan.k, axis=1) <= 0)
        climb = np.diff(plan.k, axis=0)
        assert np.all((climb >= 0) & (climb <= 1))
        plans.check(plan, steps, int(block * blocks))


def test_printed_matrices():
    plan = make_level_plan(4, 5, 2)
    want = "1000 2000 3100 4200 5310 6420 6531 6642 6653 6664 6665"
    assert digits(plan.k) == want.split()
    assert digits(plan.update) == "1000 1000 1100 1100 1110 0110 0111 0011 0011 0001 0001".split()
    # AR-Diffusion, and FIFO-Diffusion, call a finished frame S, not S + 1
    ends_in_s = "1000 2000 3100 4200 5310 5420 5531 5542 5553 5554 5555"
    assert digits(np.minimum(plan.k, 5)) == ends_in_s.split()
    assert digits(make_level_plan(4, 5, 0).k) == "1111 2222 3333 4444 5555".split()
    whole = "100 200 300 410 420 430 441 442 443".split()
    assert digits(make_level_plan(3, 3, 3).k) == whole == digits(make_level_plan(3, 3, 5).k)
    prefixed = make_level_plan(4, 5, 2, prefix=1)
    assert digits(prefixed.k) == "6100 6200 6310 6420 6531 6642 6653 6664 6665".split()
    assert not prefixed.update[:, 0].any()
    assert make_level_plan(25, 30, 5, block=5).rows == 50 and make_level_plan(25, 30, 0, block=5).rows == 30
    keys_first = plans.from_starts([0, 3, 3, 3, 0], 3)
    assert digits(keys_first.k) == "10001 20002 30003 41114 42224 43334".split()


def test_diffusion_forcing_matrices():
    """Their levels count down from S and are those after a call: S - clip(m - start, 0, S), a row more than calls."""

    def forcing(starts, steps):
        plan = plans.from_starts(starts, steps)
        moved = np.clip(plan.k + plan.update - 1, 0, steps)  # progress after the call, 0..S
        return digits(np.concatenate([np.full((1, plan.frames), steps), steps - moved]))

    assert forcing([0, 1, 2], 4) == "444 344 234 123 012 001 000".split()
    assert forcing([0, 4, 8], 4) == "444 344 244 144 044 034 024 014 004 003 002 001 000".split()
    assert forcing(np.floor(0.5 * np.arange(4)), 4) == "4444 3344 2233 1122 0011 0000".split()


def test_given_columns_and_dropped_rows():
    plan = plans.given(plans.staircase(3, 4, 1), [True, False, False, True])
    assert np.all(plan.k[:, [0, 3]] == 4) and not plan.update[:, [0, 3]].any()
    assert plan.update.any(1).all() and plan.rows == 4  # the first row was only frame 0's
    plans.check(plan, 3)


@pytest.mark.parametrize("kept", [[3], range(8), [0, 15]], ids=["image", "prediction", "interpolation"])
def test_tasks_are_columns_at_level_zero(kept):
    """FVDM: one model, and what it does is which columns of t[R, F] are 0 throughout."""
    mask = np.isin(np.arange(16), kept)
    plan = plans.given(plans.together(5, 16), mask)
    t = plans.time_table(5, 3.0)[plan.k]
    assert np.all(t[:, mask] == 0) and np.all(t[:, ~mask] == t[:, [9]]) and t[:, 9].min() > 0


def test_plans_are_hashed_by_content():
    one, same, other = plans.together(4, 3), plans.together(4, 3), plans.staircase(4, 3, 1)
    assert one == same and hash(one) == hash(same) and one != other and len({one, same, other}) == 2
    with pytest.raises(ValueError):
        one.k[0, 0] = 9


def test_time_table():
    assert np.array_equal(plans.time_table(4), np.float32([1, 1, 0.75, 0.5, 0.25, 0]))
    assert np.allclose(plans.time_table(4, 5.0) * 1000, [1000, 1000, 937.5, 833.333, 625, 0], atol=1e-3)
    assert np.allclose(plans.time_table(4, 8.0)[1:-1] * 1000, [1000, 960, 888.889, 727.273], atol=1e-3)
    # Diffusion Forcing's levels as steps of its 1000: linspace(-1, 999, S + 1), from the end
    assert np.array_equal(np.trunc(plans.time_table(4)[:0:-1] * 1000 - 1), [-1, 249, 499, 749, 999])
    table = plans.time_table(60, 3.0)
    assert table.dtype == np.float32 and table.shape == (62,) and np.all(np.diff(table[1:]) < 0)


@pytest.mark.parametrize(
    "make,word",
    [
        (lambda: make_level_plan(10, 5, 1, block=4), "12"),
        (lambda: make_level_plan(8, 5, 1, block=4, prefix=2), "block=4"),
        (lambda: make_level_plan(4, 5, 1, prefix=4), "prefix=4"),
        (lambda: make_level_plan(0, 5, 1), "num_frames=0"),
        (lambda: make_level_plan(4, 0, 1), "steps=0"),
        (lambda: make_level_plan(4, 5, -1), "ar_step=-1"),
        (lambda: plans.from_starts([0, -1], 3), "start=-1"),
        (lambda: plans.given(plans.together(3, 2), [True, True]), "all 2"),
        (lambda: plans.given(plans.together(3, 2), [True]), "2 frames"),
        (lambda: plans.time_table(0), "steps=0"),
        (lambda: LevelPlan(np.zeros((2, 3)), np.zeros((3, 2))), "[2, 3]"),
        (lambda: plans.check(plans.together(3, 2), 3, 4), "4"),
        (lambda: plans.check(plans.together(3, 2), 4), "unfinished"),
        (lambda: plans.check(plans.together(5, 2), 4), "only 1..4"),
        (lambda: plans.check(LevelPlan([[1], [3]], [[1], [1]]), 3), "row 1"),
        (lambda: plans.check(LevelPlan([[0]], [[1]]), 3), "only 1..3"),
    ],
)
def test_bad_plans_are_refused_in_one_line(make, word):
    with pytest.raises(InputError) as error:
        make()
    assert word in str(error.value) and "\n" not in str(error.value)


def test_keyframes_come_first():
    assert digits(plans.keyframes(3, 5, 4).k) == ["10001", "20002", "30003", "41114", "42224", "43334"]
    assert digits(plans.keyframes(2, 4, 2).k) == ["1011", "2022", "3133", "3233"]
    assert plans.keyframes(3, 5, 1) == plans.together(3, 5)


def test_a_video_noised_in_part_begins_at_a_level():
    draw = np.random.default_rng(2)
    for _ in range(200):
        steps = int(draw.integers(1, 9))
        plan = make_level_plan(int(draw.integers(1, 7)), steps, int(draw.integers(0, 9)))
        first = int(draw.integers(1, steps + 1))
        short = plans.from_level(plan, first)
        plans.check(short, steps)
        assert np.all(short.update.sum(0) == steps + 1 - first) and np.all(short.k[0] >= first)
    assert plans.from_level(plan, 1).update.sum() == plan.update.sum()
    times = plans.time_table(4)  # 1, 1, .75, .5, .25, 0
    levels = [plans.strength_level(s, times) for s in (1.0, 0.9, 0.75, 0.5, 0.3, 0.01)]
    assert levels == [1, 2, 2, 3, 4, 4]
    for wrong in (lambda: plans.from_level(plan, 0), lambda: plans.strength_level(0.0, times)):
        with pytest.raises(InputError):
            wrong()
