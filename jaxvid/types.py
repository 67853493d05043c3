# SPDX-License-Identifier: Apache-2.0
"""The words every room shares: what a batch of video, a network and a denoiser are.

Letters, one meaning each, everywhere in this library:

    B batch    T frames (latent frames inside networks)    H W rows and columns    C channels
    D width    S caption spans    L text tokens    N steps of a plan    K channels of one head

``t`` is always a noise level in [0, 1]: 0 is clean, 1 is pure noise. Every frame has its own: ``t[B, T]``.
Pixels are in [-1, 1] inside the library and uint8 outside of it.
"""

from __future__ import annotations

import difflib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct

Array = Any
Memory = Any  # a pytree of fixed shapes and dtypes, or None: what a model remembers between chunks
Params = Any  # a pytree of arrays

# What a network is told beside the noisy video. Keys, all optional, all with leading axis B:
#   tokens    int32 [B, S, L]   captions as byte tokens, 0 is padding (encoded by the model itself)
#   text      float [B, S, L, D] captions as embeddings of any text encoder
#   text_mask bool  [B, S, L]   True on real text tokens
#   span      int32 [B, T]      which caption speaks about a frame
#   early_span int32 [B, T]     the same for the first half of a network's layers, where it differs
#   drop      bool  [B]         True: the learned null text replaces the captions (guidance)
#   given     bool  [B, T]      True: the frame is clean context, not to be denoised
Cond = Mapping[str, Array]


@flax.struct.dataclass
class Video:
    """A batch of clips: pixels in [-1, 1], or latents of unit variance."""

    x: Array  # [B, T, H, W, C]
    sec: Array  # float32 [B, T], when each frame is shown, in seconds from the clip's start
    ok: Array  # bool [B, T], False on padding


@runtime_checkable
class Network(Protocol):
    """What diffusion training sees of a model: noisy video in, prediction and new memory out."""

    def __call__(self, x: Array, t: Array, cond: Cond, memory: Memory = None) -> tuple[Array, Memory]: ...


@runtime_checkable
class Denoiser(Protocol):
    """All that a solver ever sees of a model: it guesses the clean video."""

    def __call__(self, x: Array, t: Array, memory: Memory = None) -> tuple[Array, Memory]: ...


class InputError(ValueError):
    """Something the user gave cannot be used. One line: what came, what was wanted, what to do."""


def did_you_mean(asked: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """``"; did you mean 'window'?"`` where ``asked`` is nearly one of the names, or ``""``: for the end of an error."""
    near = difflib.get_close_matches(str(asked), list(known), 1, likeness)
    return f"; did you mean {near[0]!r}?" if near else ""


def a_path(value: Any, what: str = "a path") -> pathlib.Path:
    """``value`` as a path. Raises `InputError` for what is none."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(value, bytes):
        raise InputError(f"{what} is {value!r:.50} of type {type(value).__name__}; give a path")
    return pathlib.Path(value)
