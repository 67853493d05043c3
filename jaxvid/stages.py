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
from jax.sharding import Mesh, NamedSharding

from jaxvid.diffusion import guidance
from jaxvid.diffusion.schedule import add_noise
from jaxvid.models.vae_spread import chunk
from jaxvid.sampling import rollout as rollout_
from jaxvid.sampling import sample, stream
from jaxvid.sampling.inpaint import inpainting
from jaxvid.sampling.noise import INITIAL, SHOWN, coherent_tail, numbered_noise
from jaxvid.sampling.solvers import SOLVERS as SOLVERS
from jaxvid.sampling.solvers import Solver
from jaxvid.sampling.windows import WindowPlan, windowed
from jaxvid.sharding import cut_rows, params_sharding, replicated, spread

CHUNK = 8  # latent frames that are decoded at a time


class Executables:
    """Compiled functions by stage and shape; with a mesh they run on all of its devices.

    On a mesh, weights lie as `put` laid them; what else goes in and out, latents and the like, is whole on every device.
    Inside, the network cuts rows over data and fsdp and frames over sequence, and its weights bring fsdp and tensor.

    Attributes:
      counts: how often each stage was compiled.
      seconds: how long that took, per stage.
    """

    def __init__(self, mesh: Mesh | None = None):
        self.mesh = mesh
        self.counts = collections.Counter()
        self.seconds = collections.Counter()
        self._made: dict[Any, Any] = {}

    def has(self, stage: str, key, args) -> bool:
        """Whether ``get`` would find it ready."""
        return (stage, key, _signature(args)) in self._made

    def put(self, tree, abstract=None):
        """Weights where the computing is done: cut as their logical names say (``abstract``, in boxes), else whole."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        where = replicated(self.mesh) if abstract is None else params_sharding(self.mesh, abstract)
        return jax.device_put(tree, where)

    def get(self, stage: str, key, function: Callable, args, donate: tuple[int, ...] = ()):
        """The executable of ``function(*args)``; ``key`` tells apart functions that close over different settings."""
        name = (stage, key, _signature(args))
        if name not in self._made:
            start = time.perf_counter()
            self._made[name] = self._compile(function, args, donate)
            self.counts[stage] += 1
            self.seconds[stage] += time.perf_counter() - start
        return self._made[name]

    def _compile(self, function, args, donate):
        if self.mesh is None:
            return jax.jit(function, donate_argnums=donate).lower(*args).compile()
        places = self._places(args)
        out = {"in_shardings": places, "out_shardings": replicated(self.mesh)}
        with spread(self.mesh):
            made = jax.jit(function, donate_argnums=donate, **out).lower(*args).compile()
        return lambda *args: made(*jax.device_put(args, places))

    def _places(self, args):
        """Where arguments lie: on the mesh as they are, or whole on every device."""
        whole = replicated(self.mesh)

        def place(leaf):
            found = getattr(leaf, "sharding", None)
            return found if isinstance(found, NamedSharding) and found.mesh == self.mesh else whole

        return jax.tree.map(place, args)


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
        return chunk(vae, variables, x, memory, first, "to_latents_chunk")

    return run


def decode_latents(vae, first: bool) -> Callable:
    """``(variables, latents, memory) -> (uint8 [B, T, H, W, 3], memory, finite)``: one chunk of a video."""

    def run(variables, latents, memory):
        x, memory = chunk(vae, variables, latents, memory, first, "from_latents_chunk")
        # Rounded, not cut off, and never from a NaN: `finite` is looked at before the frames are.
        return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8), memory, jnp.isfinite(x).all()

    return run


GUIDES = {"cfg": guidance.classifier_free, "apg": guidance.apg, "zero": guidance.cfg_zero_star}


@dataclasses.dataclass(frozen=True)
class Way:
    """How the network is asked: what of a method and a request is built into the compiled rows.

    guide: of `GUIDES`; windows: blended inside the window; scheme: how given frames are shown; keep: whether parts of
    frames are given.
    """

    guide: str = "cfg"
    windows: WindowPlan | None = None
    scheme: guidance.Scheme = ()
    keep: bool = False


def begin(process, solver: Solver) -> Callable:
    """``(keys, numbers[W], source[B, W, ...], level, given[B, W], value[B, W, ...]) -> carry``: a video's first window."""

    def run(keys, numbers, source, level, given, value):
        return sample.init(solver, _start(process, keys, numbers, source, level), given, value)

    return run


def advance(process, solver: Solver, coherent: bool) -> Callable:
    """``(carry, keys, numbers[n], source[B, n, ...], level) -> carry``: the window n frames further on."""

    def run(carry, keys, numbers, source, level):
        new = _start(process, keys, numbers, source, level)
        if coherent:
            new = jnp.concatenate([coherent_tail(carry.x[:, -1:], new[:, :1]), new[:, 1:]], 1)
        return stream.advance(solver, carry, new)

    return run


def _start(process, keys, numbers, source, level):
    noise = numbered_noise(keys, numbers, source.shape[2:], common=process.common)
    return add_noise(process.schedule, source, noise, jnp.broadcast_to(level, source.shape[:2]))


def sample_rows(model, process, solver: Solver, guided: bool, way: Way = Way()) -> Callable:
    """``(params, carry, k[n, F], update[n, F], times, past, told, scale) -> carry``: some rows of a plan.

    ``past``: what `sample.rows` takes as `memory`, `keys` and `first_frame`; ``told``: `cond` (text, text_mask, span,
    given), `null` (or None), `value` (clean latents where given), `numbers` (whose noise frames start from), `interval`
    (levels at which there is guidance), and where the way asks for it `weight` (of windows) or `keep` and `source`.
    """

    def run(params, carry, k, update, times, past, told, scale):
        extra = {name: told[name] for name in ("interval", "weight") if name in told}
        shape, common = carry.x.shape[2:], process.common
        noise_of = lambda purpose=INITIAL: numbered_noise(
            past["keys"], told["numbers"], shape, purpose, common
        )
        if way.scheme:
            extra["shown"] = noise_of(SHOWN)
        denoise = _denoiser(model, process, params, told["cond"], told["null"], scale, guided, way, extra)
        stepper = solver
        if way.keep:
            stepper = inpainting(solver, told["keep"], told["source"], noise_of(), process.schedule)
        given, value = told["cond"]["given"], told["value"]
        held = {"given": given, "value": value}
        return sample.rows(denoise, stepper, times, carry, k, update, common=common, **held, **past)

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


def _denoiser(model, process, params, cond, null, scale, guided, way: Way = Way(), extra: Any = None):
    extra = {} if extra is None else extra

    def network(x, t, cond, memory):
        return model.apply({"params": params}, cut_rows(x), t, cond, memory)

    if way.windows is not None:
        network = windowed(network, way.windows, extra.get("weight"))
    if way.scheme:
        network = guidance.history(network, way.scheme, extra["shown"], process.schedule)
    asked = marked(network)
    if not guided:
        return process.denoiser(asked, cond)
    interval = tuple(extra["interval"]) if "interval" in extra else (0.0, 1.0)
    options = {} if way.guide == "cfg" else {"schedule": process.schedule}
    return GUIDES[way.guide](guidance.doubled(process, asked, cond, null), scale, interval, **options)


def marked(network: Callable) -> Callable:
    """A network that is told that finished frames, those at t = 0, are clean context like given ones."""

    def call(x, t, cond, memory=None):
        return network(x, t, {**cond, "given": cond["given"] | (t == 0)}, memory)

    return call


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


def modules_of(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all modules that it holds in its fields."""
    yield module
    for value in vars(module).values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, nn.Module) and one is not module.parent:
                yield from modules_of(one)


def edited(module: nn.Module, edit: Callable | None) -> nn.Module:
    """A module like this one whose temporal attention is edited (`jaxvid.sampling.edits`); it takes the same parameters."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if field.name == "edit":
            changes["edit"] = edit
        elif field.name != "parent" and isinstance(value, nn.Module):
            changes[field.name] = edited(value, edit)
        elif isinstance(value, (tuple, list)) and any(isinstance(one, nn.Module) for one in value):
            changes[field.name] = tuple(edited(one, edit) for one in value)
    return module.clone(**changes)


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
