# SPDX-License-Identifier: Apache-2.0
"""What a source does about a clip that cannot be read: another one, always the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from jaxvid.data.clips import Sample
from jaxvid.types import InputError

ATTEMPTS = 8  # replacements tried for one clip


def hashed(*parts) -> int:
    """A number of 64 bits that depends on nothing but `parts`."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def first_readable(read: Callable[[int], Sample], index: int, count: int) -> Sample:
    """`read(index)`, or, where that is an InputError, `read` of the first readable of a fixed row of other
    indices.

    The row depends on `index` and `count` alone: not on threads, on restarts, or on what was read before.
    Several failures in a row are one InputError with the last reason.
    """
    reason = ""
    for attempt in range(ATTEMPTS + 1):
        try:
            return read(index if attempt == 0 else hashed(index, attempt) % count)
        except (InputError, MemoryError) as error:
            reason = str(error) or "out of memory"
    raise InputError(f"{ATTEMPTS + 1} clips in a row could not be read, the last one: {reason}")
