# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, and an end asked for by the system: raised where they arrive, and remembered.

Remembered, because Python drops an exception that is raised inside a callback of the garbage collector, and jax has one
there while it compiles: work that had been told to stop would go on.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

ASKED: list[str] = []  # the signals that came


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While this lasts, SIGINT and SIGTERM raise `KeyboardInterrupt`, and `check` does until it is over."""
    ASKED.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(number, _frame):
        ASKED.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ASKED.clear()


def check() -> None:
    """Raises `KeyboardInterrupt` where one was asked for and got lost. Long work calls it between its steps."""
    if ASKED:
        raise KeyboardInterrupt
