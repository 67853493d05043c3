# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: what the worker's thread says, to every page that listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

MOST = 32  # pages at a time
HELD = 256  # messages that a page may be late by
BEAT = 15.0  # seconds after which a silent line says that it is still there


class Feed:
    """One line per page. A page that cannot keep up is cut off; it comes again by itself and is told all that matters."""

    def __init__(self):
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lines: set[asyncio.Queue] = set()
        self._closed = False

    def start(self) -> None:
        """To be called on the server's own loop, before anything is said."""
        self._loop, self._closed = asyncio.get_running_loop(), False

    def say(self, kind: str, data: Any) -> None:
        """From any thread. ``data`` is plain."""
        if self._loop is not None and not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop ended in between
                self._loop.call_soon_threadsafe(self._pass_on, message(kind, data))

    def close(self) -> None:
        """Ends all lines, from any thread; the server can then leave."""
        if self._loop is not None and not self._closed:
            self._closed = True
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._pass_on, None)

    def full(self) -> bool:
        return len(self._lines) >= MOST

    async def listen(self, first: Callable[[], Iterable[tuple[str, Any]]]) -> AsyncIterator[bytes]:
        """A page's line: what ``first`` says, then all that is said from now on."""
        line: asyncio.Queue = asyncio.Queue(HELD)
        self._lines.add(line)
        try:
            yield b"retry: 1000\n\n"
            for kind, data in first():  # after listening has begun, so that nothing is lost in between
                yield message(kind, data)
            while not self._closed:
                try:
                    said = await asyncio.wait_for(line.get(), BEAT)
                except TimeoutError:
                    said = b": still here\n\n"
                if said is None:
                    return
                yield said
        finally:
            self._lines.discard(line)

    def _pass_on(self, said: bytes | None) -> None:
        for line in list(self._lines):
            if said is None or line.full():
                while not line.empty():
                    line.get_nowait()
                line.put_nowait(None)
                self._lines.discard(line)
            else:
                line.put_nowait(said)


def message(kind: str, data: Any) -> bytes:
    """An event as it goes over the line; JSON has no bare line ends, so it is one line."""
    return f"event: {kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode()
