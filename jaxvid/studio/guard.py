# SPDX-License-Identifier: Apache-2.0
"""Who may talk to the studio: pages of its own, under a name that cannot be turned on it, in small messages.

A page from elsewhere that a browser shows can send requests to this machine. It cannot read the answers unless a name of
its own leads here (DNS rebinding), which the check of Host refuses; and what it sends without reading is refused by
Origin, by Sec-Fetch-Site, and by taking nothing but JSON.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from jaxvid.types import InputError

LARGEST = 64 << 10  # bytes that a page may send
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """An ASGI application around another one, which hears only requests that may be.

    names: host names beside localhost that this server goes by. anywhere: whether it listens on more than loopback, so
    that any address is a name of it; an address cannot be rebound, only a name can.
    """

    def __init__(self, app, names: Collection[str] = (), anywhere: bool = False):
        self.app, self.anywhere = app, anywhere
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # it has no web sockets
        request = Request(scope)
        refused = self._refuses(request)
        answer = self.app if refused is None else JSONResponse({"error": refused}, 403)

        async def send_guarded(message):
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await answer(scope, receive, send_guarded)

    def _refuses(self, request: Request) -> str | None:
        """Why a request is refused, or None."""
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._is_us(hosts[0]):
            return "this server does not go by that name; use http://127.0.0.1 or jaxvid studio --allow-host NAME"
        reads = request.method in ("GET", "HEAD")
        comes = reads and request.headers.get("sec-fetch-mode") == "navigate"  # somebody followed a link
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not comes:
            return "pages from elsewhere may not talk to this server"
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() not in (
            f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")
        ):
            return "pages from elsewhere may not talk to this server"
        return None

    def _is_us(self, host: str) -> bool:
        """Whether a Host header, a name or an address and perhaps a port, means this server."""
        name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
        if port and not (port.isascii() and port.isdigit()):
            return False
        if name.lower() in self.names:
            return True
        bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        try:
            address = ipaddress.ip_address(bare)
        except ValueError:
            return False
        return self.anywhere or address.is_loopback


async def read_json(request: Request) -> Any:
    """The JSON that a page sent. Raises `InputError` for what is too long, no JSON or not said to be."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InputError(f"content of type {kind[:40] or 'nothing'!r} was sent; send application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST:
            raise InputError(f"more than {LARGEST} bytes were sent; shorten the story")
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise InputError("what was sent is not JSON; reload the page") from None


def _no_number(word: str):
    raise ValueError(word)
