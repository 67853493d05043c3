# SPDX-License-Identifier: Apache-2.0
"""What long work says while it runs: stage, rate, time left; one line that moves, or plain lines without a terminal."""

from __future__ import annotations

import io
import os
import sys
import time

from jaxvid.cli import stop

EVERY = 5.0  # seconds between plain lines
BAR = 24  # characters


class Progress:
    """Writes to standard error (or ``stream``); standard output belongs to results.

    ``update(stage, done, total)`` as often as one likes; ``note(text)`` for a line that stays; ``close()`` at the end.
    Rates are measured from a stage's first finished unit on, so that compiling does not spoil them. ``update`` raises
    KeyboardInterrupt where Ctrl-C was pressed and nothing came of it.
    """

    def __init__(self, stream=None, clock=time.monotonic):
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.moves = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.stage, self.width, self.said = None, 0, -1e9
        self.begun: dict[
            str, tuple[float, float]
        ] = {}  # per stage: when its first unit was finished, and which

    def update(self, stage: str, done: float, total: float, unit: str = "steps", note: str = ""):
        stop.check()
        now, new = self.clock(), stage not in self.begun
        if note:
            self.begun.pop(stage, None)  # what is waited for now is not the stage's pace
        elif done > 0 and new:
            self.begun[stage] = now, done
        if stage != self.stage:
            self._end_line()
            self.stage = stage
        finished = done >= total and not note
        if not (finished or note or new or now - self.said >= (0.1 if self.moves else EVERY)):
            return
        self.said = now
        bar = f" {_bar(done / total if total else 1.0)}" if self.moves else ""
        self._show(
            f"{stage:>8}{bar} {_count(done)}/{_count(total)} {unit}{self._pace(stage, done, total, unit, note, now)}"
        )
        if finished:
            self._end_line()
            self.begun.pop(stage, None)
            self.stage = None

    def _pace(self, stage, done, total, unit, note, now) -> str:
        """', rate, time left', or what is being waited for."""
        if note:
            return f", {note}"
        since, first = self.begun.get(stage, (now, 0))
        if now <= since or done <= first:
            return ""
        rate = (done - first) / (now - since)
        said = f", {rate:.3g} {unit}/s" if rate >= 1 else f", {1 / rate:.3g} s per {unit.rstrip('s')}"
        return said + (f", {clock_time((total - done) / rate)} left" if done < total else "")

    def _show(self, text: str):
        if self.moves:
            try:
                columns = os.get_terminal_size(self.stream.fileno()).columns or 80
            except (OSError, ValueError):
                columns = 80
            text = text[: max(columns - 1, 1)]  # a line that wraps cannot be written over
            self._write("\r" + text.ljust(min(self.width, columns - 1)))
            self.width = len(text)
        else:
            self._write(f"jaxvid: {text.strip()}\n")

    def _write(self, text: str):
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:  # nobody listens any more; the work goes on
            self.stream, self.moves = io.StringIO(), False

    def note(self, text: str):
        """A line that stays."""
        self._end_line()
        self._write(f"jaxvid: {text}\n")

    def close(self):
        self._end_line()

    def _end_line(self):
        if self.moves and self.width:
            self._write("\n")
            self.width = 0


def _count(number: float) -> str:
    return f"{number:.0f}" if number == round(number) else f"{number:g}"


def _bar(share: float) -> str:
    full = round(BAR * min(max(share, 0.0), 1.0))
    return "[" + "#" * full + "." * (BAR - full) + "]"


def clock_time(seconds: float) -> str:
    """'7 s', '3:05' or '1:02:03'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
