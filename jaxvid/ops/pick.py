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

from jaxvid.sharding import shared_mesh

_forced: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("jaxvid_ops_forced")
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("jaxvid_ops_target", default=None)
_interpreted: contextvars.ContextVar[bool] = contextvars.ContextVar("jaxvid_ops_interpreted", default=False)


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
def tracing_for(name: str) -> Iterator[None]:
    """Choose as if fresh traces ran on that platform (``cpu``, ``gpu``, ``tpu``): to export and to compile ahead."""
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Let *named* kernels run in their interpreters where their hardware is missing: exact, slow, for tests."""
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def platform() -> str:
    """The platform a fresh trace will run on: ``cpu``, ``gpu`` or ``tpu``."""
    return _target.get() or jax.default_backend()


def kernel_interprets(wanted: str, capability: str | None = None) -> bool:
    """Whether a kernel made for the platform ``wanted`` has to be interpreted here (inside `interpreted`).

    capability: the only CUDA compute capability that it runs on. Raises NotImplementedError where it cannot run at
    all: on another platform, and on several devices of which nobody said how they share (`jaxvid.sharding.spread`).
    """
    if platform() != wanted:
        if _interpreted.get():
            if wanted == "gpu" and jax.version.__version_info__ < (0, 11):
                raise NotImplementedError(f"Mosaic GPU's interpreter needs jax 0.11, not {jax.__version__}")
            return True
        raise NotImplementedError(
            f"the kernel runs on {wanted}, not on {platform()} (jaxvid.ops.pick.interpreted() lets tests run it anywhere)"
        )
    if _target.get() is None:
        found = getattr(jax.devices()[0], "compute_capability", None)
        if capability and found != capability:
            raise NotImplementedError(f"the kernel runs on compute capability {capability}, not {found}")
        mesh, told = jax.sharding.get_abstract_mesh(), shared_mesh() is not None
        if (
            jax.device_count() > 1
            and not told
            and (mesh.empty or set(mesh.axis_names) - set(mesh.manual_axes))
        ):
            raise NotImplementedError(
                "several devices with automatic sharding cannot share a kernel; trace inside jaxvid.sharding.spread(mesh)"
            )
    return False


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
