# SPDX-License-Identifier: Apache-2.0
"""LinGen's self-attention replacement: a Mamba branch for far and a window branch for near, added.

Any two mixers can be the branches. They are named after what they are ('mamba', 'window', 'temporal', ...), so that models
with a branch in common have its parameters in the same place. Causal branches make a causal mixer with both their memories.

Ref: LinGen, arXiv:2412.09856.
"""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.nn.mixers.window import Window
from jaxvid.types import InputError


class Mate(nn.Module):
    """MATE(u) = MA(u) + TE(u), both branches on the same input."""

    far: nn.Module = Mamba()
    near: nn.Module = Window()

    def __post_init__(self):
        if type(self.far) is type(self.near):
            raise InputError(f"both branches are {type(self.far).__name__}; give two kinds of mixers")
        super().__post_init__()

    @property
    def causal(self) -> bool:
        return self.far.causal and self.near.causal

    @nn.nowrap
    def init_memory(self, batch: int, grid: tuple[int, int], width: int):
        """{'far', 'near': the branches' memories}, or None."""
        if not self.causal:
            return None
        return {name: getattr(self, name).init_memory(batch, grid, width) for name in ("far", "near")}

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], memory=None):
        memory, after, out = memory or {"far": None, "near": None}, {}, 0
        for name, mixer in (("far", self.far), ("near", self.near)):
            made, after[name] = mixer.copy(name=type(mixer).__name__.lower())(x, memory[name])
            out = out + made
        return out, after if self.causal and memory["near"] is not None else None


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
