# SPDX-License-Identifier: Apache-2.0
"""Train from a config file, stage after stage; the same command continues a run that was interrupted.

    jaxvid train --config=configs/NAME.py --workdir=DIR [--config.x=y ...] [--dry_run] [--allow_config_change]

A config has ``order``, the names of its stages, and ``stages``, what each of them is (see `train_stage`); beside them
``seed``, ``mesh`` (sizes of data and fsdp), ``trackers`` (such as wandb='project'), and values
that the stages refer to. A run's directory holds

    config.json command.txt env.json report.md
    STAGE/checkpoints STAGE/tensorboard STAGE/samples
    codec/            the autoencoder that its backbone was trained on
    latents/          the cache of latents
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxvid.cli.train_stage import check_stage
from jaxvid.config import check, load_config, parameter, to_json
from jaxvid.types import InputError

TOP = ("order", "stages", "seed", "mesh", "trackers")
DEFAULTS = {
    "seed": 0,
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1},
    "trackers": {"wandb": ""},  # a project's name
}


def parse(argv: Sequence[str]) -> tuple[Any, Any]:
    """(flags, config): the config file is run, then overridden by every --config.x=y."""
    sys.path[:0] = [] if os.getcwd() in sys.path else [os.getcwd()]
    argv = _with_equals(argv)
    file = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    known = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The directory of the run.", flag_values=known)
    flags.DEFINE_bool(
        "dry_run", False, "Build everything, compile the step, train nothing.", flag_values=known
    )
    flags.DEFINE_bool("allow_config_change", False, "Continue with another config.", flag_values=known)
    if {"--help", "--helpfull", "-h"} & set(argv):
        print(__doc__)
        raise SystemExit(0)
    if not file:
        raise InputError("no config; give --config=FILE, for example --config=configs/shapes.py")
    config = _complete(load_config(file[-1]))
    rest = [a for a in argv if not a.startswith("--config=")]
    for argument in rest:
        if argument.startswith("--config."):
            _admit(config, argument[len("--config.") :].partition("=")[0])
    rest = [a for a in rest if not _fill(config, a)]
    config_flags.DEFINE_config_dict("config", config, "The config.", flag_values=known, sys_argv=rest)
    try:
        left = known(rest)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
        raise InputError(" ".join(str(e).split())) from None
    if left[1:]:
        raise InputError(f"{left[1]!r} is not an option; options begin with -- as in --workdir=DIR")
    if not known.workdir and not known.dry_run:
        raise InputError("no workdir; give --workdir=DIR, where the run is kept")
    check_config(known.config)
    return known, known.config


def check_config(config: Any) -> None:
    """Names and types of a whole config, before anything is built."""
    for key in set(config) - set(TOP):
        near = difflib.get_close_matches(key, TOP, 1, 0.75)
        if near:
            raise InputError(f"a config has no {key!r}; did you mean {near[0]!r}?")
    order = list(config.get("order", ()))
    if not order or not config.get("stages") or len(set(order)) != len(order):
        raise InputError("a config has order=(names of stages, each once) and stages.NAME; write both")
    for name in order:
        if name not in config.stages:
            raise InputError(
                f"order names {name!r}, which is not among stages ({', '.join(config.stages)}); correct it"
            )
        if not name.isidentifier() or name in ("codec", "latents"):
            raise InputError(f"a stage cannot be called {name!r}; use letters")
        check_stage(name, config.stages[name])
    check(config)
    to_json(config)


def config_changes(before: str, after: str) -> list[str]:
    """What differs between two configs in JSON: 'path: old -> new', a line each."""
    old, new = (_flat(json.loads(t)) for t in (before, after))
    return [
        f"{k}: {old.get(k, 'absent')} -> {new.get(k, 'absent')}"
        for k in sorted({*old, *new})
        if old.get(k) != new.get(k)
    ]


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {k: v for name, child in node.items() for k, v in _flat(child, f"{path}.{name}").items()}
    if isinstance(node, list) and any(isinstance(child, dict) for child in node):
        return {k: v for i, child in enumerate(node) for k, v in _flat(child, f"{path}[{i}]").items()}
    return {path.lstrip("."): node}


def _complete(config: Any) -> Any:
    """A config with what every run has, so that it can be overridden and is stored."""
    with config.unlocked():
        for key, value in DEFAULTS.items():
            if key not in config:
                config[key] = value
    return config


def _admit(config: Any, path: str) -> None:
    """Lets an option be overridden that a call leaves to its default: it is written down first."""
    *folders, leaf = path.split(".")
    node = config
    for name in folders:
        if not hasattr(node, "keys") or name not in node:
            if hasattr(node, "keys") and "[" not in name:
                raise InputError(f"config.{path}: no {name!r}; {_meant(config, node, name)}")
            return
        node = node[name]
    if hasattr(node, "keys") and leaf not in node and "[" not in leaf:
        if "kind" in node:
            default = parameter(node, leaf)
            with node.unlocked():
                node[leaf] = default
        else:
            raise InputError(f"config.{path}: no {leaf!r}; {_meant(config, node, leaf)}")


def _fill(config: Any, argument: str) -> bool:
    """Overrides what is None, whose type the flags cannot know; says whether it did. `check_config` looks at the value."""
    path, equals, value = argument.removeprefix("--config.").partition("=")
    if not equals or not argument.startswith("--config."):
        return False
    *folders, leaf = path.split(".")
    node = config
    for name in folders:
        node = node.get(name) if hasattr(node, "keys") else None
    if not hasattr(node, "keys") or leaf not in node or node[leaf] is not None:
        return False
    try:
        made = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        made = value
    with node.unlocked():
        node[leaf] = made
    return True


def _meant(config: Any, node: Any, name: str) -> str:
    """What a name that ``node`` lacks may have been meant to be: a neighbour, or one from anywhere in the config."""
    places: dict[str, str] = {}
    for place in sorted(_flat(json.loads(to_json(config))), key=len):
        places.setdefault(place.rpartition(".")[2], f"config.{place}")
    places |= {neighbour: repr(neighbour) for neighbour in node}
    near = difflib.get_close_matches(name, places, 1, 0.75) or difflib.get_close_matches(name, node, 1, 0.5)
    return f"did you mean {places[near[0]]}?" if near else f"it has {', '.join(node)}"


def _with_equals(argv: Sequence[str]) -> list[str]:
    """'--config FILE' as '--config=FILE', so that both are understood."""
    out, skip = [], False
    for i, argument in enumerate(argv):
        if skip:
            skip = False
        elif argument in ("--config", "--workdir") and i + 1 < len(argv):
            out.append(f"{argument}={argv[i + 1]}")
            skip = True
        else:
            out.append(argument)
    return out
