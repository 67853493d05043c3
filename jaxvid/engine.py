# SPDX-License-Identifier: Apache-2.0
"""The working part of a pipeline: networks with their weights, and the loops over rows of a plan and chunks of a video.

The loops are generators that yield after every compiled call, so that a run can be watched and cancelled anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np

from jaxvid import stages
from jaxvid.data.text import encode_text
from jaxvid.io.weights import restore_into
from jaxvid.sampling.noise import seed_keys
from jaxvid.sampling.plan import time_table, together
from jaxvid.sampling.rollout import begin
from jaxvid.sampling.solvers import by_name
from jaxvid.types import InputError


class Engine:
    """Compiles on first use, once per stage and shape.

    Attributes:
      executables: the compiled stages, counted.
      steady: seconds that one unit of a stage takes once compiled, from the last run.
    """

    def __init__(
        self,
        model,
        vae,
        process,
        params,
        variables,
        text_length: int,
        tokenize=encode_text,
        keep: bool = False,
    ):
        """``tokenize(text, length) -> int32 [length]``; ``keep``: the model's weights stay in the dtype that they have."""
        self.model, self.vae, self.process, self.text_length = model, vae, process, text_length
        self.tokenize = tokenize
        self.params = restore_into(self._abstract_params(), params, "the model's weights", keep)
        self.variables = restore_into(self._abstract_variables(), variables, "the autoencoder's weights")
        self.executables, self.steady = stages.Executables(), {}
        self._on_device: dict[str, Any] = {}
        self._variants: dict[tuple[str, str], Any] = {}

    def _abstract_params(self):
        x = jax.ShapeDtypeStruct((1, 1, *self._least(), self.vae.z), jnp.float32)
        t = jax.ShapeDtypeStruct((1, 1), jnp.float32)
        cond = {"tokens": jax.ShapeDtypeStruct((1, 1, self.text_length), jnp.int32)}
        if self.beside:
            cond["beside"] = jax.ShapeDtypeStruct((*x.shape[:4], self.beside), jnp.float32)
        if self.image_side:
            cond["picture"] = jax.ShapeDtypeStruct((1, self.image_side, self.image_side, 3), jnp.float32)

        def init(x, t, cond):
            return self.model.init(jax.random.key(0), x, t, cond)["params"]

        return flax.core.meta.unbox(jax.eval_shape(init, x, t, cond))

    def _abstract_variables(self):
        side = self.vae.space_factor
        x = jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.float32)
        made = jax.eval_shape(lambda x: self.vae.init(jax.random.key(0), x), x)
        return flax.core.meta.unbox({"params": made["params"], "stats": made["stats"]})

    def _least(self) -> tuple[int, int]:
        """The smallest height and width of latents that the network's patches divide."""
        patch = getattr(getattr(self.model, "dit", self.model), "patch", (1, 1, 1))
        return patch[1], patch[2]

    @property
    def beside(self) -> int:
        """Channels that tell the network of a first image, beside the latents; 0: such an image is given as a frame."""
        return getattr(getattr(self.model, "dit", self.model), "beside", 0)

    @property
    def image_side(self) -> int:
        """Side of the pictures that the network's image encoder looks at; 0: it has none."""
        return getattr(getattr(self.model, "image_encoder", None), "size", 0)

    def weights(self, which: str) -> Any:
        """'params' or 'variables' where the computing is done; put there once."""
        if which not in self._on_device:
            self._on_device[which] = jax.tree.map(jnp.asarray, getattr(self, which))
        return self._on_device[which]

    def variant(self, which: str, dtype: str):
        """The 'model' or the 'vae' computing in ``dtype``."""
        if (which, dtype) not in self._variants:
            self._variants[which, dtype] = stages.computing_in(getattr(self, which), dtype)
        return self._variants[which, dtype]

    def call(self, stage: str, key, function, args, units: int = 1, donate: tuple[int, ...] = ()):
        """``function(*args)``, compiled once per shape and waited for; keeps a unit's time when nothing was compiled."""
        ready = self.executables.has(stage, key, args)
        run = self.executables.get(stage, key, function, args, donate)
        start = time.perf_counter()
        result = jax.block_until_ready(run(*args))
        if ready:
            self.steady[stage] = (time.perf_counter() - start) / units
        return result

    # Text

    def text(self, texts: list[str], dtype: str):
        """Embeddings [n, L, D] and masks [n, L] of sentences, in one call; n is rounded up to a power of two."""
        rows = 1 << (len(texts) - 1).bit_length()
        tokens = np.zeros((1, rows, self.text_length), np.int32)
        for row, text in enumerate(texts):
            tokens[0, row] = self.tokenize(text, self.text_length)
        function = stages.encode_text(self.variant("model", dtype))
        made = self.call("text", dtype, function, (self.weights("params"), tokens), rows)
        return np.asarray(made["text"])[0], np.asarray(made["text_mask"])[0]

    def image(self, image, dtype: str) -> np.ndarray:
        """Features [L, E] of a first image, uint8 [H, W, 3]: its middle square, as the image encoder sees it."""
        from jaxvid.data.images import middle_square

        function = stages.encode_image(self.variant("model", dtype))
        picture = middle_square(image, self.image_side)[None]
        return np.asarray(self.call("image", dtype, function, (self.weights("params"), picture)))[0]

    # Frames to latents; for the way back see `Decoder`

    def encode(self, pieces, dtype: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """``(latents [<=8, h, w, C], the frames that they hold)`` of a video that comes in pieces uint8 [n, H, W, 3].

        A last incomplete group of frames repeats its last one. Memory does not grow.
        """
        n, memory, first = self.vae.time_factor, None, True
        for chunk in stages.in_chunks(pieces, n):
            length = stages.frames_of(stages.CHUNK, n) if first else stages.CHUNK * n
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], length - len(chunk), 0)])[None]
            function = stages.encode_pixels(self.variant("vae", dtype), first)
            args = (self.weights("variables"), padded, memory)
            latents, memory = self.call("encode", (dtype, first), function, args, stages.CHUNK)
            yield np.asarray(latents)[0, : -(-(len(chunk) - first) // n) + first], chunk
            first = False

    def check_latents(self, latents) -> np.ndarray:
        """float32 [F, h, w, C], finite and of the autoencoder's width, or `InputError`."""
        latents = np.asarray(latents)
        if latents.ndim != 4 or latents.shape[-1] != self.vae.z or not len(latents):
            raise InputError(
                f"latents of shape {list(latents.shape)} cannot be decoded; wanted [F, h, w, {self.vae.z}]"
            )
        if not np.isfinite(latents.astype(np.float32)).all():
            raise InputError("the latents hold NaN or infinity; make them again")
        return latents.astype(np.float32)

    # Noise to latents

    def window(self, request, frames: int, window: int, overlap: int) -> tuple[int, int]:
        """How many latent frames are denoised together for a video of ``frames``, and how many of them are the past."""
        if request.method == "oneshot" or frames <= window:
            return frames, 0
        return window, 0 if self.model_is_causal else overlap

    @property
    def model_is_causal(self) -> bool:
        return bool(getattr(self.model, "causal", False))

    def sample(self, request, told, given, mask, window: int, overlap: int):
        """Denoises window after window; yields ``(rows done, rows in all, note, latents)`` around every model call.

        Args:
          told: host arrays `text`, `text_mask` [B, S, L, ...], `span` [B, F], `null` (the same for the negative) or None.
          given: float32 [F, h, w, C], clean where ``mask`` [F]. F is a whole number of windows.
          window, overlap: as from `window`.

        ``latents`` is None but after a window, when it is float32 [B, n, h, w, C], what is new. Raises FloatingPointError.
        """
        dtype, batch, guided = request.dtype, request.batch, request.guidance != 1
        model, solver = self.variant("model", dtype), by_name(request.solver, self.process.schedule)
        settings = (dtype, request.solver, guided)
        rollout = self._begin(request, given.shape[1:], window, overlap, guided)
        plan, times = together(request.steps, window), _times(request.steps, request.shift)
        scale, params = np.float32(request.guidance), self.weights("params")
        windows = 1 + (len(mask) - window) // (window - overlap)
        total = windows * plan.rows
        for number in range(windows):
            start = number * (window - overlap)
            here = slice(start, start + window)
            shape = (batch, window, *given.shape[1:])
            known = np.broadcast_to(mask[here], shape[:2]), np.broadcast_to(given[here], shape)
            args = (rollout, *(np.ascontiguousarray(a) for a in known))
            carry, known, value = self.call("begin", settings, stages.open_window(solver, window), args)
            cond = {
                "text": told["text"],
                "text_mask": told["text_mask"],
                "span": told["span"][:, here],
                "given": known,
                **{
                    name: value[:, here] if name == "beside" else value
                    for name, value in told.get("more", {}).items()
                },
            }
            null = None if told["null"] is None else {**cond, **told["null"]}
            said = jax.tree.map(jnp.asarray, {"cond": cond, "null": null, "value": value})
            past = {"memory": rollout.memory, "keys": rollout.keys, "first_frame": np.int32(start)}
            function = stages.sample_rows(model, self.process, solver, guided)
            for row in range(plan.rows):
                args = (
                    params,
                    carry,
                    plan.k[row : row + 1],
                    plan.update[row : row + 1],
                    times,
                    past,
                    said,
                    scale,
                )
                done = number * plan.rows + row
                if not self.executables.has("sample", settings, args):
                    yield done, total, "compiling", None
                carry = self.call("sample", settings, function, args, donate=(1,))
                if (np.asarray(carry.bad) >= 0).any():
                    raise FloatingPointError(
                        f"sampling: the latents are not finite after step {row + 1} of {plan.rows} in {dtype};"
                        f" use dtype float32, or a smaller guidance than {request.guidance:g}"
                    )
                yield done + 1, total, "", None
            if number + 1 < windows:
                function = stages.close_window(model, self.process, guided)
                rollout = self.call("commit", settings, function, (params, rollout, carry.x, said, scale))
            yield (
                total if number + 1 == windows else done + 1,
                total,
                "",
                np.asarray(carry.x)[:, overlap if number else 0 :],
            )

    def _begin(self, request, shape, window: int, overlap: int, guided: bool):
        """A roll-out of nothing yet; only a causal model that goes on after its first window remembers."""
        memory = None
        if request.method == "rollout" and self.model_is_causal:
            model = self.variant("model", request.dtype)
            memory = model.init_memory(request.batch * (2 if guided else 1), *shape[:2])
        return begin(seed_keys(request.seeds), tuple(shape), memory=memory, overlap=overlap)


class Decoder:
    """Latents in, frames out, piece after piece of one video; memory does not grow."""

    def __init__(self, engine: Engine, dtype: str):
        self.engine, self.dtype, self.memory, self.first, self.frames = engine, dtype, None, True, 0

    def _call(self, latents):
        function = stages.decode_latents(self.engine.variant("vae", self.dtype), self.first)
        return (
            (self.dtype, self.first),
            function,
            (self.engine.weights("variables"), jnp.asarray(latents), self.memory),
        )

    def ready(self, latents) -> bool:
        """Whether the next call will not have to compile."""
        key, _, args = self._call(latents)
        return self.engine.executables.has("decode", key, args)

    def __call__(self, latents) -> np.ndarray:
        """uint8 [B, n, H, W, 3] of the next latents [B, 8, h, w, C].

        Raises FloatingPointError, naming the frames, rather than turn a NaN into a black picture.
        """
        key, function, args = self._call(latents)
        frames, self.memory, finite = self.engine.call("decode", key, function, args, stages.CHUNK)
        if not finite:
            last = self.frames + frames.shape[1] - 1
            raise FloatingPointError(
                f"decoding: frames {self.frames}..{last} are not finite in {self.dtype}; use float32"
            )
        self.frames, self.first = self.frames + frames.shape[1], False
        return np.asarray(frames)


def _times(steps: int, shift: float) -> np.ndarray:
    """The time table, padded so that other numbers of steps need no other program."""
    times = time_table(steps, shift)
    return np.pad(times, (0, -len(times) % 64))
