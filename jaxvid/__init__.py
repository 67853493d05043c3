# SPDX-License-Identifier: Apache-2.0
"""JaxVid: long text-to-video diffusion in pure JAX and Flax Linen.

    import jaxvid
    pipe = jaxvid.Pipeline.load()
    video = pipe("a large yellow circle slides up and down on a white background", seconds=4, seed=0)
    video.save("circle.mp4")

Importing this module is instant: it imports neither jax nor anything else that is heavy, and touches no device. The names
below are found when they are first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxvid.clip import Clip as Clip
    from jaxvid.nano import quickstart as quickstart
    from jaxvid.pipeline import Pipeline as Pipeline
    from jaxvid.types import InputError as InputError
    from jaxvid.types import Video as Video

__version__ = "0.1.0"

# public name -> the module that holds it
_WHERE = {
    "Clip": "jaxvid.clip",
    "InputError": "jaxvid.types",
    "Pipeline": "jaxvid.pipeline",
    "Video": "jaxvid.types",
    "quickstart": "jaxvid.nano",
}
_ROOMS = (
    "config",
    "data",
    "diffusion",
    "eval",
    "io",
    "models",
    "nn",
    "ops",
    "sampling",
    "sharding",
    "training",
    "types",
)

__all__ = ["Clip", "InputError", "Pipeline", "Video", "__version__", "quickstart"]


def __getattr__(name: str):
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"jaxvid.{name}")
    raise AttributeError(f"module 'jaxvid' has no attribute {name!r}; it has {', '.join(sorted(_WHERE))}")


def __dir__():
    return sorted({*globals(), *_WHERE, *_ROOMS})
