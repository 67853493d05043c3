# SPDX-License-Identifier: Apache-2.0
"""How much arithmetic a function does, counted on its jaxpr and not by the compiler.

XLA's `cost_analysis` counts the body of a loop once, whatever its length, so that a scan over layers or chunks looks
cheap. This walk multiplies by the lengths. It needs shapes only: models of any size are counted without memory.
A multiply-add is two operations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from jaxvid.types import InputError

# One operation per element of the result. Comparisons, selects, copies and conversions are free, as in XLA's count.
ELEMENTWISE = frozenset(
    """abs add add_any atan2 cbrt ceil clamp cos cosh div erf erf_inv erfc exp exp2 expm1 floor integer_pow lgamma log
    log1p logistic max min mul neg nextafter pow rem round rsqrt sign sin sinh sqrt square sub tan tanh""".split()
)
# One operation per element of the argument.
REDUCTIONS = frozenset(
    "argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce_max reduce_min reduce_prod reduce_sum".split()
)


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations by kind. ``total`` is all of them, ``products`` what matrix units do."""

    matmul: float = 0
    conv: float = 0
    elementwise: float = 0

    @property
    def products(self) -> float:
        return self.matmul + self.conv

    @property
    def total(self) -> float:
        return self.matmul + self.conv + self.elementwise

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __sub__(self, other: Flops) -> Flops:
        return self + (-1) * other

    def __rmul__(self, times: float) -> Flops:
        return Flops(*(times * a for a in self._parts()))

    def _parts(self) -> tuple[float, float, float]:
        return self.matmul, self.conv, self.elementwise


def count_flops(fn: Callable[..., Any], *args: Any, **kw: Any) -> Flops:
    """The operations of ``fn(*args, **kw)``; each argument is an array or a ``jax.ShapeDtypeStruct``, nothing runs.

    A conditional counts as its dearest branch. Sharded bodies count for all devices. Functions that close over a
    non-array must be wrapped first. Raises InputError for a loop whose number of rounds is not in the program.
    """
    return _count(jax.make_jaxpr(fn)(*args, **kw).jaxpr)


def _count(jaxpr: core.Jaxpr) -> Flops:
    """From the results backwards, so that what nobody uses is not counted: the compiler drops it too."""
    total, wanted = Flops(), {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            wanted.update(v for v in eqn.invars if isinstance(v, core.Var))
            total = total + _equation(eqn)
    return total


def _equation(eqn: core.JaxprEqn) -> Flops:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        depth = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
        return Flops(matmul=2 * eqn.outvars[0].aval.size * depth)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        depth = kernel.size // max(1, kernel.shape[params["dimension_numbers"].rhs_spec[0]])
        holes = math.prod(params["lhs_dilation"])  # a dilated input is mostly zeros that nobody multiplies
        return Flops(conv=2 * eqn.outvars[0].aval.size * depth / holes)
    if name == "while":
        raise InputError(
            "count_flops met a while loop, whose rounds are not known before it runs; "
            "use lax.scan, or lax.fori_loop with plain integers as bounds"
        )
    inside = [_count(j) for j in _inner(params)]
    if inside:
        if name == "cond":
            return max(inside, key=lambda f: f.total)
        return _rounds(name, params) * sum(inside, Flops())
    if name in ELEMENTWISE:
        return Flops(elementwise=eqn.outvars[0].aval.size)
    if name in REDUCTIONS:
        return Flops(elementwise=eqn.invars[0].aval.size)
    return Flops()


def _rounds(name: str, params: dict[str, Any]) -> int:
    """How often the body of an equation runs."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        sizes = dict(params["mesh"].shape)
        return math.prod(sizes[axis] for axis in params.get("manual_axes", sizes))
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs among an equation's parameters: bodies of jit, remat, scan, custom derivatives, branches."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
