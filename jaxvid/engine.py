# SPDX-License-Identifier: Apache-2.0
"""The working part of a pipeline: networks with their weights, and the loops over rows of a plan and chunks of a video.

The loops are generators that yield after every compiled call, so that a run can be watched and cancelled anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxvid import stages
from jaxvid.data.text import encode_text
from jaxvid.io.weights import restore_into
from jaxvid.sampling.noise import seed_keys
from jaxvid.sampling.plan import from_level, strength_level, time_table
from jaxvid.sampling.rollout import begin
from jaxvid.sampling.skip import skipping
from jaxvid.sampling.solvers import by_name
from jaxvid.sampling.windows import random_cuts
from jaxvid.sharding import SEQUENCE
from jaxvid.types import InputError


class Engine:
    """Compiles on first use, once per stage and shape.

    Attributes:
      executables: the compiled stages, counted.
      steady: seconds that one unit of a stage takes once compiled, from the last run.
      asked: rows of the last run in which the network was called (all but those that the cache answered).
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
        mesh: Mesh | None = None,
    ):
        """``tokenize(text, length) -> int32 [length]``; ``keep``: the model's weights stay in the dtype that they have;
        ``mesh``: the devices among which the work is shared, None being one."""
        self.model, self.vae, self.process, self.text_length = model, vae, process, text_length
        self.tokenize = tokenize
        abstract = flax.core.meta.unbox(self._abstract_params())
        self.params = restore_into(abstract, params, "the model's weights", keep)
        self.variables = restore_into(self._abstract_variables(), variables, "the autoencoder's weights")
        self.executables, self.steady = stages.Executables(mesh), {}
        self._on_device: dict[str, Any] = {}
        self._variants: dict[tuple[str, str], Any] = {}
        self._edited: dict[Any, Any] = {}
        self.asked = 0

    def _abstract_params(self):
        x = jax.ShapeDtypeStruct((1, self.block, *self._least(), self.vae.z), jnp.float32)
        t = jax.ShapeDtypeStruct((1, self.block), jnp.float32)
        cond = {"tokens": jax.ShapeDtypeStruct((1, 1, self.text_length), jnp.int32)}
        if self.beside:
            cond["beside"] = jax.ShapeDtypeStruct((*x.shape[:4], self.beside), jnp.float32)
        if self.image_side:
            cond["picture"] = jax.ShapeDtypeStruct((1, self.image_side, self.image_side, 3), jnp.float32)

        def init(x, t, cond):
            return self.model.init(jax.random.key(0), x, t, cond)["params"]

        return jax.eval_shape(init, x, t, cond)

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
    def mesh(self) -> Mesh | None:
        """The devices among which the work is shared; None is one."""
        return self.executables.mesh

    @property
    def beside(self) -> int:
        """Channels that tell the network of a first image, beside the latents; with 0 such an image is given as a frame."""
        return getattr(getattr(self.model, "dit", self.model), "beside", 0)

    @property
    def image_side(self) -> int:
        """Side of the pictures that the network's image encoder looks at; 0 where it has none."""
        return getattr(getattr(self.model, "image_encoder", None), "size", 0)

    def weights(self, which: str) -> Any:
        """'params' or 'variables' where the computing is done; put there once."""
        if which not in self._on_device:
            # the autoencoder is small, and its weights bear no names: it is whole everywhere
            named = self._abstract_params() if which == "params" and self.mesh is not None else None
            self._on_device[which] = self.executables.put(getattr(self, which), named)
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

    @property
    def block(self) -> int:
        """Latent frames that the model works on together; what it is shown is whole blocks."""
        return math.lcm(*(getattr(module, "block", 1) or 1 for module in stages.modules_of(self.model)))

    @property
    def model_is_causal(self) -> bool:
        return bool(getattr(self.model, "causal", False))

    def sample(self, request, method, told, given, mask, source=None, keep=None):
        """Follows a method's segments; yields ``(rows done, rows in all, note, latents)`` around every model call.

        Args:
          method: `jaxvid.sampling.methods.method.Method`, of which all arrays have as many frames F.
          told: host arrays `text`, `text_mask` [B, S, L, ...], `span` [B, F], `null` (the same for the negative) or None.
          given: float32 [F, h, w, C], clean where ``mask`` [F].
          source: float32 [F, h, w, C], a video that is made anew from level ``request.strength`` on, or None.
          keep: bool [F, h, w], parts of ``source`` that stay as they are, or None.

        ``latents`` is None but when some are finished, when it is float32 [B, n, h, w, C], what is new. Raises
        FloatingPointError.
        """
        dtype, batch = request.dtype, request.batch
        steps, schedule = request.steps, self.process.schedule
        solver = by_name(request.solver, schedule)
        solver = solver if request.cache is None else skipping(solver, request.cache, schedule)
        times = _times(steps, request.shift)
        first = strength_level(request.strength, times[: steps + 2])
        segments = [s._replace(plan=from_level(s.plan, first)) if first > 1 else s for s in method.segments]
        way = stages.Way(request.guide, method.windows, method.scheme, keep is not None)
        settings = (dtype, request.solver, request.cache)
        rollout = self._begin(request, given.shape[1:], method)
        lead, window = np.float32(times[first]), method.window
        self._check_mesh(window)
        numbers = method.noise_numbers()
        source = np.zeros_like(given) if source is None else source
        text = jax.tree.map(jnp.asarray, {name: told[name] for name in ("text", "text_mask", "null")})
        total, done, shown, at, carry = sum(s.plan.rows for s in segments), 0, 0, 0, None
        held: list[np.ndarray] = []
        injects = method.injects if (told["last"] > 0).any() else None  # one caption is the last one anyway
        last = jnp.asarray(np.repeat(told["last"][:, None], window, 1))
        for number, (plan, start, ready) in enumerate(segments):
            here = slice(start, start + window)
            many = lambda a: np.broadcast_to(a, (batch, *a.shape))
            known, value = many(mask[here]), many(given[here])
            if carry is None:
                args = (rollout.keys, numbers[here], many(source[here]), lead, known, value)
                carry = self.call("begin", settings, stages.begin(self.process, solver), args)
            elif start > at:
                new = slice(at + window, start + window)
                function = stages.advance(self.process, solver, method.tail)
                args = (carry, rollout.keys, numbers[new], many(source[new]), lead)
                carry = self.call("advance", (settings, method.tail), function, args)
            at = start
            cond = {
                "text": text["text"],
                "text_mask": text["text_mask"],
                "span": told["span"][:, here],
                "given": known,
                **{
                    name: value[:, here] if name == "beside" else value
                    for name, value in told.get("more", {}).items()
                },
            }
            null = None if text["null"] is None else {**cond, **text["null"]}
            said = {"cond": cond, "null": null, "value": value, "numbers": numbers[here]}
            said["interval"] = np.asarray(request.interval, np.float32)
            if keep is not None:
                said |= {"keep": many(keep[here]), "source": many(source[here])}
            said = jax.tree.map(jnp.asarray, said)
            past = {"memory": rollout.memory, "keys": rollout.keys, "first_frame": np.int32(start)}
            for row in range(plan.rows):
                k, update = plan.k[row : row + 1], plan.update[row : row + 1]
                key, function = self._rows(
                    request, method, way, solver, row, _levels(times, k, update), rollout.memory
                )
                if injects is not None:
                    on = not injects[0] <= row / steps < injects[1]
                    for part in filter(None, (said["cond"], said["null"])):
                        part["early_span"] = last if on else part["span"]
                if method.cuts:
                    draw = np.random.default_rng(done)  # the same for all videos of a batch
                    said["weight"] = jnp.asarray(random_cuts(method.windows, draw).weight)
                args = (
                    self.weights("params"),
                    carry,
                    k,
                    update,
                    times,
                    past,
                    said,
                    np.float32(request.guidance),
                )
                if not self.executables.has("sample", (settings, key), args):
                    yield done, total, "compiling", None
                carry = self.call("sample", (settings, key), function, args, donate=(1,))
                if (np.asarray(carry.bad) >= 0).any():
                    raise FloatingPointError(
                        f"sampling: the latents are not finite after step {row + 1} of {plan.rows} in {dtype};"
                        f" use dtype float32, or a smaller guidance than {request.guidance:g}"
                    )
                done += 1
                yield done, total, "", None
            if rollout.memory is not None and number + 1 < len(segments):
                guided = request.guidance != 1
                function = stages.close_window(self.variant("model", dtype), self.process, guided)
                args = (self.weights("params"), rollout, carry.x, said, np.float32(request.guidance))
                rollout = self.call("commit", (settings, guided), function, args)
            # a copy: the next rows write where these latents are
            held.append(np.array(np.asarray(carry.x)[:, shown - start : ready - start]))
            shown, count = ready, sum(one.shape[1] for one in held)
            if count >= stages.CHUNK or number + 1 == len(segments):
                made = np.concatenate(held, 1)
                count = count if number + 1 == len(segments) else count // stages.CHUNK * stages.CHUNK
                held = [made[:, count:]]
                yield done, total, "", made[:, :count]
        self.asked = int(carry.state.calls) if request.cache is not None else total

    def _check_mesh(self, window: int) -> None:
        ways = 1 if self.mesh is None else self.mesh.shape[SEQUENCE]
        if window % ways:
            able = [n for n in range(1, ways) if window % n == 0]
            raise InputError(
                f"{window} latent frames do not divide among the {ways} devices of the mesh's axis 'sequence'; "
                f"use sequence={able[-1]}, or another length"
            )

    def _rows(self, request, method, way, solver, row: int, levels, memory):
        """(key, function) of a row: guided if a frame's level is inside the interval, edited in a segment's first rows."""
        low, high = request.interval
        # a memory is of both branches or of none
        guided = request.guidance != 1 and (
            memory is not None or bool(np.any((levels > low) & (levels <= high)))
        )
        edit = method.edit if method.edited is None or row < method.edited else None
        name = (request.dtype, edit)
        if name not in self._edited:
            model = self.variant("model", request.dtype)
            self._edited[name] = model if edit is None else stages.edited(model, edit)
        function = stages.sample_rows(self._edited[name], self.process, solver, guided, way)
        return (guided, way, edit), function

    def _begin(self, request, shape, method):
        """A roll-out of nothing yet; only a causal model that goes on after its first window remembers."""
        memory = None
        if method.remembers:
            model = self.variant("model", request.dtype)
            memory = model.init_memory(request.batch * (2 if request.guidance != 1 else 1), *shape[:2])
        return begin(seed_keys(request.seeds), tuple(shape), memory=memory)


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


def _levels(times, k, update):
    """The levels of the frames that a row [1, F] moves."""
    return times[np.clip(k[update], 0, len(times) - 1)]


def _times(steps: int, shift: float) -> np.ndarray:
    """The time table, padded so that other numbers of steps need no other program."""
    times = time_table(steps, shift)
    return np.pad(times, (0, -len(times) % 64))
