# SPDX-License-Identifier: Apache-2.0
"""The denoising network: any pattern of mixers between a patch embedding and its inverse.

Every frame has its own noise level and its own caption. With LinGen's mixers the cost is linear in the
number of frames; with full attention this is the DiT it is compared with.

Ref: LinGen, arXiv:2412.09856. DiT, arXiv:2212.09748.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.nn.embed import LevelEmbed
from jaxvid.nn.layers import Linear, along, named, normalise
from jaxvid.nn.mixers.attention import Attention
from jaxvid.nn.mixers.cross import Cross
from jaxvid.nn.mixers.mate import mate
from jaxvid.nn.patch import patchify, unpatchify
from jaxvid.nn.rope import sincos_grid
from jaxvid.nn.stack import Stack, modulate
from jaxvid.sharding import cut_frames
from jaxvid.types import Cond, InputError


class VideoDiT(nn.Module):
    """Noisy latents, noise levels and text in; a prediction of the latents' shape out."""

    mixers: Sequence[nn.Module]
    repeats: int = 1
    width: int = 192
    channels: int = 8
    patch: tuple[int, int, int] = (1, 2, 2)
    head: int = 32
    ratio: float = 4.0
    text_width: int = 128
    remat: bool = False
    dtype: str = "float32"
    refine: nn.Module | None = None  # a head on the grid of latents: `jaxvid.nn.refine.Refine`

    @property
    def stack(self) -> Stack:
        return Stack(tuple(self.mixers), self.repeats, Cross(self.head), self.ratio, self.remat, parent=None)

    @property
    def causal(self) -> bool:
        return self.patch[0] == 1 and self.stack.causal

    @nn.nowrap
    def init_memory(self, batch: int, height: int, width: int):
        """Memory before the first chunk of latents [batch, T, height, width, C]; None when not causal."""
        if not self.causal:
            return None
        return self.stack.init_memory(batch, (height // self.patch[1], width // self.patch[2]), self.width)

    @nn.nowrap
    def teaching(self):
        """The memory with which frames [0, T/2) are the clean copy of frames [T/2, T): see `diffusion.context`."""
        if self.patch[0] != 1:
            raise InputError(
                f"patch {self.patch} joins frames of different levels; use one of 1 frame to be taught so"
            )
        return self.stack.teaching()

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], t: Float[Array, "B T"], cond: Cond, memory=None):
        """Returns (prediction float32 [B, T, H, W, C], memory). ``t`` in [0, 1], 0 clean.

        Raises InputError when the channels, the patch or the text do not fit.
        """
        if x.shape[-1] != self.channels:
            raise InputError(
                f"latents have {x.shape[-1]} channels; this network was built for {self.channels}"
            )
        batch, frames = x.shape[:2]
        dtype = jnp.promote_types(self.dtype, x.dtype) if x.dtype == jnp.float64 else jnp.dtype(self.dtype)

        tokens = cut_frames(patchify(x, self.patch).astype(dtype))
        h = Linear(self.width, (None, "embed"), name="patch_in")(tokens)
        h = h + jnp.asarray(sincos_grid(*h.shape[2:4], self.width), dtype)[None, None]

        text, pooled = self._text(cond, batch, frames)
        level = LevelEmbed(self.width, name="level")(t)
        level = level + Linear(self.width, (None, "embed"), name="pooled")(pooled)
        mark = self.param("given", named(nn.initializers.normal(0.02), "embed"), (self.width,), jnp.float32)
        given = cond.get("given")
        if given is not None:
            level = level + given[..., None].astype(jnp.float32) * along(mark, level)
        level = nn.silu(level)[:, :: self.patch[0]]
        init = nn.initializers.normal(0.02)
        shared = Linear(6 * self.width, ("embed", "mlp"), init=init, name="modulation")(level)

        stack = self.stack.clone(parent=self, name="stack")
        text |= {name: text[name][:, :: self.patch[0]] for name in ("span", "early") if name in text}
        h, memory = stack(h, shared.reshape(batch, -1, 6, self.width), text, memory)

        last = Linear(2 * self.width, ("embed", "mlp"), init=init, name="last")(level)
        h = modulate(h, *jnp.split(last, 2, -1))
        size = self.patch[0] * self.patch[1] * self.patch[2] * self.channels
        out = unpatchify(
            Linear(size, ("embed", None), init=nn.initializers.zeros, name="patch_out")(h), self.patch
        )
        out = out.astype(jnp.promote_types(dtype, jnp.float32))
        if self.refine is not None:
            out = out + self.refine(h, x, level, self.patch).astype(out.dtype)
        return out, memory

    def _text(self, cond: Cond, batch: int, frames: int):
        """The memory of the cross-attention, and a vector per frame: the mean of its caption's embeddings, normalised."""
        null = self.param("null", named(nn.initializers.normal(1.0), None), (self.text_width,), jnp.float32)
        text, mask = cond.get("text"), cond.get("text_mask")
        if text is None:
            text = jnp.broadcast_to(null[None, None, None], (batch, 1, 1, self.text_width))
            mask = jnp.ones((batch, 1, 1), bool)
        elif text.ndim != 4 or text.shape[-1] != self.text_width or text.shape[0] != batch:
            raise InputError(
                f"text has shape {text.shape}; wanted [B={batch}, spans, tokens, {self.text_width}]"
            )
        mask = jnp.ones(text.shape[:3], bool) if mask is None else mask
        if "drop" in cond and cond.get("text") is not None:
            drop = cond["drop"][:, None, None]
            text = jnp.where(drop[..., None], along(null, text), text)
            mask = jnp.where(drop, jnp.arange(mask.shape[-1])[None, None] == 0, mask)
        span = cond.get("span")
        if span is None or cond.get("text") is None:
            span = jnp.zeros((batch, frames), jnp.int32)
        weight = mask[..., None].astype(jnp.float32)
        # Normalised: what one word changes in the mean of a sentence is little.
        mean = normalise((text * weight).sum(2) / jnp.maximum(weight.sum(2), 1))
        pooled = jnp.take_along_axis(mean, span[..., None], 1)
        early = {"early": cond["early_span"]} if "early_span" in cond and cond.get("text") is not None else {}
        return {"text": text, "mask": mask, "span": span, **early}, pooled


def lingen(
    width=192,
    repeats=2,
    *,
    window=(8, 4, 4),
    review=(2, 2, 2),
    head=32,
    scan_head=64,
    state=32,
    expand=2,
    chunk=None,
    **kw,
):
    """A LinGen backbone of ``4 * repeats`` layers: all four scan orders, windows shifted in odd layers.

    ``head`` is the head width of attention, ``scan_head`` that of the scan; the rest goes to `VideoDiT`.
    """
    shape = dict(head=scan_head, window_head=head, state=state, expand=expand, chunk=chunk)
    window, review = tuple(window), tuple(review) if review else None
    mixers = tuple(mate(k, window=window, review=review, **shape) for k in range(4))
    return VideoDiT(mixers=mixers, repeats=repeats, width=width, head=head, **kw)


def dit(width=192, layers=8, *, head=32, **kw):
    """The twin with full space-time attention in every layer."""
    return VideoDiT(mixers=(Attention(head=head),), repeats=layers, width=width, head=head, **kw)


def lingen_4b(**kw):
    """LinGen-4B's budget: for an 8x8x8 autoencoder with 16 channels, patch 1x2x2.

    The paper's widths are not public: 28 layers of width 2560 with state 128 hold four billion parameters.
    """
    mixers = tuple(
        mate(k, window=(4, 4, 8), head=64, window_head=128, state=128, chunk=256) for k in range(4)
    )
    rest = dict(channels=16, head=128, text_width=4096, remat=True, dtype="bfloat16")
    return VideoDiT(mixers=mixers, repeats=7, width=2560, **{**rest, **kw})


def dit_4b(**kw):
    """DiT-4B: equal width, 38 layers for an equal number of parameters."""
    rest = dict(channels=16, head=128, text_width=4096, remat=True, dtype="bfloat16")
    return VideoDiT(mixers=(Attention(head=128),), repeats=38, width=2560, **{**rest, **kw})
