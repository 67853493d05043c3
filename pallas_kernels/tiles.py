# SPDX-License-Identifier: Apache-2.0
"""Who attends to whom as plain numbers, and the tiles that are left to compute.

A mask is a tuple of rules, of which one must hold; a rule is a tuple of conditions, all of which must hold. Queries and
keys are named by their positions, a query's being its index plus an offset. ``FULL`` has one rule without conditions.

    ((Near(None, 0),),)                      causal
    ((Near(None, 0, unit=n),),)              causal between blocks of n tokens
    ((Near(4096, 0),), (Near(None, 0), Keys(0, 16)))   the near past and the first 16 tokens

Besides the rules, tokens may bear segment ids; then query and key must have the same one.

A *walk* lists for every row of tiles the tiles of that row which hold an allowed pair: int32, ``2 j + 1`` for tile j if
pairs in it must be looked at one by one, ``2 j`` if all are allowed; behind the last one, e, only ``~e`` (negative, and
the same tile: nothing new to load). Without ids and with an offset known while tracing it is a constant, as short as its
longest row; and one row where all are alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any
Spread = Callable[[Array, Array], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Near:
    """-left <= (k - k_from) // unit - (q - q_from) // unit <= right; None is no limit."""

    left: int | None
    right: int | None
    unit: int = 1
    q_from: int = 0
    k_from: int = 0

    def holds(self, q: Array, k: Array, spread: Spread) -> Array:
        q, k = spread(_block(q - self.q_from, self.unit), _block(k - self.k_from, self.unit))
        ahead = k - q
        if self.left is None:
            return ahead <= self.right
        far = ahead >= -self.left
        return far if self.right is None else far & (ahead <= self.right)

    def some_every(self, q_low: Array, q_high: Array, k_low: Array, k_high: Array) -> tuple[Array, Array]:
        unit = self.unit
        least = (k_low - self.k_from) // unit - (q_high - self.q_from) // unit
        most = (k_high - self.k_from) // unit - (q_low - self.q_from) // unit
        some, every = least == least, least == least
        if self.left is not None:
            some, every = some & (most >= -self.left), every & (least >= -self.left)
        if self.right is not None:
            some, every = some & (least <= self.right), every & (most <= self.right)
        return some, every


@dataclasses.dataclass(frozen=True)
class Keys:
    """low <= k < high."""

    low: int
    high: int

    def holds(self, q: Array, k: Array, spread: Spread) -> Array:
        q, k = spread(q, k)
        ahead = k - q  # of both: what columns say alone is not broadcast everywhere
        return (ahead >= self.low - q) & (ahead < self.high - q)

    def some_every(self, q_low: Array, q_high: Array, k_low: Array, k_high: Array) -> tuple[Array, Array]:
        same = q_low == q_low
        return (k_high >= self.low) & (k_low < self.high) & same, (k_low >= self.low) & (
            k_high < self.high
        ) & same


@dataclasses.dataclass(frozen=True)
class Queries:
    """low <= q < high."""

    low: int
    high: int

    def holds(self, q: Array, k: Array, spread: Spread) -> Array:
        q, k = spread(q, k)
        behind = q - k
        return (behind >= self.low - k) & (behind < self.high - k)

    def some_every(self, q_low: Array, q_high: Array, k_low: Array, k_high: Array) -> tuple[Array, Array]:
        same = k_low == k_low
        return (q_high >= self.low) & (q_low < self.high) & same, (q_low >= self.low) & (
            q_high < self.high
        ) & same


Mask = tuple[tuple[Near | Keys | Queries, ...], ...]
FULL: Mask = ((),)


def holds(mask: Mask, q: Array, k: Array, spread: Spread = lambda q, k: (q, k)) -> Array | None:
    """bool, of the positions ``q`` and ``k`` broadcast against each other; None where everything is allowed.

    spread: (q, k) -> both over the whole tile, where that needs more than broadcasting.
    """
    some = None
    for rule in mask:
        every = None
        for condition in rule:
            one = condition.holds(q, k, spread)
            every = one if every is None else every & one
        if every is None:
            return None
        some = every if some is None else some | every
    return some


def visible(
    mask: Mask,
    q_offset: int | Array,
    q_len: int,
    k_len: int,
    q_tile: int,
    k_tile: int,
    q_ids: Array | None = None,
    k_ids: Array | None = None,
) -> tuple[Array, Array]:
    """(some, every) pair of a tile is allowed: bool [q tiles, k tiles], with a batch in front when there are ids.

    A tile that sticks out over the end is never said to be allowed as a whole. ids: int32 [B, Lq] and [B, Lk].
    """
    xp = np if isinstance(q_offset, int | np.integer) and q_ids is None else jnp
    q_low, k_low = xp.arange(-(-q_len // q_tile)) * q_tile, xp.arange(-(-k_len // k_tile)) * k_tile
    inside = (q_low[:, None] + q_tile <= q_len) & (k_low[None] + k_tile <= k_len)
    bounds = (q_low + q_offset)[:, None], (xp.minimum(q_low + q_tile, q_len) - 1 + q_offset)[:, None]
    bounds = *bounds, k_low[None], (xp.minimum(k_low + k_tile, k_len) - 1)[None]
    some = every = xp.zeros(inside.shape, bool)
    for rule in mask:
        rule_some = rule_every = ~some | some
        for condition in rule:
            one_some, one_every = condition.some_every(*bounds)
            rule_some, rule_every = rule_some & one_some, rule_every & one_every
        some, every = some | rule_some, every | rule_every
    every = every & inside
    if q_ids is not None:
        (q_least, q_most), (k_least, k_most) = _extremes(q_ids, q_tile), _extremes(k_ids, k_tile)
        meet = (q_least[:, :, None] <= k_most[:, None]) & (k_least[:, None] <= q_most[:, :, None])
        one = (q_least == q_most)[:, :, None] & (k_least == k_most)[:, None]
        some, every = some[None] & meet, every[None] & meet & one
    return some, every


def walk(some: Array, every: Array) -> Array:
    """The walk of `visible` tiles [..., rows, tiles] -> int32 [..., rows, longest row]."""
    xp = np if isinstance(some, np.ndarray) else jnp
    count = some.shape[-1]
    number = xp.broadcast_to(2 * xp.arange(count), some.shape) + ~every
    order = xp.sort(xp.where(some, number, 2 * count), axis=-1)
    last = xp.where(some, number, 0).max(-1)[..., None]
    table = xp.where(order < 2 * count, order, ~last).astype(xp.int32)
    if xp is np:
        table = table[..., : max(1, int(some.sum(-1).max()))]
        table = table[..., :1, :] if (table == table[..., :1, :]).all() else table
    return table


def ordered(some: Array, every: Array) -> tuple[Array, Array]:
    """As `walk`, for loops: counts int32 [..., rows, 2] and tiles int32 [..., rows, longest row].

    A row's first ``counts[0]`` tiles are allowed as a whole, the next ``counts[1]`` must be looked at pair by pair.
    """
    xp = np if isinstance(some, np.ndarray) else jnp
    count = some.shape[-1]
    place = xp.where(some, xp.where(every, 0, count), 2 * count)
    place = place + xp.broadcast_to(xp.arange(count), some.shape)
    order = (xp.sort(place, axis=-1) % count).astype(xp.int32)
    whole, seen = (some & every).sum(-1), some.sum(-1)
    counts = xp.stack([whole, seen - whole], -1).astype(xp.int32)
    return counts, order[..., : max(1, int(seen.max()))] if xp is np else order


def _block(x, unit):
    """floor(x / unit) plus a constant, for x above -2^29: kernels divide towards zero, and slowly."""
    if unit == 1:
        return x
    x = x + -(-(1 << 29) // unit) * unit
    return x // unit if isinstance(x, np.ndarray) else jax.lax.div(x, jnp.full_like(x, unit))


def _extremes(ids, tile):
    """Least and greatest id of every tile, [B, tiles]."""
    missing = -ids.shape[1] % tile
    ids = jnp.pad(ids, ((0, 0), (0, missing)), mode="edge").reshape(ids.shape[0], -1, tile)
    return ids.min(-1), ids.max(-1)
