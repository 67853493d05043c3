# SPDX-License-Identifier: Apache-2.0
"""Every command of README.md is executed, in the order in which it stands there, in one folder, at toy size.

What is not as it is written, and nothing else:

- `Pipeline.load()` without a checkpoint gives the toy of tests/toy_pipeline.py (16x16 pixels, random weights).
- Times are a quarter of what is written, so that 60 seconds are 15 (`SHRINK`).
- configs/ holds the repository's configs with networks, clips and runs made small (`CONFIG`); the pictures, the folder of
  videos and story.yaml, which the page shows, lie in the folder (`furnish`).
- `jaxvid studio` takes a free port, and is interrupted when it has shown its page.
- Nothing is installed: `pip install` is held against setup.cfg and constraints/, `make` is given ``-n``, and of
  `jaxvid doctor --distributed` there is one process.

A command that none of `RUNNERS` knows how to run fails, so none is on the page that was not executed.
"""

import configparser
import os
import pathlib
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import types

import httpx2
import numpy as np
import pytest
from PIL import Image

from jaxvid.clip import Clip
from jaxvid.data.decode import read_video
from jaxvid.pipeline import SHIPPED, Pipeline
from tests.cli.conftest import bundle, jaxvid, pipe  # noqa: F401
from tests.toy_pipeline import FPS, SIZE

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LANGUAGES = {"sh", "console", "python", "yaml"}
INLINE = re.compile(r"(?:jaxvid|make|pip|python) \S")  # code in a sentence that is a command
SHRINK = re.compile(r"(--seconds |\bseconds=|\bat: |^ +\()(-?\d+)")

CONFIG = """
import runpy
from jaxvid.config import call
from jaxvid.data.pipeline import Bucket
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.video_dit import VideoDiT
from jaxvid.models.video_vae import micro
from jaxvid.nn.mixers.attention import Attention

def get_config():
    c = runpy.run_path({path!r})["get_config"]()
    for stage in c.stages.values():
        with stage.unlocked():
            stage.source.size = 6 if "size" in stage.source else None
            stage.held_out.size = 2 if "size" in stage.held_out else None
            for clips in (stage.source, stage.held_out):
                if clips.size is None:
                    del clips["size"]
            stage.data.buckets = (call(Bucket, frames=5, height=16, width=16, batch=2),)
            stage.train.update(steps=2, minutes=None)
            stage.evaluate = dict(batches=1)
            stage.samples = dict(never=True)
            if "statistics" in stage:
                stage.statistics = 4
                stage.task.model = call(micro, base=4, mult=(1, 1, 1), temporal=(True, True), patch=2, z=4)
                stage.task.weights, stage.task.start = dict(structure=0.0), None
            else:
                stage.codec = stage.codec if stage.codec in c.stages else {codec!r}
                stage.serve.update(steps=2, seconds=1.0, window=16, overlap=8)
                stage.task.model.text_encoder = call(ByteTextEncoder, width=16, layers=1, head=8)
                stage.task.model.dit = call(
                    VideoDiT, mixers=(call(Attention, head=16),), width=32, head=16, channels=4, text_width=16
                )
    if "data" in c:
        c.data.size = 16
    return c
"""


def blocks() -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)


def inline() -> list[str]:
    """Commands in sentences and tables."""
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S)
    return [code for code in re.findall(r"`([^`\n]+)`", prose) if INLINE.match(code)]


def shrunk(text: str) -> str:
    return SHRINK.sub(lambda found: f"{found[1]}{int(found[2]) / 4:g}", text)


def furnish(folder: pathlib.Path, codec: str) -> None:
    """What a reader of the page has: a checkout's configs, pictures, and videos."""
    (folder / "configs").mkdir()
    for name in ("folder", "shapes"):
        path = str(ROOT / "configs" / f"{name}.py")
        (folder / "configs" / f"{name}.py").write_text(CONFIG.format(path=path, codec=codec))
    rng = np.random.default_rng(0)
    for name in ("first.png", "last.png"):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / name)
    (folder / "my_videos").mkdir()
    for name, seconds in (("clip", 0.75), ("other", 2)):
        small = rng.integers(0, 256, (round(12 * seconds), 4, 4, 3), np.uint8)
        Clip(small.repeat(4, 1).repeat(4, 2), 12.0).save(folder / "my_videos" / f"{name}.mp4")
    (yaml,) = [text for language, text in blocks() if language == "yaml"]
    (folder / "story.yaml").write_text(shrunk(yaml))


def targets() -> set[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    return set(phony[1].split())


class Reader:
    """Somebody who types what the page says."""

    def __init__(self, call, checkpoint):
        self.call, self.checkpoint = call, checkpoint

    def run(self, line: str):
        words = shlex.split(shrunk(line), comments=True)
        runner = next((run for begin, run in RUNNERS.items() if words[: len(begin)] == list(begin)), None)
        assert runner, f"README.md says {line!r}, and this test does not know how to run that"
        return runner(self, words)

    def good(self, line: str) -> None:
        done = self.run(line)
        assert done.code == 0, f"{line}\n{done.err}"

    def jaxvid(self, words):
        if words[1:] in (["import"], ["export"]) or words[-1] == "--help":  # named in a sentence
            with pytest.raises(SystemExit) as left:
                self.call(words[1], "--help")
            return types.SimpleNamespace(code=left.value.code, out="", err="")
        done = self.call(*words[1:])
        if "--out" in words and not done.code:
            made = words[words.index("--out") + 1]
            assert done.out.splitlines()[-1] == made
            assert len(read_video(made)[0])
        return done

    def distributed(self, words):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        alone = ["--coordinator", address, "--processes", "1", "--process", "0"]
        return finished([sys.executable, "-m", *words, *alone], cwd=ROOT)

    def studio(self, words):
        command = [sys.executable, "-m", *words, "--port", "0", "--checkpoint", self.checkpoint]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            try:
                page = httpx2.get(server.stdout.readline().strip(), timeout=120)
                server.send_signal(signal.SIGINT)
                code = server.wait(60)
            finally:
                server.kill()
        assert "<title>JaxVid" in page.text
        return types.SimpleNamespace(code=code, out="", err="")

    def python(self, words):
        module, *argv = words[2:]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, *argv])
            try:
                runpy.run_module(module, run_name="__main__")
            except SystemExit as left:
                return types.SimpleNamespace(code=left.code, out="", err=f"it left with {left.code}")
        return types.SimpleNamespace(code=0, out="", err="")

    def make(self, words):
        asked = [word for word in words[1:] if "=" not in word]
        assert asked and set(asked) <= targets(), f"the Makefile has no {asked}"
        return finished(["make", "-n", "-C", str(ROOT), *words[1:]], cwd=ROOT)

    def pip(self, words):
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        rest = words[2:]
        while rest:
            word = rest.pop(0)
            if word == "-c":
                assert (ROOT / rest.pop(0)).is_file()
            elif word != "-e":
                extra = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
                assert extra, f"pip install {word}: not the checkout"
                for name in (extra[1] or "").split(",") if extra[1] else []:
                    assert setup.has_option("options.extras_require", name), f"no extra {name}"
        return types.SimpleNamespace(code=0, out="", err="")

    def activate(self, words):
        assert words[1] == ".venv/bin/activate"
        assert re.search(r"^VENV \?= \.venv$", (ROOT / "Makefile").read_text(), re.M)
        return types.SimpleNamespace(code=0, out="", err="")


RUNNERS = {
    ("jaxvid", "doctor", "--distributed"): Reader.distributed,
    ("jaxvid", "studio"): Reader.studio,
    ("jaxvid",): Reader.jaxvid,
    ("python", "-m"): Reader.python,
    ("make",): Reader.make,
    ("pip", "install"): Reader.pip,
    (".",): Reader.activate,
}


def finished(command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    return types.SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture
def reader(jaxvid, bundle, pipe, tmp_path, monkeypatch):  # noqa: F811
    """In a folder of their own, with the toy for the shipped model."""
    load = Pipeline.load

    def toy(cls, path=None, **more):
        return pipe if path in (None, SHIPPED) else load(path, **more)

    monkeypatch.setattr(Pipeline, "load", classmethod(toy))
    monkeypatch.syspath_prepend(str(ROOT))
    furnish(tmp_path, bundle)
    return Reader(jaxvid, bundle)


def test_it_is_short_and_its_blocks_have_a_language():
    assert len(TEXT.splitlines()) < 150
    assert {language for language, _ in blocks()} == LANGUAGES


def test_every_block_is_run_in_order(reader, tmp_path):
    names: dict = {}
    for language, text in blocks():
        if language == "python":
            exec(compile(shrunk(text), "README.md", "exec"), names)
            assert [len(clip) for clip in (names["video"], names["story"], names["longer"])] == [
                seconds * FPS // 4 for seconds in (4, 60, 8)
            ]
            assert names["video"].frames.shape[1:] == (SIZE, SIZE, 3)
            assert (tmp_path / "circle.png").is_file()
        elif language == "sh":
            for line in text.splitlines():
                reader.good(line)
        elif language == "console":
            errors(reader, text)
    assert not (tmp_path / "star.mp4").exists()
    assert {one.name for one in (tmp_path / "runs").iterdir()} == {"mine", "shapes"}


def errors(reader, text: str) -> None:
    """Commands that fail in one line: the one that the page shows behind them, where it shows one."""
    told = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", text, re.M)
    assert len(told) == text.count("$ ")
    for line, shown in told:
        done = reader.run(line)
        assert done.code == 2, line
        assert f"jaxvid: error: {done.error}\n" == (shown or f"jaxvid: error: {done.error}\n")


def test_every_command_in_a_sentence_is_run(reader):
    assert len(inline()) > 8
    for line in inline():
        reader.good(line)


@pytest.mark.parametrize(
    "line", ["curl -O https://example.org", "make nothing", "pip install jaxvid", "pip install '.[gpu]'"]
)
def test_what_cannot_be_run_is_noticed(reader, line):
    with pytest.raises(AssertionError):
        reader.good(line)
