# SPDX-License-Identifier: Apache-2.0
import io

import numpy as np
import pytest
from PIL import Image, ImageSequence
from tensorboardX.proto.event_pb2 import Event

from jaxvid.training.trackers import TensorBoard, Trackers, Wandb, gif
from jaxvid.types import InputError

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3)).astype(np.uint8)


def events(folder):
    """The events of a TensorBoard file: records of length (8 bytes), checksum (4), data, checksum (4)."""
    data = next(folder.iterdir()).read_bytes()
    at, found = 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        found.append(Event.FromString(data[at + 12 : at + 12 + size]))
        at += 16 + size
    return found


def test_tensorboard_holds_numbers_and_moving_pictures(tmp_path):
    board = TensorBoard(tmp_path)
    board.scalars(3, {"train/loss": 0.5})
    board.video(4, "sample", FRAMES, 8.0)
    board.close()
    values = {v.tag: (e.step, v) for e in events(tmp_path) for v in e.summary.value}
    assert values["train/loss"][0] == 3 and values["train/loss"][1].simple_value == 0.5
    step, value = values["sample"]
    assert step == 4 and (value.image.height, value.image.width) == (8, 12)
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(value.image.encoded_image_string))))) == 5


def test_a_gif_plays_at_its_rate():
    image = Image.open(io.BytesIO(gif(FRAMES, 10.0)))
    assert image.n_frames == 5 and image.info["duration"] == 100 and image.size == (12, 8)


class Broken:
    def scalars(self, step, values):
        raise OSError("no space")

    def video(self, step, name, frames, fps):
        raise AssertionError("was left out already")

    def close(self):
        raise AssertionError("was left out already")


class Kept:
    def __init__(self):
        self.steps = []

    def scalars(self, step, values):
        self.steps.append(step)

    def video(self, step, name, frames, fps):
        self.steps.append(name)

    def close(self):
        self.steps.append("closed")


def test_a_tracker_that_fails_is_left_out_with_one_warning():
    kept = Kept()
    both = Trackers([Broken(), kept])
    with pytest.warns(UserWarning, match="Broken failed and is left out: no space"):
        both.scalars(1, {})
    both.scalars(2, {})
    both.close()
    assert kept.steps == [1, 2, "closed"]


def test_wandb_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match=r'pip install "jaxvid\[wandb\]"'):
        Wandb("project", ".", {})
