# SPDX-License-Identifier: Apache-2.0
"""`jaxvid info, reconstruct, read, doctor, demo`."""

import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from jaxvid.cli import demo, doctor
from jaxvid.data.decode import read_video
from jaxvid.data.shapes import parse, render, story_scene
from jaxvid.io.video_file import save_video
from jaxvid.traits import shipped
from tests.toy_pipeline import FPS, SIZE


@pytest.fixture(scope="module")
def star():
    """Three seconds of the shapes world."""
    scene = story_scene([(0.0, parse("a large red star spins on a black background"))])
    return render(scene, 48, 16, 64)


def test_info_tells_what_a_bundle_serves(jaxvid, bundle):
    done = jaxvid("info", bundle)
    assert done.code == 0, done.err
    for said in (
        "16x16, 16x32",
        "8, 16",
        "steps 3",
        "TextToVideo",
        "at most 80 bytes",
        "4x8x8 to 4 channels",
        "# Toy",
    ):
        assert said in done.out


def test_info_tells_how_a_video_was_made(jaxvid, star):
    save_video("x.mp4", star, 16, {"seed": 7, "prompt": "a red star"})
    assert json.loads(jaxvid("info", "x.mp4").out) == {"seed": 7, "prompt": "a red star"}


def test_info_of_nothing_is_one_line(jaxvid):
    done = jaxvid("info", "nowhere")
    assert (done.code, done.error) == (
        2,
        "checkpoint 'nowhere' does not exist; give the directory of a bundle or a training run,"
        f" or a shipped model's name: {', '.join(path.name for path in shipped())}",
    )


def test_reconstruct_measures_what_it_writes(jaxvid, bundle, pipe, tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (41, 2, 2, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    save_video("x.mp4", frames, FPS)
    done = jaxvid("reconstruct", "x.mp4", "--out", "y.mp4", "--checkpoint", bundle)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[-1] == "y.mp4"
    assert lines[1] == "41 frames of 16x16 at 8 fps"
    original, _ = read_video(tmp_path / "x.mp4")
    made = pipe.decode(pipe.encode(original), len(original)).frames
    error = np.mean(((original.astype(float) - made) / 255) ** 2, (1, 2, 3))
    assert float(re.match(r"PSNR (\S+) dB", lines[0])[1]) == pytest.approx(
        (-10 * np.log10(error)).mean(), abs=0.02
    )
    written, fps = read_video(tmp_path / "y.mp4")
    assert (written.shape, fps) == ((41, SIZE, SIZE, 3), FPS)
    assert np.abs(written.astype(float) - made).mean() < 12


@pytest.mark.parametrize("name", ["nowhere.mp4", "text.mp4"])
def test_reconstruct_and_read_name_a_bad_file(jaxvid, bundle, tmp_path, name):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "y.mp4").write_bytes(b"precious")
    for command in (["reconstruct", name, "--out", "y.mp4", "--checkpoint", bundle], ["read", name]):
        done = jaxvid(*command)
        assert done.code == 2
        assert name in done.error
    assert (tmp_path / "y.mp4").read_bytes() == b"precious"


def test_reconstruct_does_not_write_over_its_own_video(jaxvid, bundle, star):
    save_video("x.mp4", star, 16)
    before = pathlib.Path("x.mp4").read_bytes()
    done = jaxvid("reconstruct", "x.mp4", "--out", "./x.mp4", "--checkpoint", bundle)
    assert "is the file x.mp4 that is given" in done.error and pathlib.Path("x.mp4").read_bytes() == before


def test_reconstruct_refuses_sizes_that_do_not_fit(jaxvid, bundle, star):
    save_video("x.mp4", star, 16)
    assert "20x16" in jaxvid("reconstruct", "x.mp4", "--size", "20x16", "--checkpoint", bundle).error


def test_read_is_json_per_second(jaxvid, star):
    save_video("x.mp4", star, 16)
    done = jaxvid("read", "x.mp4")
    assert done.code == 0, done.err
    verdicts = json.loads(done.out)
    assert [verdict["second"] for verdict in verdicts] == [0, 1, 2]
    (seen,) = verdicts[1]["objects"]
    assert {name: seen[name] for name in ("shape", "colour", "size", "motion")} == {
        "shape": "star",
        "colour": "red",
        "size": "large",
        "motion": "spins",
    }
    assert verdicts[1]["background"] == "black"


def test_doctor_says_how_to_have_huge_pages(tmp_path, monkeypatch):
    mode = tmp_path / "enabled"
    mode.write_text("always [madvise] never\n")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command" in doctor._pages(mode)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert doctor._pages(mode) == "huge pages: asked for (GLIBC_TUNABLES)"
    mode.write_text("[always] madvise never\n")
    assert doctor._pages(mode) == "huge pages: always"
    assert doctor._pages(tmp_path / "missing") == "as this system has them"


def test_doctor_tells_all_it_can_and_never_fails(jaxvid, monkeypatch):
    def broken():
        raise RuntimeError("no such\nluck")

    monkeypatch.setitem(doctor.FACTS, "memory", broken)
    done = jaxvid("doctor")
    assert done.code == 0
    assert "cannot be told (RuntimeError: no such luck)" in done.out
    assert "libx264" in done.out
    assert re.search(r"^devices +cpu 0", done.out, re.M)


def test_demo_writes_video_sheet_and_verdict(jaxvid, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SECONDS", 25 / FPS)
    monkeypatch.setattr(demo, "STORY", demo.STORY[:1])
    done = jaxvid("demo", "--out", "d", "--checkpoint", bundle)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "d/demo.mp4"
    assert len(read_video(tmp_path / "d" / "demo.mp4")[0]) == 25
    assert Image.open(tmp_path / "d" / "demo.png").size[0] > 100
    verdict = json.loads((tmp_path / "d" / "demo.json").read_text())
    assert len(verdict["seconds"]) == 3
    assert verdict["accuracy"]["all"]["total"] > 0
    assert f"asked: {demo.STORY[0][1]}" in done.out
    assert "reader: " in done.out


def test_the_demo_is_a_minute_of_things_that_were_trained_on():
    from jaxvid.data.shapes import held_out

    assert demo.SECONDS >= 60
    for at, text in demo.STORY:
        (look,) = parse(text).objects
        assert not held_out(look.colour, look.shape)
        assert 0 <= at < demo.SECONDS
