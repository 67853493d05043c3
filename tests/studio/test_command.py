# SPDX-License-Identifier: Apache-2.0
"""`jaxvid studio`: it listens at home, says what it lacks, and ends when it is interrupted."""

import os
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from jaxvid.cli import main
from jaxvid.cli.studio import is_loopback, listen
from jaxvid.types import InputError
from tests.toy_pipeline import toy_pipeline


def test_a_process_serves_until_it_is_interrupted(tmp_path):
    bundle = toy_pipeline().save(tmp_path / "toy")
    argv = [sys.executable, "-m", "jaxvid", "studio", "--checkpoint", str(bundle), "--port", "0"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.communicate(timeout=60)
        assert httpx2.get(f"{address}/api/model", timeout=120).json()["name"] == str(bundle)
        with httpx2.stream("GET", f"{address}/api/events", timeout=60) as listening:
            next(listening.iter_lines())
            process.send_signal(signal.SIGINT)  # though a page listens
            assert process.wait(60) == 0
        _, said = process.communicate()
    finally:
        process.kill()
    assert "Traceback" not in said and said.splitlines()[-1] == "jaxvid: ended"
    assert (tmp_path / "studio").is_dir()


def test_what_is_missing_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main.call(["studio", "--out", str(tmp_path / "s")]) == 2
    assert "jaxvid studio needs uvicorn; pip install 'jaxvid[studio]'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1, port {port}: .*choose another"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match="--port 70000 is no port"):
        listen("127.0.0.1", 70000)


@pytest.mark.parametrize(
    "host, at_home",
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_what_is_loopback(host, at_home):
    assert is_loopback(host) == at_home
