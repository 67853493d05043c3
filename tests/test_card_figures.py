# SPDX-License-Identifier: Apache-2.0
"""The figures of experiments/e008_card on videos whose truth is known."""

import json
import math

import numpy as np
import pytest

from experiments.e002_long_video.run import to_json
from experiments.e008_card import figures, run
from experiments.e008_card.run import SEGMENT, story
from jaxvid.clip import Clip
from jaxvid.data.shapes import held_out, parse, render, story_scene
from jaxvid.eval.shapes_accuracy import score_seconds

FPS = 16.0


@pytest.fixture(scope="module")
def told():
    """Three segments of a story, drawn without any model."""
    told = story(3)[:3]
    scene = story_scene([(at, parse(text)) for at, text in told], rng=0)
    return told, render(scene, 3 * SEGMENT * 16, FPS, (64, 64))


def test_a_story_changes_one_object_and_shows_seen_pairs_only():
    for seed in range(20):
        looks = [parse(text).objects for _, text in story(seed)]
        assert all(
            len(objects) == 1 and not held_out(objects[0].colour, objects[0].shape) for objects in looks
        )
        for (before,), (after,) in zip(looks, looks[1:], strict=False):
            assert before.motion != after.motion and before.size == after.size
        assert (
            len({objects[0].colour for objects in looks}) > 1 < len({objects[0].shape for objects in looks})
        )


def test_prompts_are_those_of_the_scenes_where_the_model_can_read_them():
    for kind in ("seen pair, one object", "held-out pair, two objects"):
        plain = [run.source(kind, 40).clip(i, run.FOUR).captions[0][1] for i in range(40)]
        asked = [run.prompt(kind, i, 40) for i in range(40)]
        assert max(len(text.encode()) for text in asked) <= 112
        assert [(a, b) for a, b in zip(plain, asked, strict=True) if a != b and len(a.encode()) <= 112] == []
    assert plain != asked


def test_the_truth_is_right_and_does_not_jump(told):
    told, frames = told
    seconds = score_seconds(frames, FPS, [(round(at * FPS), text) for at, text in told])
    for a in range(0, 3 * SEGMENT, SEGMENT):
        assert figures.all_right(figures.added(seconds, a, a + SEGMENT))
    at = figures.centres(frames, FPS)
    assert np.isfinite(at).mean() > 0.95
    for border, _ in told[1:]:
        assert figures.holds_together(*figures.jump(at, round(border * FPS), 4))


def test_another_caption_is_wrong(told):
    told, frames = told
    wrong = (
        told[0][1].replace("large", "small")
        if "large" in told[0][1]
        else told[0][1].replace("small", "large")
    )
    counts = figures.added(score_seconds(frames[: SEGMENT * 16], FPS, [(0, wrong)]), 0, SEGMENT)
    assert not figures.all_right(counts) and counts["size"][0] == 0 < counts["colour"][0]


def test_a_jump_is_one():
    at = np.stack([np.linspace(0, 40, 80), np.full(80, 30.0)], -1)
    assert figures.holds_together(*figures.jump(at, 40, 4))
    at[40:] += 9.0
    largest, usual = figures.jump(at, 40, 4)
    assert largest > 9 and usual < 1 and not figures.holds_together(largest, usual)
    at[41] = np.nan
    assert figures.jump(at, 40, 4)[0] == math.inf
    assert not figures.holds_together(
        *json.loads(to_json(figures.jump(at, 40, 4)))
    )  # as it comes from a file


def test_attributes_are_counted_by_what_was_asked():
    star = {
        "prompt": "a large red star spins on a black background",
        "counts": {"shape": (1, 4), "motion": (2, 4)},
    }
    ring = {
        "prompt": "a small red ring pulses on a black background",
        "counts": {"shape": (3, 4), "motion": (0, 4)},
    }
    assert figures.by_attribute([star, ring, star]) == {
        "shape": (5, 12),
        "motion": (4, 12),
        "shape: star": (2, 8),
        "shape: ring": (3, 4),
        "motion: spins": (4, 8),
        "motion: pulses": (0, 4),
    }


def test_runs_and_shares():
    assert figures.longest([True, False, True, True, False]) == 2 and figures.longest([]) == 0
    counts = {"shape": (1, 1), "colour": (0, 1), "count": (2, 2)}
    assert figures.shares([(0, counts)], ("shape",)) == [True] and figures.shares(
        [(0, counts)], figures.LOOKS[:2]
    ) == [False]
    quarters = [{"shape": (3, 4)}, {}, {}, {"shape": (2, 4)}]
    record = {"looks": [True, False], "miscounted": 2, "quarters": quarters}
    said = {name: found for name, _, found in figures.lines({"minutes": [record], "images": []})}
    assert said["minutes: seconds of right colour, shape and size"].startswith("50.0 %")
    assert said["minutes: count never wrong for over a second"].startswith("0.0 %")
    assert said["minutes: what is right in the last quarter"].startswith("50.0 %")


class Truth:
    """In the place of a pipeline: draws what it is told, and knows the pictures of `run.images`."""

    def __call__(self, prompt=None, *, story=None, seconds, seed, image=None, steps=None):
        if image is not None:
            return self._clip(run.source("images", 2).clip(seed - 3000, run.FOUR).x)
        if story is not None:
            return self._drawn(story, seconds, seed)
        return [self._drawn([(0.0, text)], seconds, one) for text, one in zip(prompt, seed, strict=True)]

    def _drawn(self, told, seconds, seed):
        scene = story_scene([(at, parse(text)) for at, text in told], rng=seed)
        return self._clip(render(scene, round(seconds * FPS), FPS, (64, 64)))

    def _clip(self, frames):
        return Clip(frames, FPS, None, {})


def test_a_pipeline_that_draws_the_truth_is_right_in_everything(tmp_path, monkeypatch):
    """Through the whole command, which is given again and makes nothing twice."""
    truth = Truth()
    truth.fingerprint = "truth"
    monkeypatch.setattr(run.Pipeline, "load", lambda checkpoint: truth)
    monkeypatch.setattr(run, "use_compilation_cache", lambda: None)
    asked = ["--clips", "10", "--stories", "1", "--minutes", "1", "--images", "1", "--out", str(tmp_path)]
    run.main([*asked, "--only", "images", "--only", "minutes"])
    assert {path.name for path in tmp_path.iterdir()} == {"images", "minutes", "model.json", "table.md"}
    run.main(asked)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    found, by_attribute = (part.splitlines()[2:] for part in table.split("\n\n"))
    assert len(found) == 4 + 4 + 4 + 4 and all(" | 100.0 %" in row for row in found), table
    assert {"| motion |", "| shape |", "| count |"} <= {row.split(" 100")[0] for row in by_attribute}
    assert len(by_attribute) > 6 and all(" | 100.0 %" in row for row in by_attribute), table
    truth._drawn = None  # what is there is not made again
    run.main(asked)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == table
    truth.fingerprint = "another"
    with pytest.raises(SystemExit, match="of another model or of other --steps"):
        run.main(asked)
