# SPDX-License-Identifier: Apache-2.0
"""A config is calls written as data, and the file that defines a thing is the registry.

``call(fn, **kw)`` writes the call down as a ConfigDict ``{'kind': 'module:name', **kw}``; ``build(node)`` makes it,
inside out. Names are checked where they are written. A config that came out of a checkpoint is not trusted: it is
built with ``allow=SAFE``, which refuses anything but descriptions of models and processes.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.core
import ml_collections

from jaxvid.types import InputError

# What a config found inside a checkpoint may name: values that describe, never functions that read, write or run.
SAFE = (
    "jaxvid.models",
    "jaxvid.nn",
    "jaxvid.ops",
    "jaxvid.diffusion",
    "jaxvid.sampling",
    "jaxvid.training.task",
    "jaxvid.training.losses",
)
_KIND = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z]\w*)")
_JSON_BYTES = 1 << 20  # of a stored config
_SCALARS = (bool, int, float, str, types.NoneType)


def call(fn: Callable[..., Any], /, **kw: Any) -> ml_collections.ConfigDict:
    """The ConfigDict that stands for ``fn(**kw)``. Unknown names fail here, by name.

    An argument that is itself called ``kind`` is stored as ``kind_``, since ``kind`` names the callee.
    """
    _check_names(fn, kw, fn.__qualname__)
    return ml_collections.ConfigDict({"kind": public_name(fn), **{_stored(k): v for k, v in kw.items()}})


def public_name(fn: Callable[..., Any]) -> str:
    """'optax:adamw', not 'optax._src.alias:adamw': the shortest path that leads to ``fn``."""
    parts = fn.__module__.split(".")
    for n in range(1, len(parts) + 1):
        module = ".".join(parts[:n])
        try:
            found = getattr(importlib.import_module(module), fn.__qualname__, None)
        except ImportError:
            continue
        if found is fn:
            return f"{module}:{fn.__qualname__}"
    raise InputError(
        f"{fn.__qualname__} cannot be found again by name; define it at the top of an importable module"
    )


def build(node: Any, allow: Iterable[str] | None = None, /, **more: Any) -> Any:
    """Makes what `call` wrote down, inside out; plain dicts become FrozenDict, lists tuples (both hashable).

    ``more`` are arguments that only the caller knows (a source, a codec); they replace those of the outermost call.
    ``allow`` lists the packages that may be named; without it everything importable may.
    """
    return _build(node, None if allow is None else tuple(allow), "", more)


def _build(node: Any, allow: tuple[str, ...] | None, path: str, more: Mapping[str, Any]) -> Any:
    if _is_table(node):
        made = {k: _build(node[k], allow, f"{path}.{k}", {}) for k in node if k != "kind" and k not in more}
        if "kind" not in node:
            return flax.core.FrozenDict(made)  # hashable: may be a static argument of jit
        fn = _find(node["kind"], allow, path)
        made = {_meant(k): v for k, v in made.items()}
        made.update(more)
        _check_names(fn, made, _where(path, node["kind"]))
        try:
            inspect.signature(fn).bind(**made)
        except TypeError as e:
            raise InputError(f"{_where(path, node['kind'])}: {e}; add it to the config") from None
        return fn(**made)
    if isinstance(node, (list, tuple)):
        return tuple(_build(v, allow, f"{path}[{i}]", {}) for i, v in enumerate(node))
    return node


def check(node: Any, path: str = "config") -> None:
    """Holds every `call` of a tree against its function: names, and the types of plain values.

    Nothing is called. Required arguments may be absent: some are only known when the thing is built.
    """
    for where, found in _calls(node, path):
        fn = _find(found["kind"], None, where)
        given = {_meant(k): found[k] for k in found if k != "kind"}
        _check_names(fn, given, _where(where, found["kind"]))
        hints = _hints(fn)
        for key, value in given.items():
            if key in hints and not _fits(value, hints[key]):
                raise InputError(f"{where}.{key}={value!r} is {_a(value)}; {_spell(hints[key])} was wanted")


def parameter(node: Any, key: str) -> Any:
    """The default of a named argument that a call does not write, or InputError: such options can be overridden."""
    known = inspect.signature(_find(node["kind"], None, key)).parameters
    key = _meant(key)
    if key not in known or known[key].default is inspect.Parameter.empty:
        raise InputError(f"{node['kind']} has no {key!r}{_closest(key, known)}")
    return known[key].default


def to_json(node: Any) -> str:
    """A config as JSON text; keys sorted, tuples as lists, so that equal configs are equal texts."""
    return json.dumps(_plain(node, "config"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
    """The config of `to_json`. Strict: no NaN, no key twice, at most 1 MB."""
    if len(text) > _JSON_BYTES:
        raise InputError(
            f"a config of {len(text)} characters came, at most {_JSON_BYTES} were wanted; is it a config?"
        )
    try:
        made = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except (json.JSONDecodeError, RecursionError) as e:
        raise InputError(
            f"not a config in JSON ({e}); use the config.json of a run or a checkpoint"
        ) from None
    if not isinstance(made, dict):
        raise InputError(f"a config in JSON is an object, {_a(made)} came; use the config.json of a run")
    return ml_collections.ConfigDict(made)


def load_config(path: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """Runs the config file (Python code that its user trusts) and returns ``get_config()``, names checked."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        near = [f for f in _siblings(path) if f.endswith(".py")]
        hint = difflib.get_close_matches(os.path.basename(path), near, 1)
        there = (
            f"; did you mean {os.path.join(os.path.dirname(path), hint[0])}?" if hint else "; give a .py file"
        )
        raise InputError(f"no config file {path}{there}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not Python; a config is a .py file with get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, UnicodeDecodeError, ModuleNotFoundError) as e:
        raise InputError(f"{path} cannot be run as a config: {' '.join(str(e).split())}") from None
    if not callable(getattr(module, "get_config", None)):
        raise InputError(f"{path} has no get_config(); a config file defines get_config() -> ConfigDict")
    made = module.get_config()
    if not isinstance(made, ml_collections.ConfigDict):
        raise InputError(f"{path}: get_config() returned {_a(made)}; return an ml_collections.ConfigDict")
    check(made)
    return made


def _stored(name: str) -> str:
    return "kind_" if name == "kind" else name


def _is_table(node: Any) -> bool:
    return isinstance(node, (Mapping, ml_collections.ConfigDict))


def _meant(name: str) -> str:
    return "kind" if name == "kind_" else name


def _calls(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if _is_table(node):
        if "kind" in node:
            yield path, node
        for k in node:
            yield from _calls(node[k], f"{path}.{k}")
    elif isinstance(node, (list, tuple)):
        for i, v in enumerate(node):
            yield from _calls(v, f"{path}[{i}]")


def _find(kind: Any, allow: tuple[str, ...] | None, path: str) -> Callable[..., Any]:
    found = _KIND.fullmatch(kind) if isinstance(kind, str) else None
    if found is None:
        raise InputError(
            f"{path}.kind={kind!r} is not module:name; write for example optax:adamw".lstrip(".")
        )
    module, name = found.groups()
    if allow is not None and not any(_inside(module, a) or _inside(a, module) for a in allow):
        raise InputError(
            f"a stored config names {kind}, which is not allowed there; only {', '.join(allow)} are"
        )
    try:
        home = importlib.import_module(module)
    except ImportError as e:
        raise InputError(
            f"{_where(path, kind)}: no module {module} ({e}); install it or run from its folder"
        ) from None
    fn = getattr(home, name, None)
    if not callable(fn):
        raise InputError(f"{module} has no {name!r} to call{_closest(name, vars(home))}")
    if allow is not None and not any(_inside(getattr(fn, "__module__", None) or "", a) for a in allow):
        raise InputError(
            f"a stored config names {kind}, which is not allowed there; only {', '.join(allow)} are"
        )
    return fn


def _check_names(fn: Callable[..., Any], given: Iterable[str], where: str) -> None:
    known = inspect.signature(fn).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for extra in given:
        if extra not in known:
            raise InputError(f"{where} has no {extra!r}{_closest(extra, known)}")


def _closest(name: str, known: Iterable[str]) -> str:
    names = [k for k in known if not k.startswith("_") and k != "parent"]
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names[:20]) or 'no options'}"


@functools.lru_cache(maxsize=256)
def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """Resolved annotations, or none where they name things that only a type checker sees."""
    try:
        return typing.get_type_hints(fn if not isinstance(fn, type) or _is_dataclass(fn) else fn.__init__)
    except (NameError, TypeError, AttributeError):
        return {}


def _is_dataclass(cls: type) -> bool:
    return hasattr(cls, "__dataclass_fields__")


def _fits(value: Any, hint: Any) -> bool:
    """Does a plain value fit a plain annotation? Everything that is not plain fits: we only catch slips."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if not all(o in _SCALARS for o in options):
        return True
    if isinstance(value, bool):
        return bool in options
    if isinstance(value, int) and float in options:
        return True
    return isinstance(value, tuple(options))


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _plain(node: Any, path: str) -> Any:
    if _is_table(node):
        return {str(k): _plain(node[k], f"{path}.{k}") for k in node}
    if isinstance(node, (list, tuple)):
        return [_plain(v, f"{path}[{i}]") for i, v in enumerate(node)]
    if not isinstance(node, _SCALARS) or (isinstance(node, float) and node - node != 0):
        raise InputError(
            f"{path} is {node if isinstance(node, float) else _a(node)};"
            " configs hold finite numbers, text, None, lists, dicts and call(...)"
        )
    return node


def _where(path: str, kind: str) -> str:
    return f"{path.lstrip('.')} ({kind})" if path else kind


def _inside(name: str, package: str) -> bool:
    return (name + ".").startswith(package + ".")


def _a(value: Any) -> str:
    return f"a {type(value).__name__}"


def _siblings(path: str) -> list[str]:
    folder = os.path.dirname(path) or "."
    return os.listdir(folder) if os.path.isdir(folder) else []


def _no_constant(name: str) -> Any:
    raise InputError(f"a config in JSON holds {name}; only finite numbers are allowed")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise InputError("a config in JSON holds a key twice; keep one")
    return made
