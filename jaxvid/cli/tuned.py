# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of an imported transformer: where it begins, and what is left of it for others to use.

A stage that has ``text``, the directory of an imported bundle, leaves in WORKDIR/STAGE

    bundle/             that bundle with the tuned transformer in it (`Pipeline.load`, `jaxvid export`)
    lora.safetensors    of a `LoraTask`, its adapters in the key style of diffusers; in the bundle they are merged
"""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from jaxvid.imports import PLACES, described, stored_part, table_of
from jaxvid.io.bundle import MODEL
from jaxvid.io.lazy import Stored, from_array, open_safetensors, write_arrays
from jaxvid.io.weights import flatten, restore_into, unflatten
from jaxvid.training import lora
from jaxvid.training.step import TrainState


def begin(state: TrainState, directory: str) -> TrainState:
    """A fresh state with the transformer of an imported bundle: as what is trained, or as what adapters are for."""
    found = unflatten({name: array.read() for name, array in stored_part(directory, "dit", True).items()})
    if "base" in state.rest:
        return state.replace(rest={**state.rest, "base": restore_into(state.rest["base"], found, directory)})
    params = restore_into(state.params, found, directory)
    return state.replace(params=params, ema=jax.tree.map(np.copy, params))


def finish(stage: Any, state: TrainState, workdir: str) -> None:
    """Writes what was tuned, from the averaged parameters, in the dtype that the imported ones have."""
    source, folder = pathlib.Path(stage.node.text), pathlib.Path(workdir, stage.name)
    params = state.ema
    if "base" in state.rest:
        adapters = lora.flat_pairs(params)
        leaves = table_of("dit", described(source)[0]["dit"])[0]
        lora.save(folder / "lora.safetensors", adapters, leaves, scale=stage.task.scale)
        params = lora.merge(state.rest["base"], adapters, stage.task.scale)
    aside = folder / "bundle.part"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns(MODEL))
    arrays = dict(open_safetensors(source / MODEL))
    prefix = PLACES["dit"][1]
    for name, leaf in flatten(params).items():
        arrays[prefix + name] = _cast(leaf, arrays[prefix + name].dtype)
    write_arrays(aside / MODEL, arrays)
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    os.replace(aside, folder / "bundle")


def _cast(leaf: Any, dtype: Any) -> Stored:
    return from_array(np.asarray(leaf).astype(dtype))
