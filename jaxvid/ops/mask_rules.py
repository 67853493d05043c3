# SPDX-License-Identifier: Apache-2.0
"""Masks as the plain numbers that kernels read: rules of `pallas_kernels.tiles`, and segment ids."""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp

from jaxvid.ops import masks
from pallas_kernels import tiles

FAR = 1 << 28  # behind every position
MOST = 8  # rules; a kernel looks at each of them for every pair of a tile

Array = Any


def mask_rules(
    mask: masks.Mask, batch: int, q_len: int, k_len: int
) -> tuple[tiles.Mask, Array | None, Array | None]:
    """(rules, query ids int32 [B, Lq] or None, key ids int32 [B, Lk] or None), all of which must agree.

    Raises NotImplementedError for a mask that has no such form: boolean arrays, segments under ``|`` or given twice,
    and more than 8 alternatives.
    """
    rest, segments = _apart(mask, 1)
    if len(segments) > 1:
        raise NotImplementedError("kernels take one pair of segment ids, not several")
    rules = tuple(dict.fromkeys(_rules(rest, 1)))
    if () in rules:
        rules = tiles.FULL
    if len(rules) > MOST:
        raise NotImplementedError(f"kernels take masks of at most {MOST} alternatives, not {len(rules)}")
    if not segments:
        return rules, None, None
    ((one, tokens),) = segments

    def ids(values, length):
        each = jnp.take(jnp.asarray(values, jnp.int32), jnp.arange(length) // tokens, axis=-1)
        return jnp.broadcast_to(each, (batch, length))

    return rules, ids(one.q_ids, q_len), ids(one.k_ids, k_len)


def _apart(mask, tokens):
    """(what is left of the mask, [(segments, tokens of an index)]) of a conjunction."""
    if isinstance(mask, masks.Segments):
        return masks.full(), [(mask, tokens)]
    if isinstance(mask, masks.Frames):
        rest, found = _apart(mask.mask, tokens * mask.tokens)
        return masks.frames(rest, mask.tokens), found
    if isinstance(mask, masks.And):
        (a, in_a), (b, in_b) = _apart(mask.a, tokens), _apart(mask.b, tokens)
        return a & b, in_a + in_b
    return mask, []


def _rules(mask, tokens):
    """Alternatives, each a tuple of conditions, of a rule over units of ``tokens`` tokens."""
    near = lambda left, right, unit=1, **start: tiles.Near(left, right, unit * tokens, **start)
    match mask:
        case masks.Full() | masks.Band(None, None):
            return [()]
        case masks.Band(left, right):
            return [(near(left, right),)]
        case masks.BlockCausal(block):
            return [(near(None, 0, block),)]
        case masks.Sink(count):
            return [(tiles.Keys(-FAR, count * tokens),)]
        case masks.SkipCausal(block, clean):
            edge = clean * tokens
            noisy, clean_keys = tiles.Queries(edge, FAR), tiles.Keys(-FAR, edge)
            return [
                (tiles.Queries(-FAR, edge), clean_keys, near(None, 0, block)),
                (noisy, clean_keys, near(None, -1, block, q_from=edge)),
                (noisy, tiles.Keys(edge, FAR), near(0, 0, block, q_from=edge, k_from=edge)),
            ]
        case masks.Frames(inner, more):
            return _rules(inner, tokens * more)
        case masks.And(a, b):
            return [x + y for x, y in itertools.product(_rules(a, tokens), _rules(b, tokens))]
        case masks.Or(a, b):
            return [*_rules(a, tokens), *_rules(b, tokens)]
    raise NotImplementedError(f"kernels have no words for a mask of {type(mask).__name__} here; use chunked")
