# SPDX-License-Identifier: Apache-2.0
"""Video to tokens and back: pure rearrangement, channel fastest inside a patch."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Array, Float

from jaxvid.types import InputError


def patchify(x: Float[Array, "B T H W C"], patch: tuple[int, int, int]) -> Float[Array, "B t h w D"]:
    """[B,T,H,W,C] -> [B, T/pt, H/ph, W/pw, pt*ph*pw*C]. Raises InputError when a patch does not divide."""
    pt, ph, pw = patch
    if any(n % p for n, p in zip(x.shape[1:4], patch, strict=True)):
        raise InputError(
            f"frames, rows and columns {x.shape[1:4]} are not multiples of patch {patch}; pad or crop"
        )
    return rearrange(x, "b (t i) (h j) (w k) c -> b t h w (i j k c)", i=pt, j=ph, k=pw)


def unpatchify(x: Float[Array, "B t h w D"], patch: tuple[int, int, int]) -> Float[Array, "B T H W C"]:
    """The inverse of `patchify`."""
    pt, ph, pw = patch
    return rearrange(x, "b t h w (i j k c) -> b (t i) (h j) (w k) c", i=pt, j=ph, k=pw)
