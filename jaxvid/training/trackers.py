# SPDX-License-Identifier: Apache-2.0
"""Where a run's numbers and pictures go: one hook, three methods.

    scalars(step, {name: number})
    video(step, name, frames uint8 [T, H, W, 3], fps)
    close()

TensorBoard is built in; `wandb` needs the extra of that name. A list of trackers is used as one by `Trackers`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from jaxvid.types import InputError


@runtime_checkable
class Tracker(Protocol):
    """Anything with these three methods."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files of TensorBoard in a directory; a video is shown as an animated image."""

    def __init__(self, directory: str | os.PathLike[str]):
        from tensorboardX import SummaryWriter

        self._writer: Any = SummaryWriter(os.fspath(directory))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        # add_video of tensorboardX wants moviepy and an ffmpeg binary; an image summary may hold a GIF as it is.
        image = Summary.Image(
            height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=gif(frames, fps)
        )
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases, continued under the same id when a run is continued."""

    def __init__(self, project: str, directory: str | os.PathLike[str], config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise InputError('the tracker wandb is not installed; pip install "jaxvid[wandb]"') from None
        self._wandb = wandb
        directory = os.path.abspath(os.fspath(directory))
        name = "-".join(directory.strip(os.sep).split(os.sep)[-2:])
        self._run = wandb.init(project=project, dir=directory, id=name, resume="allow", config=dict(config))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        # Encoded here: raw arrays would go through moviepy.
        self._run.log({name: self._wandb.Video(io.BytesIO(gif(frames, fps)), format="gif")}, step=step)

    def close(self) -> None:
        self._run.finish()


@dataclasses.dataclass
class Trackers:
    """Several trackers as one. One that fails is reported once and left out: numbers must not stop a training run."""

    trackers: list[Tracker]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each("scalars", step, values)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        self._each("video", step, name, frames, fps)

    def close(self) -> None:
        self._each("close")

    def _each(self, method: str, *args: Any) -> None:
        for tracker in list(self.trackers):
            try:
                getattr(tracker, method)(*args)
            except (OSError, RuntimeError, ValueError, TypeError) as e:
                self.trackers.remove(tracker)
                warnings.warn(f"{type(tracker).__name__} failed and is left out: {e}", stacklevel=2)


def gif(frames: Sequence[np.ndarray] | np.ndarray, fps: float) -> bytes:
    """An endless GIF of uint8 frames [T, H, W, 3]."""
    images = [Image.fromarray(np.asarray(f, np.uint8)) for f in frames]
    out = io.BytesIO()
    images[0].save(
        out, "GIF", save_all=True, append_images=images[1:], duration=max(20, round(1000 / fps)), loop=0
    )
    return out.getvalue()
