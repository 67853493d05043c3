# SPDX-License-Identifier: Apache-2.0
"""LinGen's self-attention replacement: a Mamba branch for far and a window branch for near, added.

Ref: LinGen, arXiv:2412.09856.
"""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.nn.mixers.window import Window


class Mate(nn.Module):
    """MATE(u) = MA(u) + TE(u), both branches on the same input."""

    far: nn.Module = Mamba()
    near: nn.Module = Window()
    causal = False

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        return None

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], memory=None):
        far, _ = self.far.copy(name="mamba")(x, None)
        near, _ = self.near.copy(name="window")(x, None)
        return far + near, memory


def mate(
    layer: int,
    *,
    window=(8, 4, 4),
    review=(2, 2, 2),
    head=32,
    window_head=None,
    state=32,
    expand=2,
    chunk=None,
):
    """The MATE of a layer: scan order ``layer % 4``, windows shifted in odd layers."""
    return Mate(
        far=Mamba(order=layer % 4, review=review, head=head, state=state, expand=expand, chunk=chunk),
        near=Window(window=window, shifted=layer % 2 == 1, head=window_head or head),
    )
