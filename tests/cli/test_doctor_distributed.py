# SPDX-License-Identifier: Apache-2.0
"""`jaxvid doctor --distributed`: two real processes that agree, and what is said when something is wrong."""

import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from jaxvid.cli.doctor_distributed import alike, within
from jaxvid.cli.join import VARIABLES, from_environment, join_if_many
from jaxvid.cli.roll_call import roll_call
from jaxvid.types import InputError

ROOT = pathlib.Path(__file__).parents[2]


def start(port: int, process: int, *more: str) -> subprocess.Popen:
    env = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
        PYTHONPATH=str(ROOT),
    )
    command = [sys.executable, "-m", "jaxvid.cli.main", "doctor", "--distributed", "--processes", "2"]
    command += ["--coordinator", f"127.0.0.1:{port}", "--process", str(process), *more]
    return subprocess.Popen(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_processes_find_each_other_and_add_up():
    port = free_port()
    running = [start(port, i, "--limit", "300") for i in (0, 1)]
    for i, process in enumerate(running):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-2000:]
        assert f"process {i} of 2" in out and "2 processes have the same versions" in out
        assert "over 4 devices is 10, as it should be" in out


def test_who_does_not_come_is_named_by_all_who_came():
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "jaxvid",
        "doctor",
        "--distributed",
        "--coordinator",
        f"localhost:{port}",
    ]
    command += ["--processes", "3", "--limit", "8", "--process"]
    env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
    running = [
        subprocess.Popen([*command, str(i)], env=env, stderr=subprocess.PIPE, text=True) for i in (0, 1)
    ]
    for process in running:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2
        assert err.startswith("jaxvid: error: of 3 processes 2 did not come") and len(err.splitlines()) == 1


def test_nobody_listens_and_no_address():
    with pytest.raises(InputError, match="process 0 does not listen at localhost:.* within 0.3 s"):
        roll_call(f"localhost:{free_port()}", 2, 1, 0.3)
    for text in ("localhost", "localhost:", ":1234", "localhost:0", "localhost:port"):
        with pytest.raises(InputError, match="give HOST:PORT"):
            roll_call(text, 2, 0, 1)


def test_a_roll_is_called_to_the_end_though_strangers_call():
    port, heard = free_port(), []
    caller = threading.Thread(target=lambda: heard.append(roll_call(f"localhost:{port}", 3, 0, 60)))
    caller.start()
    for said in (b"7\n", b"GET / HTTP/1.1\n"):
        with connected(port) as stranger:
            stranger.sendall(said)
    others = [threading.Thread(target=roll_call, args=(f"localhost:{port}", 3, i, 60)) for i in (1, 2)]
    for one in others:
        one.start()
    for one in (*others, caller):
        one.join(60)
    assert heard == [None]


def connected(port):
    for _ in range(100):
        try:
            return socket.create_connection(("localhost", port), 5)
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")


class Board:
    """A store in which the other processes have written already."""

    def __init__(self, **said):
        self.said = {f"jaxvid/doctor/{k[1:]}": v for k, v in said.items()}

    def put(self, key, value):
        self.said[key] = value

    def get(self, key):
        return self.said.get(key)


def test_the_missing_and_the_different_are_named():
    alike(Board(p1='{"jax": "1"}'), 0, 2, {"jax": "1"})
    with pytest.raises(InputError, match="processes 1, 2 of 3 said nothing"):
        alike(Board(), 0, 3, {"jax": "1"})
    with pytest.raises(InputError, match="config is b in process 1 and a in process 0"):
        alike(Board(p1='{"jax": "1", "config": "b"}'), 0, 2, {"jax": "1", "config": "a"})


def test_what_never_ends_is_ended():
    with pytest.raises(InputError, match="the sum took more than 0.05 s"):
        within(0.05, "the sum", lambda: time.sleep(5))
    assert within(5, "the sum", lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, "the sum", lambda: 1 // 0)


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--coordinator", "x:1"], "go together"),
        (["--coordinator", "x:1", "--processes", "2", "--process", "2"], "not among 2; count from 0"),
        (["--limit", "0"], "no time"),
    ],
)
def test_bad_requests_are_one_line(jaxvid, argv, said):
    done = jaxvid("doctor", "--distributed", *argv)
    assert done.code == 2 and said in done.error


@pytest.mark.parametrize(
    "address, count, process, wanted",
    [
        (None, None, None, None),
        ("a:1", "2", "1", ("a:1", 2, 1)),
        (None, "1", None, (None, 1, 0)),  # alone, whatever the cluster says
        ("a:1", "2", None, "go together"),
        (None, "2", "0", "go together"),
        ("a:1", "2", "2", "no process 2 among 2"),
        ("a:1", "two", "0", "give numbers"),
    ],
)
def test_processes_by_variables(address, count, process, wanted):
    values = zip(VARIABLES, (address, count, process), strict=True)
    environ = {name: value for name, value in values if value is not None}
    if not isinstance(wanted, str):
        assert from_environment(environ) == wanted
        return
    with pytest.raises(InputError, match=wanted):
        from_environment(environ)


def test_one_process_waits_for_nobody(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # a batch script is not a step of it
    assert not join_if_many()
    for name, value in dict(STEP_NODELIST="n1", NTASKS="1", PROCID="0", LOCALID="0").items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert not join_if_many()
