# SPDX-License-Identifier: Apache-2.0
"""Where a stage's weights come from when they do not come from chance: an earlier stage, a file, a bundle, another run.

All of them, or it is an error; with the stage's ``adopt`` those that fit, for a network that has parts in common with the
one that they are from.
"""

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
from jaxvid.io.weights import flatten, load_weights, restore_into, unflatten
from jaxvid.training.step import TrainState
from jaxvid.types import InputError


def starter(
    stage: Any, workdir: str, say: Callable[[str], None] = print
) -> Callable[[TrainState], TrainState] | None:
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
    other_names = stage.node.get("adopt")
    if not where["init"]:
        if other_names is not None:
            raise InputError(
                f"stages.{stage.name}.adopt says what to take of init, which is missing; give init"
            )
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
                params = loaded.get("params", loaded)
                if role == "init" and other_names is not None:
                    whole[place[-1]], said = adopt(whole[place[-1]], params, dict(other_names), where[role])
                    say(said)
                else:
                    whole[place[-1]] = restore_into(whole[place[-1]], params, where[role])
            if role == "init" and other_names is None:
                held |= {
                    k: restore_into(v, loaded[k], where[role]) for k, v in state.rest.items() if k in loaded
                }
        params = held.pop("params")
        return state.replace(params=params, ema=jax.tree.map(np.copy, params), rest=held)

    return prepare


def adopt(
    tree: Any, loaded: Mapping[str, Any], other_names: Mapping[str, str], source: str
) -> tuple[Any, str]:
    """(the tree with what fits of loaded weights, a line that says how much): the same name and the same shape.

    other_names: {'longshort': 'window'} takes for a branch of the one name the parameters of a branch of the other.
    """
    own, found = flatten(tree), flatten(loaded)
    name_there = {k: "/".join(other_names.get(part, part) for part in k.split("/")) for k in own}
    fits = {k for k, there in name_there.items() if there in found and found[there].shape == own[k].shape}
    if not fits:
        raise InputError(f"nothing of {source} fits this network; give weights of one with parts in common")
    taken = {k: found[name_there[k]] if k in fits else a for k, a in own.items()}
    share = sum(own[k].size for k in fits) / sum(a.size for a in own.values())
    left = sorted({k.rpartition("/")[0] for k in own if k not in fits})
    said = f"{100 * share:.0f} % of the parameters begin as in {source}"
    said += f"; by chance: {', '.join(left[:8])}" if left else ""
    said += f" and {len(left) - 8} more" if len(left) > 8 else ""
    return restore_into(tree, unflatten(taken), source), said


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
