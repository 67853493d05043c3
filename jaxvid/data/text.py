# SPDX-License-Identifier: Apache-2.0
"""Captions as byte tokens: UTF-8 bytes plus one, so that 0 stays free for padding and ids are 1..256."""

from __future__ import annotations

import numpy as np


def encode_text(text: str, length: int) -> np.ndarray:
    """Byte tokens int32 ``[length]`` of a caption, ids 1..256, 0 on padding.

    Text that is too long is cut at the end of a whole character, never inside one. What UTF-8 cannot say (a
    lone half of a surrogate pair) becomes a question mark.
    """
    data = text.encode("utf-8", errors="replace")
    if len(data) > length:
        data = data[:length].decode("utf-8", errors="ignore").encode("utf-8")
    tokens = np.zeros(length, np.int32)
    tokens[: len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + 1
    return tokens


def decode_text(tokens) -> str:
    """The text of byte tokens ``[L]``: the inverse of `encode_text` on text that fits."""
    tokens = np.asarray(tokens)
    data = (tokens[tokens > 0] - 1).astype(np.uint8).tobytes()
    return data.decode("utf-8", errors="replace")
