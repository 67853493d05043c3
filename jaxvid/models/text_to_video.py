# SPDX-License-Identifier: Apache-2.0
"""The denoising network together with the text tower it is trained with."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float, Int

from jaxvid.types import Cond


class TextToVideo(nn.Module):
    """Called like `VideoDiT`. Captions may come as ``tokens`` or, encoded once for many calls, as ``text``."""

    dit: nn.Module
    text_encoder: nn.Module

    @property
    def causal(self) -> bool:
        return self.dit.causal

    @nn.nowrap
    def init_memory(self, batch: int, height: int, width: int):
        return self.dit.init_memory(batch, height, width)

    @nn.nowrap
    def teaching(self):
        return self.dit.teaching()

    def encode_text(self, tokens: Int[Array, "B S L"]) -> dict[str, Array]:
        """{'text': [B, S, L, D], 'text_mask': [B, S, L]}."""
        text, mask = self.text_encoder(tokens)
        return {"text": text, "text_mask": mask}

    def __call__(self, x: Float[Array, "B T H W C"], t: Float[Array, "B T"], cond: Cond, memory=None):
        if "text" not in cond and "tokens" in cond:
            cond = {**cond, **self.encode_text(cond["tokens"])}
        return self.dit(x, t, cond, memory)
