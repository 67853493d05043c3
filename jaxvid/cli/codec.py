# SPDX-License-Identifier: Apache-2.0
"""The autoencoder that a backbone is trained on: where it comes from, and the copy that a run keeps.

A codec's directory holds ``vae.json`` (the call that makes the model) and ``vae.safetensors`` (its variables).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxvid
from jaxvid.config import SAFE, build, from_json, to_json
from jaxvid.io.bundle import VAE, is_bundle, load_spec, vae_file
from jaxvid.io.weights import load_weights, restore_into, save_weights
from jaxvid.models.vae_scale import channel_effects, weigh
from jaxvid.types import InputError

NODE = "vae.json"
SHIPPED = pathlib.Path(jaxvid.__file__).parent / "assets" / "shapes"


@dataclasses.dataclass(frozen=True)
class Codec:
    """An autoencoder with its variables ``{'params', 'stats'}``; ``node`` is the call that makes ``model``."""

    node: Any
    model: Any
    variables: Mapping[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """A hash of what it does to a video: of its description and of every weight."""
        digest = hashlib.blake2b(to_json(self.node).encode(), digest_size=16)
        for path, leaf in sorted(
            jax.tree_util.tree_flatten_with_path(self.variables)[0], key=lambda item: str(item[0])
        ):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def encode(self) -> Any:
        """``x[B, T, H, W, 3]`` in [-1, 1] -> normalised latents ``[B, F, h, w, C]``, jitted."""
        run = jax.jit(lambda variables, x: self.model.apply(variables, x, method="to_latents"))
        return functools.partial(run, self.variables)

    def save(self, directory: str | os.PathLike[str]) -> None:
        os.makedirs(directory, exist_ok=True)
        save_weights(os.path.join(directory, VAE), self.variables)
        write_text(os.path.join(directory, NODE), to_json(self.node))


def load_codec(where: str, workdir: str | os.PathLike[str], stages: Iterable[str] = ()) -> Codec:
    """``where`` is 'shipped', a stage of this run, or the directory of a codec, a bundle or another run."""
    stages = list(stages)
    if where in stages:
        path = pathlib.Path(workdir, where)
    elif where == "shipped":
        path = SHIPPED
    else:
        path = pathlib.Path(where)
    if (path / "codec" / NODE).is_file():
        path = path / "codec"
    if (path / NODE).is_file():
        node = from_json((path / NODE).read_text(encoding="utf-8"))
    elif is_bundle(path):
        spec = load_spec(path)
        return make_codec(spec["vae"], load_weights(vae_file(path, spec)), str(path))
    else:
        known = ", ".join(["'shipped'", *stages])
        raise InputError(
            f"codec={where!r} has no {NODE} in {path}; give {known}, or the directory of a bundle or a run"
        )
    return make_codec(node, load_weights(path / VAE), str(path))


def make_codec(node: Any, variables: Any, source: str = "the codec") -> Codec:
    """Holds variables against the model that they are for."""
    model = build(node, SAFE)
    shapes = fresh_variables(model)
    return Codec(node, model, jax.tree.map(np.asarray, restore_into(shapes, variables, source)))


def fresh_variables(model: Any) -> Any:
    """Shapes of an autoencoder's variables."""
    side = model.space_factor
    x = jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: dict(model.init(jax.random.key(0), x)), x)


def with_statistics(
    codec: Codec, source: Any, shape: Any, clips: int, batch: int = 4, most: float = 0.0
) -> Codec:
    """The codec with the mean and spread of its latents over the first ``clips`` of a source, per channel.

    With ``most`` > 0, spreads are weighed by what channels do to pixels, see `jaxvid.models.vae_scale.weigh`.
    """
    channels = codec.variables["stats"]["mean"].shape[0]
    raw = dict(
        codec.variables, stats={"mean": np.zeros(channels, np.float32), "std": np.ones(channels, np.float32)}
    )
    encode = dataclasses.replace(codec, variables=raw).encode
    clips = min(clips, len(source))
    count, total, square = 0, np.zeros(channels), np.zeros(channels)
    for first in range(0, clips, batch):
        # The last batch is filled up with its last clip, so that the encoder compiles once; it counts once.
        read = [_filled(source.clip(min(first + i, clips - 1), shape).x, shape.frames) for i in range(batch)]
        z = np.asarray(encode(np.stack(read).astype(np.float32) / 127.5 - 1), np.float64)
        z = z[: clips - first].reshape(-1, channels)
        count, total, square = count + len(z), total + z.sum(0), square + (z**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 1e-8))
    stats = {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
    codec = dataclasses.replace(codec, variables=dict(codec.variables, stats=stats))
    if most:
        read = [_filled(source.clip(i % len(source), shape).x, shape.frames) for i in range(4 * batch)]
        some = codec.encode(np.stack(read).astype(np.float32) / 127.5 - 1)
        effects = channel_effects(codec.model, codec.variables, some, jax.random.key(0))
        codec = dataclasses.replace(codec, variables=dict(codec.variables, stats=weigh(stats, effects, most)))
    return codec


def _filled(x: Any, frames: int) -> np.ndarray:
    x = np.asarray(x)
    return np.concatenate([x, np.repeat(x[-1:], frames - len(x), 0)]) if len(x) < frames else x


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes aside and renames."""
    aside = f"{os.fspath(path)}.part"
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(aside, path)
