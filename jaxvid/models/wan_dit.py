# SPDX-License-Identifier: Apache-2.0
"""The diffusion transformer of Wan 2.1 and 2.2 and of SkyReels-V2, so that their open weights run here.

Called like `VideoDiT`. What the families differ in are fields: features of a first image (Wan 2.1 I2V), the rate of
frames (SkyReels-V2 DF 1.3B), and blocks of frames that do not see later ones (``block``). A level per frame, or per
token, costs nothing more than one for all: it is how Wan 2.2 TI2V keeps a first image and how SkyReels goes on.

Ref: Wan: Open and Advanced Large-Scale Video Generative Models, arXiv:2503.20314. SkyReels-V2, arXiv:2504.13074.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.nn.embed import LevelEmbed
from jaxvid.nn.layers import AffineNorm, Linear, RMSNorm, along, named, normalise
from jaxvid.nn.patch import patchify, unpatchify
from jaxvid.nn.rope import grid_positions, rotary_table, turn
from jaxvid.ops import masks
from jaxvid.ops.attention import attention
from jaxvid.types import Cond, InputError

IMAGE_EPS = 1e-5  # of the norms around the image features; all others have the field's


class TwoLinear(nn.Module):
    """Linear, an activation, Linear."""

    hidden: int
    features: int
    act: str = "gelu_tanh"  # "gelu" is the exact one

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        h = Linear(self.hidden, ("embed", "mlp"), name="up")(x)
        h = nn.silu(h) if self.act == "silu" else nn.gelu(h, approximate=self.act == "gelu_tanh")
        return Linear(self.features, ("mlp", "embed"), name="down")(h)


class WanAttention(nn.Module):
    """Attention whose queries and keys are normalised over all heads together. With ``image`` rows there is a second
    attention of the same queries to them, and the two are added before the last projection."""

    head: int
    eps: float = 1e-6
    image: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], seen: Float[Array, "B M D"], image=None, turned=None, mask=None
    ):
        width = x.shape[-1]

        def heads(a):
            return a.reshape(*a.shape[:2], -1, self.head)

        def keys(rows, name):
            return heads(
                RMSNorm(self.eps, name=f"{name}_norm")(Linear(width, ("embed", "heads"), name=name)(rows))
            )

        q, k = keys(x, "q"), keys(seen, "k")
        v = heads(Linear(width, ("embed", "heads"), name="v")(seen))
        if turned is not None:
            q, k = turn(q, *turned), turn(k, *turned)
        y = attention(q, k, v, mask=mask)
        if self.image:
            y = y + attention(
                q, keys(image, "k_image"), heads(Linear(width, ("embed", "heads"), name="v_image")(image))
            )
        return Linear(width, ("heads", "embed"), name="out")(y.reshape(x.shape))


class UnitNorm(nn.Module):
    """LayerNorm without parameters; a module so that what it gives can be looked at (`jaxvid.cli.verify`)."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return normalise(x, self.eps)


class WanBlock(nn.Module):
    """Look at all frames, look at the text, feed forward; the first and the last are modulated by the noise level."""

    head: int
    hidden: int
    eps: float
    image: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W D"], level, text, image, turned, mask):
        width = x.shape[-1]
        init = nn.initializers.normal(width**-0.5)
        table = self.param("table", named(init, None, "embed"), (6, width), jnp.float32)
        parts = jnp.moveaxis(
            level + table.astype(level.dtype).reshape((1,) * (level.ndim - 2) + (6, width)), -2, 0
        )
        shift1, scale1, gate1, shift2, scale2, gate2 = parts

        def flat(a):
            return a.reshape(a.shape[0], -1, width)

        tokens = flat(modulated(UnitNorm(self.eps, name="self_norm"), x, shift1, scale1))
        y = WanAttention(self.head, self.eps, name="self")(tokens, tokens, turned=turned, mask=mask)
        x = gated(x, y.reshape(x.shape), gate1)
        look = WanAttention(self.head, self.eps, self.image, name="cross")
        rows, per_frame = flat(AffineNorm(self.eps, name="cross_norm")(x)), text.shape[0] // x.shape[0]
        rows = rows.reshape(text.shape[0], -1, width)  # a frame of its own per caption, where captions change
        seen = None if image is None else jnp.repeat(image, per_frame, 0)
        x = x + look(rows, text, seen).reshape(x.shape)
        h = modulated(UnitNorm(self.eps, name="feed_norm"), x, shift2, scale2)
        y = TwoLinear(self.hidden, width, name="feed")(h)
        return gated(x, y, gate2), None


def modulated(norm, x, shift, scale):
    """Norm, scale and shift in float32, in the dtype of x; shift and scale broadcast over tokens."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (norm(wide) * (1 + scale) + shift).astype(x.dtype)


def gated(x, y, gate):
    """x + gate y, added in float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (x.astype(wide) + y.astype(wide) * gate).astype(x.dtype)


class WanDiT(nn.Module):
    """Noisy latents, noise levels and text in; the flow ``eps - x0`` of the latents' shape out. Fields of width zero are
    switched off."""

    width: int = 1536
    layers: int = 30
    hidden: int = 8960  # of the feed-forward part
    head: int = 128
    channels: int = 16  # of the latents
    beside: int = 0  # channels that come beside them, from ``cond['beside']``
    patch: tuple[int, int, int] = (1, 2, 2)
    text_width: int = 4096
    level_channels: int = 256
    image_width: int = 0  # of the features of a first image, from ``cond['image']``
    rates: int = 0  # how many frame rates are told apart, by ``cond['rate']``
    rate: int = 0  # the one when `cond` does not say
    block: int = 0  # latent frames per block; a block sees itself and the past. 0: all see all
    whole_levels: bool = False  # levels are cut to thousandths, as by samplers that count 1000 integer steps
    eps: float = 1e-6
    remat: bool = False
    dtype: str = "float32"

    causal = False  # ``block`` masks, but keeps no memory between windows

    @nn.nowrap
    def init_memory(self, batch: int, height: int, width: int):
        """None: what came before is shown as given frames."""
        return None

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], t: Float[Array, "B T *tokens"], cond: Cond, memory=None):
        """Returns (prediction float32 [B, T, H, W, C], memory).

        ``t`` in [0, 1], 0 clean, per latent frame; or per token, [B, T, H/2, W/2]. Besides the usual ones `cond` may hold
        `beside` float [B, T, H, W, beside], `image` float [B, rows, image_width] and `rate` int [B]. Text rows that are
        masked or dropped count as zeros and are seen, which is what the weights were trained with.

        Raises InputError when channels, patch, text or a part of `cond` that the weights need do not fit.
        """
        self._check(x, cond)
        batch, frames = x.shape[:2]
        dtype = jnp.promote_types(self.dtype, x.dtype) if x.dtype == jnp.float64 else jnp.dtype(self.dtype)
        if self.beside:
            x = jnp.concatenate([x, cond["beside"].astype(x.dtype)], -1)
        h = Linear(self.width, (None, "embed"), name="patch_in")(patchify(x, self.patch).astype(dtype))
        level, last = self._levels(t, cond, h.shape)
        text, image = self._text(cond, batch, frames).astype(dtype), self._image(cond, dtype)

        grid = h.shape[1:4]
        angles = rotary_table(grid_positions(*grid), self.head, 1e4, np.float64)
        turned = tuple(jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))
        mask = masks.frames(masks.block_causal(self.block), grid[1] * grid[2]) if self.block else None
        repeated = nn.scan(
            nn.remat(WanBlock) if self.remat else WanBlock,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        body = repeated(self.head, self.hidden, self.eps, bool(self.image_width), name="blocks")
        h, _ = body(h, level, text, image, turned, mask)

        init = nn.initializers.normal(self.width**-0.5)
        table = self.param("table", named(init, None, "embed"), (2, self.width), jnp.float32)
        shift, scale = (last + along(row, last) for row in table.astype(last.dtype))
        size = self.patch[0] * self.patch[1] * self.patch[2] * self.channels
        out = Linear(size, ("embed", None), init=nn.initializers.zeros, name="patch_out")
        h = out(modulated(UnitNorm(self.eps, name="norm"), h, shift, scale))
        return unpatchify(h.astype(jnp.promote_types(dtype, jnp.float32)), self.patch), memory

    def _check(self, x, cond):
        said, needed = None, {"beside": self.beside, "image": self.image_width}
        if x.shape[-1] != self.channels:
            said = f"latents have {x.shape[-1]} channels; this network was built for {self.channels}"
        for name, size in needed.items():
            if size and (cond.get(name) is None or cond[name].shape[-1] != size):
                came = "nothing" if cond.get(name) is None else f"shape {tuple(cond[name].shape)}"
                said = f"these weights need cond[{name!r}] with {size} channels; {came} came"
        text = cond.get("text")
        if text is None or text.ndim != 4 or text.shape[-1] != self.text_width or text.shape[0] != x.shape[0]:
            came = "none" if text is None else f"shape {tuple(text.shape)}"
            said = f"text: {came}; wanted [B={x.shape[0]}, spans, tokens, {self.text_width}]"
        if self.block and (x.shape[1] // self.patch[0]) % self.block:
            said = f"{x.shape[1]} latent frames are not a multiple of block={self.block}; pad them or change block"
        if said:
            raise InputError(said)

    def _levels(self, t, cond, shape):
        """What the blocks and the head are told of the noise: float32 [B, T, h, w, 6, D] and [B, T, h, w, D], with sides of
        1 where a frame has one level."""
        t = t[:, :: self.patch[0]]
        if t.ndim == 2:
            t = t[..., None, None]
        if self.whole_levels:  # a thousandth that float32 writes as slightly less is still meant
            t = jnp.floor(1000 * t + 1e-3) / 1000
        e = LevelEmbed(self.width, self.level_channels, name="level")(t.reshape(t.shape[0], -1))
        six = Linear(6 * self.width, ("embed", "mlp"), name="modulation")(nn.silu(e))
        if self.rates:
            rate = cond.get("rate")
            rate = jnp.full(t.shape[0], self.rate) if rate is None else rate
            table = self.param(
                "rate_table", named(nn.initializers.normal(0.02), None, None), (self.rates, self.width)
            )
            told = TwoLinear(self.width, 6 * self.width, "silu", name="rate_in")(table.astype(e.dtype)[rate])
            six = six + told[:, None]
        return six.reshape(*t.shape, 6, self.width), e.reshape(*t.shape, self.width)

    def _text(self, cond, batch, frames):
        """[B, M, D], or [B * T, M, D] when captions change from frame to frame."""
        text = cond["text"].astype(jnp.float32)
        if cond.get("text_mask") is not None:
            text = text * cond["text_mask"][..., None]
        if cond.get("drop") is not None:
            text = text * ~cond["drop"][:, None, None, None]
        text = TwoLinear(self.width, self.width, name="text_in")(text.astype(self.dtype))
        if text.shape[1] == 1:
            return text[:, 0]
        span = cond.get("span")
        span = jnp.zeros((batch, frames), jnp.int32) if span is None else span
        rows = jnp.arange(batch)[:, None]
        return text[rows, span[:, :: self.patch[0]]].reshape(-1, *text.shape[2:])

    def _image(self, cond, dtype):
        if not self.image_width:
            return None
        h = AffineNorm(IMAGE_EPS, name="image_norm")(cond["image"].astype(dtype))
        h = TwoLinear(self.image_width, self.width, "gelu", name="image_in")(h)
        return AffineNorm(IMAGE_EPS, name="image_out_norm")(h)


# Presets: the sizes that were published; keywords override.


def wan21_1_3b(**kw) -> WanDiT:
    """Wan 2.1 T2V 1.3B, and the students distilled from it."""
    return WanDiT(**kw)


def wan21_14b(**kw) -> WanDiT:
    """Wan 2.1 T2V 14B; each of the two experts of Wan 2.2 T2V A14B."""
    return WanDiT(**{"width": 5120, "layers": 40, "hidden": 13824} | kw)


def wan21_i2v_14b(**kw) -> WanDiT:
    """Wan 2.1 I2V 14B: mask and latents of the first image beside the noisy ones, and its features."""
    return wan21_14b(**{"beside": 20, "image_width": 1280} | kw)


def wan22_ti2v_5b(**kw) -> WanDiT:
    """Wan 2.2 TI2V 5B, on the latents of the 4x16x16 autoencoder."""
    return WanDiT(**{"width": 3072, "hidden": 14336, "channels": 48} | kw)


def skyreels_1_3b(**kw) -> WanDiT:
    """SkyReels-V2 DF 1.3B: diffusion forcing, told whether it is 16 (0) or 24 (1) frames per second."""
    return WanDiT(**{"rates": 2, "rate": 1} | kw)


def skyreels_14b(**kw) -> WanDiT:
    """SkyReels-V2 DF 14B, which is not told the rate."""
    return wan21_14b(**kw)
