# SPDX-License-Identifier: Apache-2.0
"""The front door: commands are found, complaints are one line, the cache is used where it can be."""

import os
import subprocess
import sys

import jax
import pytest

from jaxvid.cli import main


def shell(*argv, **env):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jaxvid", *argv],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **env},
    )


def test_a_process_ends_with_one_line_and_code_2(tmp_path):
    done = shell(
        "generate",
        "a",
        "--seconds",
        "-1",
        "--out",
        str(tmp_path / "x.mp4"),
        "--checkpoint",
        str(tmp_path / "none"),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("jaxvid: error: checkpoint ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_can_be_had(jaxvid, monkeypatch, capsys):
    monkeypatch.setenv("JAXVID_TRACEBACK", "1")
    assert main.call(["generate", "a", "--checkpoint", "none"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("jaxvid: error: ")


@pytest.mark.parametrize(
    "argv, said",
    [
        (["generat"], "did you mean 'generate'?"),
        (["xyz"], "the commands are"),
        (["--nope"], "no command '--nope'"),
    ],
)
def test_unknown_commands(jaxvid, argv, said):
    done = jaxvid(*argv)
    assert done.code == 2
    assert said in done.error


def test_without_a_command_there_is_help(jaxvid):
    done = jaxvid()
    assert done.code == 0
    assert all(name in done.out for name in main.COMMANDS)


def test_every_command_has_help(jaxvid):
    for name in main.COMMANDS:
        with pytest.raises(SystemExit) as left:
            jaxvid(name, "--help")
        assert left.value.code == 0


def test_unexpected_errors_are_one_line_too(jaxvid, monkeypatch):
    def broken(options):
        raise ZeroDivisionError("seven\nby zero")

    monkeypatch.setattr("jaxvid.cli.info.run", broken)
    done = jaxvid("info")
    assert done.code == 1
    assert done.error == "ZeroDivisionError: seven by zero; JAXVID_TRACEBACK=1 shows where"


def test_an_error_of_the_system_names_its_file(jaxvid, monkeypatch):
    def full(options):
        raise OSError(28, "No space left on device", "/x/y")

    monkeypatch.setattr("jaxvid.cli.info.run", full)
    assert jaxvid("info").error == "/x/y: No space left on device"


@pytest.fixture
def cache_is_put_back():
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_raise_persistent_cache_errors",
)


def test_compiled_programs_are_kept_in_the_cache_directory(cache_is_put_back, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = main.use_compilation_cache()
    assert place.startswith(str(tmp_path / "jaxvid"))
    assert os.path.isdir(place)
    assert jax.config.jax_compilation_cache_dir == place


def test_without_a_place_for_the_cache_it_works_all_the_same(cache_is_put_back, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main.use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_an_interrupted_process_ends_with_130_whatever_the_interpreter_has_still_to_do():
    """jaxlib crashes there (139) where it was interrupted while it compiled; here what comes after fails on its own."""
    said = (
        "import atexit, os, signal\n"
        "from jaxvid.cli import main\n"
        "atexit.register(os._exit, 139)\n"
        "main.dispatch = lambda argv: signal.raise_signal(signal.SIGINT)\n"
        "main.main(['generate'])\n"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (130, "jaxvid: error: interrupted\n")
