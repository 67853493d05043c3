# SPDX-License-Identifier: Apache-2.0
"""Who may look at whom: attention masks as small values instead of large arrays.

True means "attends". Units are tokens. A query's *position* is its index plus ``q_offset``, a key's its index plus
``k_offset``; rules (`causal`, `band`, ...) speak about positions, tables (`segments`, `array`) about indices. Masks
combine with ``&`` and ``|``, are pytrees (they go through jit and vmap), and the ones without arrays are hashable:

    causal() & (band(4096, 0) | sink(16))                        the near past and the first 16 tokens
    frames(block_causal(4), tokens_per_frame)                    blocks of 4 frames see themselves and the past
    frames(skip_causal(1, clean=T), n), keys [clean | noisy]     teacher forcing: each noisy frame sees clean past

The chunked attention asks a mask about whole tiles (`some_every`) and skips the ones that it rules out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = Any


class Mask:
    """What all masks share: combination and the dense form. Make them with the functions below."""

    def __and__(self, other: Mask | Array) -> Mask:
        return And(self, as_mask(other))

    def __or__(self, other: Mask | Array) -> Mask:
        return Or(self, as_mask(other))

    __rand__ = __and__
    __ror__ = __or__

    def allowed(self, q: Array, k: Array, q_position: Array, k_position: Array) -> Array:
        """bool, broadcastable to [B, H, q, k], for int32 indices and positions ``q[q]`` and ``k[k]``."""
        raise NotImplementedError

    def some_every(self, q_low: int, q_high: int, k_low: int, k_high: int) -> tuple[bool, bool]:
        """(some, every) pair of a tile of positions may attend, bounds inclusive; (True, False) when in doubt."""
        return True, False

    def dense(self, q_len: int, k_len: int, q_offset: Array | int = 0, k_offset: Array | int = 0) -> Array:
        """bool, broadcastable to [B, H, q_len, k_len]: [q_len, k_len] for rules, with leading axes for tables."""
        q, k = jnp.arange(q_len), jnp.arange(k_len)
        allowed = self.allowed(q, k, q + q_offset, k + k_offset)
        return jnp.broadcast_to(allowed, (*allowed.shape[:-2], q_len, k_len))


def _value(*tables: str):
    """Frozen dataclass and pytree; the fields named hold arrays or masks, the others are static."""

    def wrap(cls):
        cls = dataclasses.dataclass(frozen=True, eq=not tables)(cls)
        rules = [f.name for f in dataclasses.fields(cls) if f.name not in tables]
        return jax.tree_util.register_dataclass(cls, data_fields=list(tables), meta_fields=rules)

    return wrap


def _combined(cls):
    """As `_value` for masks made of masks: equal, and hashable, when the parts are."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    parts = [n for n in names if n in ("a", "b", "mask")]
    return jax.tree_util.register_dataclass(
        cls, data_fields=parts, meta_fields=[n for n in names if n not in parts]
    )


@_value()
class Full(Mask):
    def allowed(self, q, k, q_position, k_position):
        return jnp.ones((q.shape[0], k.shape[0]), bool)

    def some_every(self, q_low, q_high, k_low, k_high):
        return True, True


@_value()
class BlockCausal(Mask):
    block: int

    def allowed(self, q, k, q_position, k_position):
        return k_position[None, :] // self.block <= q_position[:, None] // self.block

    def some_every(self, q_low, q_high, k_low, k_high):
        return k_low // self.block <= q_high // self.block, k_high // self.block <= q_low // self.block


@_value()
class Band(Mask):
    left: int | None
    right: int | None

    def allowed(self, q, k, q_position, k_position):
        ahead = k_position[None, :] - q_position[:, None]
        ok = jnp.ones(ahead.shape, bool)
        ok = ok if self.left is None else ok & (ahead >= -self.left)
        return ok if self.right is None else ok & (ahead <= self.right)

    def some_every(self, q_low, q_high, k_low, k_high):
        least, most = k_low - q_high, k_high - q_low
        left = -float("inf") if self.left is None else -self.left
        right = float("inf") if self.right is None else self.right
        return most >= left and least <= right, least >= left and most <= right


@_value()
class Sink(Mask):
    count: int

    def allowed(self, q, k, q_position, k_position):
        return jnp.broadcast_to(k_position[None, :] < self.count, (q.shape[0], k.shape[0]))

    def some_every(self, q_low, q_high, k_low, k_high):
        return k_low < self.count, k_high < self.count


@_value()
class SkipCausal(Mask):
    block: int
    clean: int

    def allowed(self, q, k, q_position, k_position):
        q_noisy, k_noisy = q_position[:, None] >= self.clean, k_position[None, :] >= self.clean
        q_block = (q_position[:, None] - jnp.where(q_noisy, self.clean, 0)) // self.block
        k_block = (k_position[None, :] - jnp.where(k_noisy, self.clean, 0)) // self.block
        from_noisy = jnp.where(k_noisy, k_block == q_block, k_block < q_block)
        return jnp.where(q_noisy, from_noisy, ~k_noisy & (k_block <= q_block))


@_value("q_ids", "k_ids")
class Segments(Mask):
    q_ids: Array
    k_ids: Array

    def allowed(self, q, k, q_position, k_position):
        same = jnp.take(self.q_ids, q, -1)[..., :, None] == jnp.take(self.k_ids, k, -1)[..., None, :]
        return same if same.ndim == 2 else same[..., None, :, :]


@_value("values")
class Table(Mask):
    values: Array

    def allowed(self, q, k, q_position, k_position):
        values = jnp.asarray(self.values)
        rows = values if values.shape[-2] == 1 else jnp.take(values, q, -2)
        return rows if values.shape[-1] == 1 else jnp.take(rows, k, -1)


@_combined
class And(Mask):
    a: Mask
    b: Mask

    def allowed(self, q, k, q_position, k_position):
        return jnp.logical_and(*_both(self, q, k, q_position, k_position))

    def some_every(self, *tile):
        (some_a, every_a), (some_b, every_b) = self.a.some_every(*tile), self.b.some_every(*tile)
        return some_a and some_b, every_a and every_b


@_combined
class Or(Mask):
    a: Mask
    b: Mask

    def allowed(self, q, k, q_position, k_position):
        return jnp.logical_or(*_both(self, q, k, q_position, k_position))

    def some_every(self, *tile):
        (some_a, every_a), (some_b, every_b) = self.a.some_every(*tile), self.b.some_every(*tile)
        return some_a or some_b, every_a or every_b


@_combined
class Frames(Mask):
    mask: Mask
    tokens: int

    def allowed(self, q, k, q_position, k_position):
        return self.mask.allowed(*(x // self.tokens for x in (q, k, q_position, k_position)))

    def some_every(self, *tile):
        return self.mask.some_every(*(x // self.tokens for x in tile))


def _both(mask, *where):
    """The two parts of a combination, with leading axes added so that their ranks agree."""
    a, b = mask.a.allowed(*where), mask.b.allowed(*where)
    rank = max(a.ndim, b.ndim)
    return tuple(v.reshape((1,) * (rank - v.ndim) + v.shape) for v in (a, b))


def full() -> Mask:
    """Every query looks at every key."""
    return Full()


def causal() -> Mask:
    """A query looks at its own position and the ones before it."""
    return Band(None, 0)


def block_causal(block: int) -> Mask:
    """A query looks at its own block of ``block`` tokens, all of it, and at the blocks before it."""
    return BlockCausal(_positive("block", block))


def band(left: int | None, right: int | None) -> Mask:
    """A query looks from ``left`` tokens before its position to ``right`` after, both inclusive; None is no limit."""
    return Band(left, right)


def sink(count: int) -> Mask:
    """Every query looks at the keys whose position is below ``count``; meant for ``|``."""
    return Sink(count)


def skip_causal(block: int, clean: int) -> Mask:
    """Teacher forcing over a sequence laid out as ``clean`` tokens and then their noisy copies, in blocks of ``block``.

    Clean tokens are block-causal among themselves; a noisy block looks at itself and at the clean blocks strictly
    before it, never at its own clean copy.
    """
    return SkipCausal(_positive("block", block), clean)


def segments(q_ids: Array, k_ids: Array) -> Mask:
    """Tokens look at tokens of the same id: ``q_ids`` int [B, Lq] or [Lq], ``k_ids`` int [B, Lk] or [Lk]."""
    return Segments(q_ids, k_ids)


def array(values: Array) -> Mask:
    """A boolean array broadcastable to [B, H, Lq, Lk], with at least its two last axes."""
    if jnp.ndim(values) < 2 or jnp.result_type(values) != jnp.bool_:
        raise ValueError(
            f"a mask array has dtype {jnp.result_type(values)} and shape {jnp.shape(values)}; "
            "give booleans broadcastable to [B, H, Lq, Lk]"
        )
    return Table(values)


def frames(mask: Mask, tokens_per_frame: int) -> Mask:
    """Lift a mask over frames to tokens: ``frames(block_causal(4), n)`` makes blocks of 4 frames of ``n`` tokens."""
    return Frames(as_mask(mask), _positive("tokens_per_frame", tokens_per_frame))


def as_mask(mask: Mask | Array | None) -> Mask:
    """A mask from a mask, a boolean array, or None (full)."""
    if mask is None:
        return Full()
    return mask if isinstance(mask, Mask) else array(mask)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    return value
