# SPDX-License-Identifier: Apache-2.0
"""One toy pipeline, compiled once, behind all commands; and a way to call them as from a shell."""

import dataclasses

import pytest

from jaxvid.cli import main
from jaxvid.pipeline import Pipeline
from tests.toy_pipeline import toy_pipeline

SHORT = "3.125"  # seconds of 25 frames at 8 per second: one piece of the decoder


@dataclasses.dataclass
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a failed command, which is its last; there is no traceback."""
        assert self.code, f"it succeeded: {self.out}"
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("jaxvid: error: ")] == lines[-1:]
        assert "Traceback" not in self.err
        return lines[-1].removeprefix("jaxvid: error: ")


@pytest.fixture(scope="session")
def pipe():
    return toy_pipeline()


@pytest.fixture(scope="session")
def bundle(pipe, tmp_path_factory):
    """The toy as a bundle on the disk."""
    return str(pipe.save(tmp_path_factory.mktemp("toy") / "bundle"))


@pytest.fixture
def jaxvid(monkeypatch, capsys, bundle, pipe, tmp_path):
    """`jaxvid("generate", ...)`: the command line in this process, the toy bundle being loaded once and for all."""
    load = Pipeline.load.__func__
    monkeypatch.setattr(
        Pipeline,
        "load",
        classmethod(lambda cls, path=None, **more: pipe if path == bundle else load(cls, path, **more)),
    )
    monkeypatch.setattr(main, "use_compilation_cache", lambda: None)
    monkeypatch.delenv("JAXVID_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        capsys.readouterr()
        code = main.call([str(one) for one in argv])
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return run


@pytest.fixture
def generate(jaxvid, bundle):
    """`generate(prompt, ...)` with the toy, short, in few steps."""

    def run(*argv):
        return jaxvid("generate", "--checkpoint", bundle, "--seconds", SHORT, *argv)

    return run
