# SPDX-License-Identifier: Apache-2.0
"""The shapes world as a source of clips: random access, the same clip for the same index on every machine."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvid.data.clips import ClipShape, Sample
from jaxvid.data.shapes.captions import captions
from jaxvid.data.shapes.render import render
from jaxvid.data.shapes.scenes import SPLITS, sample_scene
from jaxvid.data.shapes.world import Scene, Thing
from jaxvid.types import InputError

VERSION = 3  # of the pictures: raise it whenever any pixel or caption of any clip changes


@dataclasses.dataclass(frozen=True)
class ShapesSource:
    """Clips of the shapes world with a caption per time span; a clip of one frame is an image, motions unsaid.

    split: ``train`` (no held-out pair of colour and shape, ever), ``heldout`` (one at least) or ``all``.
    size: number of clips. seed: which world. objects: probabilities of one and of two objects at the start.
    events: probability that a clip has changes. paraphrase: False says everything, in the plain way.
    unsaid: probability of leaving a size or the background out of a paraphrased caption.
    The clip of an index depends on (seed, split, index, length in seconds), never on what was read before.
    """

    split: str = "train"
    size: int = 100_000
    seed: int = 0
    objects: tuple[float, float] = (0.6, 0.4)
    events: float = 0.4
    paraphrase: bool = True
    unsaid: float = 0.1

    def __post_init__(self):
        if self.split not in SPLITS:
            raise InputError(f"split {self.split!r} is unknown; wanted one of {', '.join(SPLITS)}")
        if self.size < 1:
            raise InputError(f"size={self.size} clips cannot be served; wanted at least 1")
        if len(self.objects) != 2 or min(self.objects) < 0 or sum(self.objects) <= 0:
            raise InputError(f"objects={self.objects} are not the probabilities of one and of two objects")

    def __len__(self) -> int:
        return self.size

    def scene(self, index: int, shape: ClipShape) -> Scene:
        """The scene that ``clip`` renders."""
        return self._scene(index, shape)[0]

    def clip(self, index: int, shape: ClipShape) -> Sample:
        """Clip ``index``: uint8 ``[T, H, W, 3]`` and its captions. IndexError outside of ``len(self)``."""
        scene, rng = self._scene(index, shape)
        if self.paraphrase:
            text = captions(scene, shape.frames, shape.fps, rng, unsaid=self.unsaid)
        else:
            text = captions(scene, shape.frames, shape.fps)
        return Sample(render(scene, shape.frames, shape.fps, (shape.height, shape.width)), text)

    def key(self, index: int, shape: ClipShape) -> str:
        """A text that is equal for two clips only if their pixels and captions are."""
        one, two = self.objects
        return (
            f"shapes-{VERSION}:{self.split}:{self.seed}:{one:g},{two:g}:{self.events:g}:{int(self.paraphrase)}"
            f":{self.unsaid:g}:{int(index)}:{shape.frames}x{shape.height}x{shape.width}@{shape.fps:g}"
        )

    def _scene(self, index: int, shape: ClipShape) -> tuple[Scene, np.random.Generator]:
        if not 0 <= index < self.size:
            raise IndexError(f"clip {index} of a source of {self.size}")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), int(index)])
        two = self.objects[1] / sum(self.objects)
        if shape.frames > 1:
            return sample_scene(
                rng, self.split, seconds=shape.frames / shape.fps, two=two, events=self.events
            ), rng
        # An image shows no change and no pulse: its objects are as large as its caption says.
        return _still(sample_scene(rng, self.split, two=two, events=0.0)), rng


def _still(scene: Scene) -> Scene:
    def part(p):
        return dataclasses.replace(p, path=dataclasses.replace(p.path, pulse=0.0))

    return Scene(scene.background, tuple(Thing(tuple(map(part, t.parts)), t.end) for t in scene.things))
