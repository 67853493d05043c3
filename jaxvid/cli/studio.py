# SPDX-License-Identifier: Apache-2.0
"""Serves a page on this machine: tell a story, watch it being made, play it, and see all that were made before."""

from __future__ import annotations

import contextlib
import ipaddress
import pathlib
import socket

from jaxvid.cli import main
from jaxvid.cli.progress import Progress
from jaxvid.cli.record import check_writable
from jaxvid.types import InputError


def arguments(parser):
    add = parser.add_argument
    add("--out", metavar="DIR", default="studio", help="where the videos go (default: studio)")
    add(
        "--checkpoint",
        metavar="DIR",
        help="a bundle, a run, or a shipped model's name (default: the shipped)",
    )
    add("--port", type=int, default=8765, help="default: 8765; 0 takes one that is free")
    add(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="the address to listen on (default: 127.0.0.1, which nobody else can reach)",
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a host name by which the page may be reached, beside localhost; may be repeated",
    )


def run(options) -> None:
    """Prints the page's address, and serves until it is interrupted."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(f"jaxvid studio needs {error.name}; pip install 'jaxvid[studio]'") from None
    folder = pathlib.Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be made: {error.strerror}; choose another place") from None
    check_writable(folder / "video.mp4")
    loopback, progress = is_loopback(options.host), Progress()
    with listen(options.host, options.port) as door:
        from jaxvid.pipeline import Pipeline
        from jaxvid.studio.app import Studio

        main.use_compilation_cache()
        studio = Studio(Pipeline.load(options.checkpoint), folder, options.allow_host, not loopback)

        class Server(uvicorn.Server):
            """Lets go of the pages that listen before it waits for them to leave."""

            def handle_exit(self, sig, frame):
                studio.feed.close()
                super().handle_exit(sig, frame)

        if not loopback:
            progress.note(
                f"warning: whoever reaches {options.host} can make videos here; there is no password"
            )
        host, port = door.getsockname()[:2]
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        progress.note(f"videos go to {folder}; Ctrl-C ends it")
        settings = {
            "log_level": "warning",
            "access_log": False,
            "loop": "asyncio",
            "http": "h11",
            "ws": "none",
        }
        with contextlib.suppress(KeyboardInterrupt):  # that is how it ends
            Server(uvicorn.Config(studio.app, lifespan="on", **settings)).run(sockets=[door])
        progress.note("ended")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that the address is taken, or refused, before a model is loaded. Raises `InputError`."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} is no port; give one of 0..65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen on {host}, port {port}: {why}; choose another --port or --host"
        ) from None
