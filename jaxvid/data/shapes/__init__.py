# SPDX-License-Identifier: Apache-2.0
"""A captioned, rendered world with an exact reader: text-to-video measured without any network."""

from jaxvid.data.shapes.captions import caption, captions, every_look, parse
from jaxvid.data.shapes.reader import read
from jaxvid.data.shapes.render import render
from jaxvid.data.shapes.scenes import build_scene, sample_scene, story_scene
from jaxvid.data.shapes.source import ShapesSource
from jaxvid.data.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    Attributes,
    Look,
    Scene,
    held_out,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "Attributes",
    "Look",
    "Scene",
    "ShapesSource",
    "build_scene",
    "caption",
    "captions",
    "every_look",
    "held_out",
    "parse",
    "read",
    "render",
    "sample_scene",
    "story_scene",
]
