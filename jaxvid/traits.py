# SPDX-License-Identifier: Apache-2.0
"""What a model can do for methods, and which of the shipped models can follow one."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxvid import stages
from jaxvid.config import SAFE, build
from jaxvid.io.bundle import is_bundle, load_spec
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.mixers.longshort import LongShort
from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.sampling.methods.table import METHODS

ASSETS = pathlib.Path(__file__).parent / "assets"
FIRST = "shapes"  # the model that is meant where none is named


def traits_of(model: nn.Module, serves: Mapping[str, Any]) -> frozenset[str]:
    """What a method may ask of a model, by `jaxvid.sampling.methods.table`; ``serves`` as in a bundle."""
    causal = bool(getattr(model, "causal", False))
    held = list(stages.modules_of(model))
    found = {"causal" if causal else "bidirectional"}
    found |= {"temporal attention" for module in held if hasattr(module, "edit")}
    found |= {"attention memory" for module in held if causal and isinstance(module, (Attention, LongShort))}
    found |= {"long memory" for module in held if causal and isinstance(module, LongShort)}
    found |= {"state memory" for module in held if causal and isinstance(module, Mamba)}
    return frozenset(found | ({"few-step weights"} if serves.get("student") else set()))


def shipped() -> list[pathlib.Path]:
    """The bundles that come with the package, the one that is meant where none is named first."""
    others = sorted(path for path in ASSETS.glob(f"{FIRST}_*") if is_bundle(path))
    return [path for path in (ASSETS / FIRST,) if is_bundle(path)] + others


def shipped_for(method: str | None) -> pathlib.Path | None:
    """The first shipped bundle that can follow a method; None where none can, or none was asked for."""
    if method not in METHODS:
        return None
    for path in shipped():
        spec = load_spec(path)
        if set(METHODS[method].needs) <= traits_of(build(spec["model"], SAFE), spec["serves"]):
            return path
    return None
