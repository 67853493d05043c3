# SPDX-License-Identifier: Apache-2.0
"""Where the platform is chosen: one function walks a table of implementations and takes the first that can.

An implementation that cannot serve a call raises ``NotImplementedError`` with the reason. When nobody named one, the
next in the order is tried; a named one never falls back. The choice is made while tracing, so a compiled function
keeps the implementation it was traced with.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

_forced: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("jaxvid_ops_forced")
_target: contextvars.ContextVar[str] = contextvars.ContextVar("jaxvid_ops_target")


@contextlib.contextmanager
def use(**names: str) -> Iterator[None]:
    """Force implementations by op inside the block: ``with use(attention="reference", ssd="chunked"): ...``.

    It stands in for ``implementation=None`` only; an argument given at the call wins. Functions that were compiled
    before keep what they have: the choice belongs to tracing.
    """
    token = _forced.set({**_forced.get({}), **names})
    try:
        yield
    finally:
        _forced.reset(token)


@contextlib.contextmanager
def target(name: str) -> Iterator[None]:
    """Choose inside the block as on another platform: for compiling ahead of time for devices that are not here."""
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)


def platform() -> str:
    """The platform a fresh trace will run on: ``cpu``, ``gpu`` or ``tpu``."""
    return _target.get("") or jax.default_backend()


def pick(
    op: str,
    implementations: Mapping[str, Callable[..., Any]],
    order: Sequence[str] | Mapping[str, Sequence[str]],
    requested: str | None = None,
) -> Callable[..., Any]:
    """The function that serves a call of ``op``.

    op: the name that ``use`` knows it by.
    implementations: name -> function; all take the same arguments.
    order: the names to try, or a table platform -> names (``default`` stands for platforms without an entry).
    requested: a name, or None for the first in the order that does not refuse.

    Raises ValueError for a name that does not exist, and NotImplementedError when the requested one refuses, or when
    all of the order do (with every reason).
    """
    requested = requested or _forced.get({}).get(op)
    if requested is not None:
        if requested not in implementations:
            raise ValueError(
                f"{op} has no implementation {requested!r}; it has {', '.join(implementations)}; "
                "leave it None to choose by platform"
            )
        return implementations[requested]
    if isinstance(order, Mapping):
        order = order.get(platform(), order.get("default", ()))

    def first(*args: Any, **kw: Any) -> Any:
        reasons = []
        for name in order:
            try:
                return implementations[name](*args, **kw)
            except NotImplementedError as refusal:
                reasons.append(f"{name}: {refusal}")
        raise NotImplementedError(f"no implementation of {op} can serve this call ({'; '.join(reasons)})")

    return first


def refuses(reason: str) -> Callable[..., Any]:
    """An implementation that is named but not here yet: it always says why."""

    def refuse(*args: Any, **kw: Any) -> Any:
        raise NotImplementedError(reason)

    return refuse
