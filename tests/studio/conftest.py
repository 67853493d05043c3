# SPDX-License-Identifier: Apache-2.0
"""A studio on a port of its own, in a thread, as a browser finds it."""

import contextlib
import json
import socket
import threading
import time

import httpx2
import pytest
import uvicorn

from jaxvid.studio.app import Studio
from tests.studio.painter import Painter
from tests.toy_pipeline import spec, toy_pipeline


def of_size(side, fps):
    described = spec()
    described["serves"] |= {"sizes": [[side, side]], "fps": [fps]}
    return toy_pipeline(described=described)


@pytest.fixture(scope="session")
def painter():
    """At the size at which the reader can read."""
    return Painter(of_size(64, 16))


@contextlib.contextmanager
def serving(pipe, folder, **more):
    """``(address, studio)`` while the block lasts."""
    studio = Studio(pipe, folder, **more)
    with socket.create_server(("127.0.0.1", 0)) as door:
        server = uvicorn.Server(
            uvicorn.Config(studio.app, log_level="warning", loop="asyncio", http="h11", ws="none")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive())
            yield f"http://127.0.0.1:{door.getsockname()[1]}", studio
        finally:
            studio.feed.close()
            server.should_exit = True
            thread.join(900)
            assert not thread.is_alive()


def until(true, seconds=900):
    """Waits for something to become true, and returns it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


class Events:
    """What a page hears: `jobs` and `previews` so far, read in a thread until ``close``."""

    def __init__(self, client):
        self.jobs, self.previews, self.kinds = [], [], []
        self._client, self._closing = client, threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        gone = contextlib.suppress(httpx2.HTTPError, OSError)  # the client may be closed first
        with gone, self._client.stream("GET", "/api/events", timeout=900) as response:
            assert response.headers["content-type"] == "text/event-stream"
            kind = ""
            for line in response.iter_lines():
                if self._closing.is_set():
                    return
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    self.kinds.append(kind)
                    (self.jobs if kind == "jobs" else self.previews).append(data)

    def status(self, number):
        found = [job["status"] for job in (self.jobs[-1] if self.jobs else []) if job["number"] == number]
        return found[0] if found else None

    def close(self):
        self._closing.set()
