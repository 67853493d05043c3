# SPDX-License-Identifier: Apache-2.0
"""The causal video autoencoder: pixels to latents and back, in one piece or as a stream, images being videos of one frame.

A video of 1 + n k frames becomes 1 + k latent frames (n = ``time_factor``): frame 0 stands alone, later ones are grouped
by n. The same parameters run on a whole video or chunk after chunk with a memory of constant size, with equal results
up to rounding. The topology is that of Wan 2.1 and, with ``patch``, ``residual`` and ``dec_base``, of Wan 2.2.

Ref: Wan: Open and Advanced Large-Scale Video Generative Models (2025).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.models.vae_blocks import over, patchify, unpatchify
from jaxvid.models.vae_towers import Decoder, Encoder
from jaxvid.types import InputError, Memory

QUIET = -5.0  # log variance of the posterior before training


class Posterior(NamedTuple):
    """A diagonal Gaussian over latents; both float32 [B, F, h, w, z]."""

    mean: Any
    logvar: Any

    def sample(self, key):
        return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape)


def quiet_init(key, shape, dtype=jnp.float32):
    """Biases of (mean, logvar): a posterior that begins narrow, so that noise does not drown the first lessons."""
    return jnp.repeat(jnp.array([0.0, QUIET], dtype), shape[0] // 2)


class VideoVAE(nn.Module):
    """The autoencoder; its variables are ``params`` and ``stats`` (mean and std of the latents, per channel).

    `to_latents` and `from_latents` speak normalised latents (what diffusion sees); `encode` and `decode` raw ones.
    Sizes that do not fit raise InputError.
    """

    base: int = 96
    mult: tuple[int, ...] = (1, 2, 4, 4)
    res: int = 2  # residual blocks per level; the decoder has one more
    z: int = 16
    temporal: tuple[bool, ...] = (False, True, True)  # which of the shrinking levels halve time too
    patch: int = 1
    residual: bool = False  # shortcuts around whole levels, as in Wan 2.2
    shuffle: bool = (
        False  # change size so that each new pixel has channels of its own, and widths change there
    )
    dec_base: int | None = None
    dec_mult: tuple[int, ...] | None = None  # the decoder's widths, where they are not the encoder's
    temporal_init: str = "tail"  # begin as an image network that treats every frame alike; or "random"
    norm_floor: float = 1e-2
    dtype: Any = jnp.float32  # of computation; parameters, norms and results are float32
    remat: bool = False  # recompute residual blocks in the backward pass

    def setup(self):
        if len(self.temporal) != len(self.mult) - 1:
            raise InputError(
                f"temporal={self.temporal} has {len(self.temporal)} entries; give one per shrinking level,"
                f" {len(self.mult) - 1} for mult={self.mult}"
            )
        if self.temporal_init not in ("tail", "random"):
            raise InputError(f'temporal_init={self.temporal_init!r} is unknown; use "tail" or "random"')
        widths = tuple(self.dec_mult or self.mult)
        if len(widths) != len(self.mult):
            raise InputError(
                f"dec_mult={widths} has {len(widths)} levels, mult={self.mult} {len(self.mult)}; give as many"
            )
        shared = {
            "res": self.res,
            "temporal": tuple(self.temporal),
            "residual": self.residual,
            "shuffle": self.shuffle,
            "tail": self.temporal_init == "tail",
            "floor": self.norm_floor,
            "dtype": self.dtype,
            "remat": self.remat,
        }
        self.encoder = Encoder(out=2 * self.z, base=self.base, mult=tuple(self.mult), **shared)
        self.decoder = Decoder(out=3 * self.patch**2, base=self.dec_base or self.base, mult=widths, **shared)
        self.quant_conv = nn.Dense(2 * self.z, dtype=self.dtype, bias_init=quiet_init)
        self.post_quant_conv = nn.Dense(self.z, dtype=self.dtype)
        if self.is_initializing() or self.has_variable("stats", "mean"):
            self.mean = self.variable("stats", "mean", jnp.zeros, (self.z,))
            self.std = self.variable("stats", "std", jnp.ones, (self.z,))
        else:
            self.mean = self.std = None

    # Sizes

    @property
    def time_factor(self) -> int:
        return 2 ** sum(self.temporal)

    @property
    def space_factor(self) -> int:
        return 2 ** (len(self.mult) - 1) * self.patch

    @nn.nowrap
    def latent_frames(self, frames: int) -> int:
        """How many latent frames hold ``frames`` pixel frames: 1 + ceil((frames - 1) / time_factor)."""
        return 1 - (-(frames - 1) // self.time_factor)

    @nn.nowrap
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(F, h, w, z) of a video; InputError where the size does not fit."""
        self.check_size(height, width)
        return self.latent_frames(frames), height // self.space_factor, width // self.space_factor, self.z

    @nn.nowrap
    def check_size(self, height: int, width: int) -> None:
        s = self.space_factor
        if height % s or width % s or min(height, width) < s:
            near = tuple(max(s, round(side / s) * s) for side in (height, width))
            raise InputError(
                f"frames of {height}x{width} cannot be encoded: both sides must be multiples of {s};"
                f" resize to {near[0]}x{near[1]}"
            )

    @nn.nowrap
    def check_frames(self, frames: int, first: bool) -> None:
        n, start = self.time_factor, int(first)
        if frames < 1 or (frames - start) % n:
            least = start or n
            near = max(least, start + round((frames - start) / n) * n)
            rule = f"1 + {n}k" if first else f"{n}k"
            raise InputError(f"{frames} frames cannot be encoded: a clip has {rule} frames here; give {near}")

    @nn.nowrap
    def check_latents(self, z) -> None:
        if z.ndim != 5 or z.shape[-1] != self.z or z.shape[1] < 1:
            raise InputError(
                f"latents of shape {tuple(z.shape)} cannot be decoded; give [B, F, h, w, {self.z}]"
            )

    # Raw latents

    def encode(self, x: Float[Array, "B T H W 3"]) -> Posterior:
        """A whole video in [-1, 1], T = 1 + n k, to the Gaussian of its latents [B, 1 + k, h, w, z]."""
        return self.encode_chunk(x, None, True)[0]

    def decode(self, z: Float[Array, "B F h w z"], clip: bool = True) -> Float[Array, "B T H W 3"]:
        """Latents of a whole video to its frames; ``clip`` keeps them in [-1, 1] (not in training: it stops gradients)."""
        return self.decode_chunk(z, None, True, clip)[0]

    def encode_chunk(
        self, x: Float[Array, "B T H W 3"], memory: Memory, first: bool
    ) -> tuple[Posterior, Memory]:
        """The next frames of a video: 1 + n k of them when ``first`` (static), n k later. ``memory`` None: the start."""
        self.check_size(*x.shape[2:4])
        self.check_frames(x.shape[1], first)
        h, memory = self.encoder(patchify(x, self.patch).astype(self.dtype), memory, first)
        mean, logvar = jnp.split(self.quant_conv(h).astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0)), memory

    def decode_chunk(
        self, z: Float[Array, "B F h w z"], memory: Memory, first: bool, clip: bool = True
    ) -> tuple[Float[Array, "B T H W 3"], Memory]:
        """The next latent frames of a video, any number: n pixel frames for each, one for the very first."""
        self.check_latents(z)
        x, memory = self.decoder(self.post_quant_conv(z.astype(self.dtype)), memory, first)
        x = unpatchify(x.astype(jnp.float32), self.patch)
        return (jnp.clip(x, -1.0, 1.0) if clip else x), memory

    def __call__(self, x: Float[Array, "B T H W 3"], key=None) -> tuple[Float[Array, "B T H W 3"], Posterior]:
        """The round trip of training: the reconstruction, not clipped, from a sample (with ``key``) or from the mean."""
        posterior = self.encode(x)
        return self.decode(posterior.mean if key is None else posterior.sample(key), clip=False), posterior

    # Memory

    @nn.nowrap
    def init_encode_memory(self, batch: int, height: int, width: int) -> Memory:
        """The memory before frame 0: zeros. Needs no parameters."""
        x = jax.ShapeDtypeStruct((batch, 1, height, width, 3), jnp.float32)
        return self._zero_memory(x, VideoVAE.encode_chunk)

    @nn.nowrap
    def init_decode_memory(self, batch: int, height: int, width: int) -> Memory:
        """The memory before latent frame 0, for latents of ``height`` x ``width``: zeros. Needs no parameters."""
        z = jax.ShapeDtypeStruct((batch, 1, height, width, self.z), jnp.float32)
        return self._zero_memory(z, VideoVAE.decode_chunk)

    @nn.nowrap
    def _zero_memory(self, chunk, method) -> Memory:
        alone = self.clone(parent=None, name=None)

        def run(chunk):
            return alone.init_with_output(jax.random.key(0), chunk, None, True, method=method)[0][1]

        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run, chunk))

    # Normalised latents

    def _stats(self):
        if self.mean is None:
            raise InputError(
                'these variables hold no latent statistics; pass {"params": ..., "stats": {"mean": ..., "std": ...}}'
            )
        return self.mean.value, self.std.value

    def to_latents(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B F h w z"]:
        """A whole video to latents of zero mean and unit variance per channel (the posterior's mean, not a sample)."""
        return self.to_latents_chunk(x, None, True)[0]

    def from_latents(self, z: Float[Array, "B F h w z"]) -> Float[Array, "B T H W 3"]:
        """The inverse of `to_latents`, in [-1, 1]."""
        return self.from_latents_chunk(z, None, True)[0]

    def to_latents_chunk(self, x, memory: Memory, first: bool) -> tuple[Float[Array, "B F h w z"], Memory]:
        """`encode_chunk` with normalised latents."""
        mean, std = self._stats()
        posterior, memory = self.encode_chunk(x, memory, first)
        return (posterior.mean - over(mean, jnp.float32)) / over(std, jnp.float32), memory

    def from_latents_chunk(self, z, memory: Memory, first: bool) -> tuple[Float[Array, "B T H W 3"], Memory]:
        """`decode_chunk` of normalised latents."""
        mean, std = self._stats()
        return self.decode_chunk(z * over(std, z.dtype) + over(mean, z.dtype), memory, first)


def count_parameters(model: VideoVAE) -> int:
    """How many numbers the parameters hold; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, 1, model.space_factor, model.space_factor, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


# Presets: fields not named keep the class's defaults; keywords override.


def micro(**kw) -> VideoVAE:
    """For unit tests: 2x2x2."""
    return VideoVAE(**{"base": 8, "mult": (1, 2), "res": 1, "z": 4, "temporal": (True,)} | kw)


def tiny(**kw) -> VideoVAE:
    """4x8x8 with 0.9 M parameters."""
    return VideoVAE(**{"base": 8} | kw)


def small(**kw) -> VideoVAE:
    """4x8x8 with 14.2 M parameters."""
    return VideoVAE(**{"base": 32} | kw)


def shapes(**kw) -> VideoVAE:
    """The shipped one: 4x8x8, 16 channels, 2.9 M parameters; see `vae_start` and configs/shapes_vae.py."""
    fields = {
        "base": 24,
        "mult": (1, 2, 3),
        "res": 1,
        "z": 16,
        "shuffle": True,
        "temporal": (True, True),
        "patch": 2,
    }
    return VideoVAE(**fields | {"norm_floor": 16.0} | kw)


def wan21(**kw) -> VideoVAE:
    """Wan 2.1: 4x8x8, 16 channels, 126.9 M parameters."""
    return VideoVAE(**{"norm_floor": 1e-24} | kw)


def wan22(**kw) -> VideoVAE:
    """Wan 2.2: 4x16x16, 48 channels, 704.7 M parameters."""
    fields = {"base": 160, "dec_base": 256, "z": 48, "patch": 2, "residual": True, "norm_floor": 1e-24}
    return VideoVAE(**fields | kw)
