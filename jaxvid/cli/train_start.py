# SPDX-License-Identifier: Apache-2.0
"""Where a stage's weights come from when they do not come from chance: an earlier stage, a file, a bundle, another run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxvid.cli import tuned
from jaxvid.cli.codec import SHIPPED
from jaxvid.io.bundle import MODEL, VAE, is_bundle
from jaxvid.io.checkpoint import load_ema
from jaxvid.io.weights import load_weights, restore_into
from jaxvid.training.step import TrainState
from jaxvid.types import InputError


def starter(stage: Any, workdir: str) -> Callable[[TrainState], TrainState] | None:
    """Begins from the averaged weights of an earlier stage, or from a file, instead of from chance."""
    where = {
        "teacher": stage.node.get("teacher"),
        "init": stage.node.get("init") or stage.node.get("teacher"),
    }
    origins = getattr(stage.task, "origins", {"init": (("params",),)})
    if where["teacher"] and "teacher" not in origins:
        raise InputError(f"stages.{stage.name} has a teacher and its task has no use for one; use init")
    if "teacher" in origins and not where["teacher"]:
        raise InputError(f"stages.{stage.name} distils nothing; give teacher='shipped', a bundle or a run")
    if not where["init"]:
        return None

    def prepare(state: TrainState) -> TrainState:
        if stage.captions is not None and is_bundle(where["init"]):
            return tuned.begin(state, where["init"])
        held = {"params": state.params, **state.rest}
        for role, places in origins.items():
            loaded = trained(where[role], workdir)
            for place in places:
                whole = held
                for name in place[:-1]:
                    whole[name] = dict(whole[name])
                    whole = whole[name]
                whole[place[-1]] = restore_into(whole[place[-1]], loaded.get("params", loaded), where[role])
            if role == "init":
                held |= {
                    k: restore_into(v, loaded[k], where[role]) for k, v in state.rest.items() if k in loaded
                }
        params = held.pop("params")
        return state.replace(params=params, ema=jax.tree.map(np.copy, params), rest=held)

    return prepare


def trained(where: str, workdir: str) -> Mapping[str, Any]:
    """A network's weights, ``{'params', ...}`` or its parameters alone: from an earlier stage of the run, a file, a bundle,
    the last stage of another run, or the 'shipped' model."""
    path = str(SHIPPED) if where == "shipped" else where
    codec = os.path.join(workdir, path, VAE)
    # an autoencoder's file, rather than its checkpoint, which has no statistics of latents
    if os.path.isfile(codec) and not is_bundle(path):
        return load_weights(codec)
    if os.path.isdir(os.path.join(workdir, path, "checkpoints")):
        return load_ema(workdir, path)
    if is_bundle(path):
        return {"params": load_weights(os.path.join(path, MODEL))}
    if os.path.isfile(os.path.join(path, "config.json")):
        from jaxvid.pipeline import Pipeline

        return {"params": Pipeline.load(path).engine.params}
    return load_weights(path)
