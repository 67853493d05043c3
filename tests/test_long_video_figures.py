# SPDX-License-Identifier: Apache-2.0
"""The figures of experiments/e002_long_video on videos that are known."""

import json
import math
import pathlib

import numpy as np
import pytest

from experiments.e002_long_video import figures, run
from experiments.e002_long_video.plot import panels
from jaxvid.data.shapes.captions import parse
from jaxvid.data.shapes.world import held_out
from jaxvid.sampling.methods.method import Setting
from jaxvid.sampling.methods.table import make


def test_prompts_are_of_the_world_and_of_pairs_that_training_shows():
    for prompt in run.PROMPTS:
        (look,) = parse(prompt).objects
        assert look.motion and look.size and parse(prompt).background
        assert not held_out(look.colour, look.shape)


def test_jumps_at_borders():
    ramp = np.broadcast_to(np.arange(41, dtype=np.uint8)[:, None, None, None], (41, 4, 4, 3)).copy()
    assert figures.jump(ramp, range(13, 41, 8)) == 1.0
    for at in range(13, 41, 8):
        ramp[at:] += 10
    assert figures.jump(ramp, range(13, 41, 8)) == 11.0
    assert math.isnan(figures.jump(ramp, [])) and math.isnan(figures.jump(ramp[:5], [99]))


def test_where_something_new_begins():
    setting = Setting(40, 6, 16, 8)
    borders = lambda name, **options: figures.borders(make(name, setting, options), 4)
    assert borders("rollout") == [61, 93, 125]  # latent frames 16, 24, 32 begin there
    assert borders("genl") == [29, 61, 93] and borders("oneshot") == [] == borders("fifo")


def look(colour, shape="star"):
    return {"objects": [{"shape": shape, "colour": colour}]}


def test_drift_counts_seconds_that_look_otherwise():
    same = figures.same_as_first([look("red"), look("blue"), look("red"), {"objects": []}])
    assert same == [True, False, True, False] and figures.drift(same) == 2 / 3
    assert figures.drift([True]) == 0


def video(method, right, **more):
    """A video of `len(right)` seconds with so many of four units right in each."""
    counts = [{"shape": [min(n, 2), 2], "colour": [max(n - 2, 0), 2]} if n is not None else {} for n in right]
    made = {
        "method": method,
        "model": "shapes",
        "seconds": len(right),
        "accuracy": counts,
        "same": [True] * len(right),
    }
    costs = {"jump": 1.5, "calls": 70, "frames per call": 16, "wall": 2.0 * len(right), "compiling": 0.0}
    return {**made, **costs, "peak GiB": 1.25, **more}


def test_seconds_are_averaged_over_videos():
    runs = [video("fifo", [4, 2, None]), video("fifo", [4, 4, 0], same=[True, True, False])]
    assert figures.by_second(runs) == [1.0, 0.75, 0.0] and figures.by_second(runs, "shape")[1] == 1.0
    assert figures.same_by_second(runs) == [1.0, 1.0, 0.5]
    row = figures.summary(runs)
    assert row["thirds"] == [1.0, 0.75, 0.0] and row["drift"] == 0.25 and row["wall"] == 2.0


def test_a_video_that_was_compiled_meanwhile_does_not_set_the_pace():
    runs = [video("fifo", [4], wall=50.0, compiling=30.0), video("fifo", [4])]
    assert figures.summary(runs)["wall"] == 2.0 and figures.summary(runs[:1])["wall"] == 50.0


def test_the_table_has_a_line_for_each_method():
    rows = [
        figures.summary([video("fifo", [4, 2, 1])]),
        figures.summary([video("genl", [4, 4, 4], jump=math.nan)]),
    ]
    lines = figures.table(rows).splitlines()
    assert (
        lines[2] == "| genl | shapes | 100.0 | 100.0 | 100.0 | 0.00 |  | 70 | 16 | 2.00 | 1.25 |"
    )  # the best one first
    assert lines[3] == "| fifo | shapes | 100.0 | 50.0 | 25.0 | 0.00 | 1.50 | 70 | 16 | 2.00 | 1.25 |"


def test_the_plot_has_a_line_for_each_stretch():
    text = panels({"right": {"a & b": [1.0, math.nan, 0.5, 0.25], "c": [0.0] * 4}, "same": {"c": [1.0] * 2}})
    assert text.count("<polyline") == 4 and "a &amp; b" in text and "nan" not in text


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch, capsys):
    """A file for each (method, prompt, seed); an interrupted comparison goes on, other settings are refused."""
    made = []
    assert json.loads(run.to_json({"a": [math.nan, 1.5], "b": (True, 2)})) == {
        "a": [None, 1.5],
        "b": [True, 2],
    }

    def one(pipe, method, prompt, seed, seconds, steps, folder):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((method, prompt, seed))
        return video(method, [4, 3])

    class Pipe:
        traits = frozenset({"bidirectional"})

        @classmethod
        def load(cls, checkpoint):
            return cls()

    def called(command):
        run.main(command[3:])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(run, "one", one)
    monkeypatch.setattr(run, "Pipeline", Pipe)
    monkeypatch.setattr(run, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(run, "shipped", lambda: [pathlib.Path("shapes")])
    monkeypatch.setattr(run.subprocess, "run", called)
    asked = ["--out", str(tmp_path), "--prompts", "2", "--methods", "rollout,genl", "--seconds", "2"]
    with pytest.raises(KeyboardInterrupt):
        run.main(asked)
    first, made[:] = list(made), []
    assert first == [("rollout", p, 0) for p in run.PROMPTS[:2]]
    run.main(asked)
    assert made == [("genl", p, 0) for p in run.PROMPTS[:2]]
    assert {path.name for path in tmp_path.iterdir()} == {
        "videos",
        "settings.json",
        "table.md",
        "plot.svg",
        "results.json",
    }
    lines = json.loads((tmp_path / "results.json").read_text())["lines"]["right of what the prompt says"]
    assert lines == {"rollout": [1.0, 0.75], "genl": [1.0, 0.75]}
    run.main([*asked, "--prompts", "1"])
    assert len(made) == 2 and "| genl |" in capsys.readouterr().out
    run.main([*asked, "--prompts", "1", "--methods", "rollout,far"])
    said = capsys.readouterr().out
    assert (
        "far: not made, it needs a causal model with long memory and none was given" in said
        and "| rollout |" in said
    )
    with pytest.raises(SystemExit, match="other settings"):
        run.main([*asked, "--seconds", "3"])
    with pytest.raises(SystemExit, match="of shapes, not of elsewhere"):
        run.main([*asked, "--checkpoint", str(tmp_path / "elsewhere")])


def test_a_method_runs_on_the_first_checkpoint_that_it_can_run_on():
    traits = [{"bidirectional"}, {"bidirectional", "temporal attention"}, {"causal", "state memory"}]
    places, notes = run.assigned(["a", "b", "c"], traits, None)
    assert (places["rollout"], places["vstar"], places["mamba-state"]) == ("a", "b", "c")
    assert (
        "far" not in places
        and len(notes) == 3
        and any(note.startswith("student: not made") for note in notes)
    )
    assert run.assigned(["a", "b", "c"], traits, ["rollout@3", "rollout"])[0] == {
        "rollout@3": "c",
        "rollout": "a",
    }
    for wrong in ("rollout@4", "rolout"):
        with pytest.raises(SystemExit, match="no method"):
            run.assigned(["a"], traits[:1], [wrong])
