# SPDX-License-Identifier: Apache-2.0
"""The compiled stages of a pipeline: text, encode, sample, decode. Each is compiled once per shape, and that is counted.

Everything that may differ between two calls of one shape (weights, text, noise, plan, guidance scale) is an argument of the
compiled function, so that a second prompt compiles nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.diffusion import guidance
from jaxvid.sampling import rollout as rollout_
from jaxvid.sampling import sample
from jaxvid.sampling.solvers import SOLVERS as SOLVERS
from jaxvid.sampling.solvers import Solver

CHUNK = 8  # latent frames that are decoded at a time


class Executables:
    """Compiled functions by stage and shape.

    Attributes:
      counts: how often each stage was compiled.
      seconds: how long that took, per stage.
    """

    def __init__(self):
        self.counts = collections.Counter()
        self.seconds = collections.Counter()
        self._made: dict[Any, Any] = {}

    def has(self, stage: str, key, args) -> bool:
        """Whether ``get`` would find it ready."""
        return (stage, key, _signature(args)) in self._made

    def get(self, stage: str, key, function: Callable, args, donate: tuple[int, ...] = ()):
        """The executable of ``function(*args)``; ``key`` tells apart functions that close over different settings."""
        name = (stage, key, _signature(args))
        if name not in self._made:
            start = time.perf_counter()
            self._made[name] = jax.jit(function, donate_argnums=donate).lower(*args).compile()
            self.counts[stage] += 1
            self.seconds[stage] += time.perf_counter() - start
        return self._made[name]


def _signature(args):
    leaves, tree = jax.tree.flatten(args)
    return tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def encode_text(model) -> Callable:
    """``(params, tokens[B, S, L]) -> {'text', 'text_mask'}``."""

    def run(params, tokens):
        return model.apply({"params": params}, tokens, method="encode_text")

    return run


def encode_image(model) -> Callable:
    """``(params, uint8 [B, S, S, 3]) -> features [B, L, E]`` of a first image, for networks that ask for them."""

    def run(params, picture):
        x = picture.astype(jnp.float32) / 127.5 - 1
        return model.apply({"params": params}, x, method="encode_image")

    return run


def encode_pixels(vae, first: bool) -> Callable:
    """``(variables, uint8 [B, T, H, W, 3], memory) -> (latents, memory)``: one chunk of a video."""

    def run(variables, frames, memory):
        x = frames.astype(jnp.float32) / 127.5 - 1
        return vae.apply(variables, x, memory, first, method="to_latents_chunk")

    return run


def decode_latents(vae, first: bool) -> Callable:
    """``(variables, latents, memory) -> (uint8 [B, T, H, W, 3], memory, finite)``: one chunk of a video."""

    def run(variables, latents, memory):
        x, memory = vae.apply(variables, latents, memory, first, method="from_latents_chunk")
        # Rounded, not cut off, and never from a NaN: `finite` is looked at before the frames are.
        return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8), memory, jnp.isfinite(x).all()

    return run


def open_window(solver: Solver, frames: int) -> Callable:
    """``(rollout, given[B, F], value[B, F, ...]) -> (carry, given, value)``: a window's noise, with its past in place."""

    def run(rollout, given, value):
        noise, given, value = rollout_.open_window(rollout, frames, given, value)
        return sample.init(solver, noise, given, value), given, value

    return run


def sample_rows(model, process, solver: Solver, guided: bool) -> Callable:
    """``(params, carry, k[n, F], update[n, F], times, past, told, scale) -> carry``: some rows of a plan.

    ``past``: what a roll-out's `memory`, `keys` and `first_frame` are; ``told``: `cond` (text, text_mask, span, given),
    `null` (or None) and `value` (clean latents where given).
    """

    def run(params, carry, k, update, times, past, told, scale):
        denoise = _denoiser(model, process, params, told["cond"], told["null"], scale, guided)
        return sample.rows(
            denoise,
            solver,
            times,
            carry,
            k,
            update,
            given=told["cond"]["given"],
            value=told["value"],
            **past,
        )

    return run


def close_window(model, process, guided: bool) -> Callable:
    """``(params, rollout, latents, told, scale) -> rollout``: a finished window becomes the past."""

    def run(params, rollout, latents, told, scale):
        clean = jnp.ones(latents.shape[:2], bool)
        cond = {**told["cond"], "given": clean}
        null = None if told["null"] is None else {**told["null"], "given": clean}
        return rollout_.close_window(
            rollout, _denoiser(model, process, params, cond, null, scale, guided), latents
        )

    return run


def _denoiser(model, process, params, cond, null, scale, guided):
    def network(x, t, cond, memory):
        return model.apply({"params": params}, x, t, cond, memory)

    if not guided:
        return process.denoiser(network, cond)
    return guidance.classifier_free(guidance.doubled(process, network, cond, null), scale)


def frames_of(latents: int, time_factor: int) -> int:
    """How many pixel frames so many latent frames decode to."""
    return time_factor * (latents - 1) + 1


def in_chunks(pieces: Iterable, time_factor: int) -> Iterator[np.ndarray]:
    """Frames that come in pieces [n, H, W, 3], regrouped into what ``CHUNK`` latent frames hold; the last may be shorter."""
    held, wanted = [], frames_of(CHUNK, time_factor)
    for piece in pieces:
        while len(piece):
            room = wanted - sum(map(len, held))
            held.append(piece[:room])
            piece = piece[room:]
            if sum(map(len, held)) == wanted:
                yield np.concatenate(held)
                held, wanted = [], CHUNK * time_factor
    if held:
        yield np.concatenate(held)


def computing_in(module: nn.Module, dtype: str) -> nn.Module:
    """A module like this one that computes in ``dtype``, with all the modules that it holds."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if field.name == "dtype":
            changes["dtype"] = dtype if isinstance(value, str) else jnp.dtype(dtype)
        elif field.name != "parent" and isinstance(value, nn.Module):
            changes[field.name] = computing_in(value, dtype)
    return module.clone(**changes)
