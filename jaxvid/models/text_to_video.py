# SPDX-License-Identifier: Apache-2.0
"""The denoising network together with the text tower it is trained with."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvid.models.clip_vision import MEAN, STD
from jaxvid.types import Cond


class TextToVideo(nn.Module):
    """Called like `VideoDiT`. Captions may come as ``tokens`` or, encoded once for many calls, as ``text``."""

    dit: nn.Module
    text_encoder: nn.Module
    image_encoder: nn.Module | None = None  # where the network wants features of a first image

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

    def encode_image(self, picture: Float[Array, "B H W 3"]) -> Float[Array, "B L E"]:
        """Features of pictures in [-1, 1]: `cond['image']`."""
        mean, std = (jnp.asarray(n)[None, None, None] for n in (MEAN, STD))
        return self.image_encoder((picture / 2 + 0.5 - mean) / std)

    def __call__(self, x: Float[Array, "B T H W C"], t: Float[Array, "B T"], cond: Cond, memory=None):
        if "text" not in cond and "tokens" in cond:
            cond = {**cond, **self.encode_text(cond["tokens"])}
        if "image" not in cond and "picture" in cond:
            cond = {**cond, "image": self.encode_image(cond["picture"])}
        return self.dit(x, t, cond, memory)
