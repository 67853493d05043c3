# SPDX-License-Identifier: Apache-2.0
"""Progress: plain lines every few seconds where there is no terminal, one moving line where there is."""

import io
import os

import pytest

from jaxvid.cli.progress import EVERY, Progress, clock_time


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        raise OSError


@pytest.fixture(autouse=True)
def any_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def clock():
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


def test_plain_lines_are_few_and_tell_rate_and_time_left(clock):
    stream = io.StringIO()
    progress = Progress(stream, clock)
    progress.update("sample", 0, 40, note="compiling")
    for done in range(1, 41):
        clock.now += 2
        progress.update("sample", done, 40)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "jaxvid: sample 0/40 steps, compiling"
    assert lines[-1] == "jaxvid: sample 40/40 steps, 2 s per step"
    assert len(lines) <= 3 + 80 / EVERY
    # The first step's time, in which compiling is, is not in the rate.
    assert "jaxvid: sample 10/40 steps, 2 s per step, 1:00 left" in lines


def test_stages_that_take_turns_keep_their_rates(clock):
    stream = io.StringIO()
    progress = Progress(stream, clock)
    for done in range(1, 11):
        clock.now += 3
        progress.update("sample", done, 10)
        clock.now += 3
        progress.update("decode", done * 8, 80, "frames")
    lines = stream.getvalue().splitlines()
    assert lines[-2:] == [
        "jaxvid: sample 10/10 steps, 6 s per step",
        "jaxvid: decode 80/80 frames, 1.33 frames/s",
    ]
    assert len(lines) < 20


def test_rates_above_one_are_told_per_second(clock):
    stream = io.StringIO()
    progress = Progress(stream, clock)
    for done in (32, 64, 96):
        clock.now += 1
        progress.update("decode", done, 96, "frames")
    assert stream.getvalue().splitlines()[-1] == "jaxvid: decode 96/96 frames, 32 frames/s"


def test_waiting_in_the_middle_is_not_the_pace(clock):
    stream = io.StringIO()
    progress = Progress(stream, clock)
    progress.update("decode", 29, 93, "frames")
    progress.update("decode", 29, 93, "frames", "compiling")
    for done in (61, 93):
        clock.now += 100 if done == 61 else 4
        progress.update("decode", done, 93, "frames")
    assert stream.getvalue().splitlines()[-1] == "jaxvid: decode 93/93 frames, 8 frames/s"


def test_a_terminal_has_one_line_that_moves(clock):
    stream = Terminal()
    progress = Progress(stream, clock)
    for done in range(5):
        clock.now += 1
        progress.update("sample", done, 4)
    progress.note("done")
    text = stream.getvalue()
    assert text.count("\n") == 2
    assert text.count("\r") == 5
    assert "[############............]" in text
    assert text.endswith("jaxvid: done\n")


def test_a_note_does_not_run_into_the_moving_line(clock):
    stream = Terminal()
    progress = Progress(stream, clock)
    progress.update("sample", 1, 4)
    progress.note("hello")
    assert "\njaxvid: hello\n" in stream.getvalue()


@pytest.mark.parametrize(
    "seconds, said", [(7.4, "7 s"), (59.4, "59 s"), (60, "1:00"), (185, "3:05"), (3723, "1:02:03")]
)
def test_clock_time(seconds, said):
    assert clock_time(seconds) == said


def test_when_nobody_listens_any_more_the_work_goes_on(clock):
    class Gone(Terminal):
        def write(self, text):
            raise BrokenPipeError

    progress = Progress(Gone(), clock)
    progress.update("sample", 1, 2)
    progress.note("still there")
    progress.close()


def test_a_line_never_wraps(clock, monkeypatch):
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((10, 5)))
    stream = Terminal()
    stream.fileno = lambda: 2
    progress = Progress(stream, clock)
    for done in range(1, 4):
        clock.now += 1
        progress.update("sample", done, 3)
    assert all(len(line) < 10 for line in stream.getvalue().replace("\n", "\r").split("\r"))
