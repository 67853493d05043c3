# SPDX-License-Identifier: Apache-2.0
"""Who is there, asked before jax starts: where somebody does not come, its client ends the process, and names nobody.

Process 0 listens on the coordinator's port, the others say their numbers, and all hear who is missing. Then the port is
free.
"""

from __future__ import annotations

import contextlib
import socket
import time

from jaxvid.types import InputError

ANSWER = 10.0  # seconds beyond the limit in which process 0 tells the others
WORD = 4096  # bytes, at most, of what is said


def roll_call(address: str, count: int, process: int, limit: float) -> None:
    """Returns when all processes have come. Raises InputError, in each that came, naming those that did not."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"{address!r} is no address to meet at; give HOST:PORT, such as 10.0.0.1:1234")
    end = time.monotonic() + limit
    if process == 0:
        missing = _listen(int(port), count, end)
    else:
        missing = _answer(host.strip("[]"), int(port), process, end, limit)
    if missing:
        raise InputError(
            f"of {count} processes {missing} did not come to {address} within {limit:g} s; start them all, and see that"
            " they can reach it"
        )


def _listen(port: int, count: int, end: float) -> str:
    family = dict(family=socket.AF_INET6, dualstack_ipv6=True) if socket.has_dualstack_ipv6() else {}
    try:
        door = socket.create_server(("", port), **family)
    except OSError as error:
        raise InputError(
            f"process 0 cannot listen on port {port}: {error.strerror}; choose another"
        ) from None
    here: dict[int, socket.socket] = {}
    with door, contextlib.ExitStack() as open_lines:
        while len(here) < count - 1 and (left := end - time.monotonic()) > 0:
            door.settimeout(left)
            try:
                line, _ = door.accept()
            except TimeoutError:
                break
            open_lines.enter_context(line)
            number = _read(line, min(end, time.monotonic() + ANSWER))
            if number.isdigit() and 0 < int(number) < count:
                here[int(number)] = line
        missing = ", ".join(str(n) for n in range(1, count) if n not in here)
        for line in here.values():
            with contextlib.suppress(OSError):  # who has left again will be missed by jax
                line.sendall(f"missing {missing}\n".encode())
    return missing


def _answer(host: str, port: int, process: int, end: float, limit: float) -> str:
    while True:
        try:
            line = socket.create_connection((host, port), max(0.1, min(ANSWER, end - time.monotonic())))
            break
        except OSError as error:
            if time.monotonic() >= end:
                raise InputError(
                    f"process 0 does not listen at {host}:{port} within {limit:g} s ({error.strerror or error});"
                    " start it, and see that the port can be reached"
                ) from None
            time.sleep(0.2)
    with line:
        line.sendall(f"{process}\n".encode())
        said = _read(line, end + ANSWER)
    if not said.startswith("missing"):
        raise InputError(
            f"what listens at {host}:{port} is no process 0 that calls the roll; choose a free port"
        )
    return said.removeprefix("missing").strip()


def _read(line: socket.socket, end: float) -> str:
    """What comes up to the end of a line, or nothing."""
    said = b""
    with contextlib.suppress(OSError):
        while not said.endswith(b"\n") and len(said) < WORD:
            line.settimeout(max(0.01, end - time.monotonic()))
            if not (more := line.recv(WORD)):
                break
            said += more
    return said.decode(errors="replace").strip()
