# SPDX-License-Identifier: Apache-2.0
"""The programs of a config as shapes: the training step, a step of the sampler, and the decoding of a chunk.

Nothing is read but the config: batches have the shapes that their buckets say, weights are shapes.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid import stages
from jaxvid.cli.codec import SHIPPED, load_codec
from jaxvid.config import SAFE, build, parameter
from jaxvid.data.collate import latent_frames
from jaxvid.io.bundle import is_bundle, load_spec
from jaxvid.run import windows_of
from jaxvid.sampling.methods.method import Method, Setting
from jaxvid.sampling.methods.table import METHODS, check_method, make
from jaxvid.sampling.noise import seed_keys
from jaxvid.sampling.plan import time_table
from jaxvid.sampling.rollout import begin
from jaxvid.sampling.solvers import by_name
from jaxvid.sharding import batch_sharding, replicated
from jaxvid.training.step import make_train_step, state_sharding
from jaxvid.traits import traits_of
from jaxvid.types import InputError, Video

Shape = jax.ShapeDtypeStruct
STEPS = 20  # of the sampler, where a config does not say


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to compile: ``run`` is jitted, ``args`` are shapes, ``held`` the bytes a device keeps by kind, ``note``
    what else there is to say."""

    name: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    tokens: float
    held: dict[str, int]
    activations: int = 0
    note: str = ""


def codec_model(config: Any, name: str) -> Any:
    """The autoencoder of a stage: an earlier stage's model, the shipped one, or that of a directory."""
    where = config.stages[name].get("codec")
    if not where:
        return None
    if where in config.stages:
        return build(config.stages[where].task.model)
    if config.stages[name].get("blank") and not os.path.exists(where):
        return build(config.stages[name].blank.codec)
    if is_bundle(where):
        return build(load_spec(where)["vae"], SAFE)
    return build(load_spec(SHIPPED)["vae"], SAFE) if where == "shipped" else load_codec(where, ".", ()).model


def largest_bucket(node: Any) -> Any:
    """The bucket with most pixels in a batch."""
    return max(build(node.data.buckets), key=lambda b: b.batch * b.frames * b.height * b.width)


def batch_shapes(node: Any, codec: Any, bucket: Any) -> Any:
    """``(Video, Cond)`` of a batch as it comes from `jaxvid.data.collate`."""

    def option(key):
        return node.data[key] if key in node.data else parameter(node.data, key)

    frames, height, width, channels = bucket.frames, bucket.height, bucket.width, 3
    if codec is not None:
        _, height, width, channels = codec.latent_shape(bucket.frames, bucket.height, bucket.width)
        frames = latent_frames(bucket.frames, codec.time_factor)
    frames = -(-frames // option("frames_multiple")) * option("frames_multiple")
    rows = (bucket.batch, frames)
    video = Video(
        x=Shape((*rows, height, width, channels), jnp.float32),
        sec=Shape(rows, jnp.float32),
        ok=Shape(rows, jnp.bool_),
    )
    spans = (bucket.batch, min(option("spans")), option("text_length"))
    said: dict[str, Any] = {"tokens": Shape(spans, jnp.int32)}
    if node.get("text"):
        width = build(model_node(node)).text_width
        said = {"text": Shape((*spans, width), jnp.float32), "text_mask": Shape(spans, jnp.bool_)}
    return video, {**said, "span": Shape(rows, jnp.int32)}


def model_node(node: Any) -> Any:
    """The call of a stage's model, which may be within a task around a task."""
    task = node.task
    while "model" not in task:
        task = task.task
    return task.model


class Stage:
    """A stage of a config on a mesh, as shapes."""

    def __init__(self, config: Any, name: str, mesh: Any):
        self.node, self.mesh = config.stages[name], mesh
        self.codec = codec_model(config, name)
        self.task, self.optimizer, self.settings = (
            build(self.node[key]) for key in ("task", "optimizer", "train")
        )
        self.bucket = largest_bucket(self.node)
        batch_sharding(mesh, self.bucket.batch)
        self.batch = batch_shapes(self.node, self.codec, self.bucket)
        self.shapes, self.places = state_sharding(mesh, self.task, self.optimizer, self.batch)

    @property
    def parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(self.shapes.params))

    @property
    def backbone(self) -> Any:
        """The video transformer inside the model, or None."""
        model = self.task.model
        model = getattr(model, "dit", model)
        return model if hasattr(model, "mixers") else None

    def programs(self) -> Iterator[Program]:
        """Everything that a run and its videos compile, the training step first."""
        yield self.train()
        if self.codec is not None and hasattr(self.task, "process"):
            yield self.sample()
            yield self.decode()

    def train(self) -> Program:
        """The step of `jaxvid.training.step` on the largest bucket."""
        options = dict(ema=self.settings.ema, accumulate=self.settings.accumulate)
        run = make_train_step(self.task, self.optimizer, self.mesh, self.places, **options)
        return Program(
            "train",
            run,
            (self.shapes, self.batch),
            self.tokens,
            self.held(),
            self.kept() // self.ways,
        )

    def held(self) -> dict[str, int]:
        """Bytes that a device keeps between steps."""
        state = {
            kind: held_bytes(getattr(self.shapes, kind), getattr(self.places, kind))
            for kind in ("params", "ema", "opt_state", "rest")
        }
        batch = jax.tree.map(lambda _: batch_sharding(self.mesh), self.batch)
        return {
            "parameters": state["params"],
            "average": state["ema"],
            "optimiser": state["opt_state"],
            "batch and rest": held_bytes(self.batch, batch) + state["rest"],
        }

    @property
    def ways(self) -> int:
        """Among how many devices activations are cut: by the batch, and by frames where the model is a backbone."""
        axes = ("data", "fsdp", "sequence") if self.backbone is not None else ("data", "fsdp")
        return math.prod(self.mesh.shape[a] for a in axes)

    @property
    def tokens(self) -> float:
        """Of a batch."""
        return self._tokens(self.batch[0].x.shape)

    def kept(self) -> int:
        """Bytes that the backward pass needs of the forward pass, on all devices together."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        parts = self.settings.accumulate
        rows = jax.tree.map(lambda s: Shape((s.shape[0] // parts, *s.shape[1:]), s.dtype), self.batch)

        def residuals(params, rest, batch, key):
            return jax.vjp(lambda p: self.task.loss({"params": p, **rest}, batch, key)[0], params)[1]

        found = jax.eval_shape(residuals, self.shapes.params, self.shapes.rest, rows, key)
        weights = sum(nbytes(s) for s in jax.tree.leaves(self.shapes.params))
        return max(0, sum(nbytes(s) for s in jax.tree.leaves(found)) - weights)

    def sample(self) -> Program:
        """One call of the sampler for one video of the length that the stage serves, guidance included: the window that
        its method shows the model, and what the model remembers of those before."""
        serve = dict(self.node.get("serve") or {})
        model, process = self.task.model, self.task.process
        name, method, wanted = self._method(serve)
        frames = method.window
        _, height, width, channels = self.codec.latent_shape(1, self.bucket.height, self.bucket.width)
        shape, rows = (1, frames, height, width, channels), (1, frames)
        guided = serve.get("guidance", 1.0) != 1
        solver = by_name(METHODS[name].solver or serve.get("solver", "euler"), process.schedule)
        memory = None
        if method.remembers:
            memory = jax.eval_shape(lambda: model.init_memory(2 if guided else 1, height, width))
        rollout = jax.eval_shape(lambda: begin(seed_keys((0,)), shape[2:]))
        given, value = Shape(rows, jnp.bool_), Shape(shape, jnp.float32)
        source, level, numbers = value, Shape((), jnp.float32), Shape((frames,), jnp.int32)
        carry = jax.eval_shape(
            stages.begin(process, solver), rollout.keys, numbers, source, level, given, value
        )
        text = self._text()
        cond = {**text, "span": Shape(rows, jnp.int32), "given": given}
        told = {"cond": cond, "null": cond if guided else None, "value": value, "numbers": numbers}
        told["interval"] = Shape((2,), jnp.float32)
        if method.cuts:
            told["weight"] = Shape(method.windows.weight.shape, jnp.float32)
        past = {"memory": memory, "keys": rollout.keys, "first_frame": Shape((), jnp.int32)}
        times = np.asarray(time_table(serve.get("steps", STEPS), serve.get("shift", 1.0)))
        params, places = (  # adapters are merged into what they are for
            tree.params if "base" not in self.shapes.rest else tree.rest["base"]
            for tree in (self.shapes, self.places)
        )
        args = (
            params,
            carry,
            Shape((1, frames), jnp.int32),
            Shape((1, frames), jnp.bool_),
            Shape((-(-len(times) // 64) * 64,), times.dtype),
            past,
            told,
            Shape((), jnp.float32),
        )
        everywhere = replicated(self.mesh)
        run = jax.jit(
            stages.sample_rows(
                model if method.edit is None else stages.edited(model, method.edit),
                process,
                solver,
                guided,
                stages.Way(windows=method.windows, scheme=method.scheme),
            ),
            in_shardings=(places, *[everywhere] * 7),
            out_shardings=everywhere,
        )
        held = {"parameters": held_bytes(params, places)}
        if memory is not None:
            held["memory"] = sum(nbytes(leaf) for leaf in jax.tree.leaves(memory))
        said = f"method {name}: {wanted} latent frames in windows of {frames}, {method.calls} calls"
        return Program("sample", run, args, self._tokens(shape), held, note=said)

    def _method(self, serve: dict[str, Any]) -> tuple[str, Method, int]:
        """(name, values, latent frames wanted) of what the pipeline follows where nothing else is asked for."""
        seconds, name = serve.get("seconds"), serve.get("method", "oneshot")
        check_method(name, {}, traits_of(self.task.model, {"student": True}))
        pixels = self.bucket.frames if seconds is None else round(seconds * float(self.node.data.fps))
        count = latent_frames(pixels, self.codec.time_factor)
        whole = -(-count // stages.CHUNK) * stages.CHUNK
        causal = bool(getattr(self.task.model, "causal", False))
        setting = Setting(whole, serve.get("steps", STEPS), *windows_of(serve), causal)
        return name, make(name, setting), whole

    def decode(self) -> Program:
        """A chunk of latents in the middle of a video to pixels, the same on every device."""
        _, height, width, channels = self.codec.latent_shape(1, self.bucket.height, self.bucket.width)
        side = self.codec.space_factor
        x = Shape((1, 1, side, side, 3), jnp.float32)
        variables = jax.eval_shape(lambda x: dict(self.codec.init(jax.random.key(0), x)), x)
        latents = Shape((1, stages.CHUNK, height, width, channels), jnp.float32)
        memory = jax.eval_shape(stages.decode_latents(self.codec, True), variables, latents, None)[1]
        everywhere = replicated(self.mesh)
        run = jax.jit(
            stages.decode_latents(self.codec, False), in_shardings=everywhere, out_shardings=everywhere
        )
        held = {"parameters": sum(nbytes(s) for s in jax.tree.leaves(variables))}
        return Program("decode", run, (variables, latents, memory), math.prod(latents.shape[:4]), held)

    def _text(self) -> dict[str, Any]:
        model, params = self.task.model, self.shapes.params
        if "text" in self.batch[1]:
            return {
                k: Shape((1, *self.batch[1][k].shape[1:]), self.batch[1][k].dtype)
                for k in ("text", "text_mask")
            }
        tokens = Shape((1, *self.batch[1]["tokens"].shape[1:]), jnp.int32)
        if hasattr(model, "encode_text"):
            return jax.eval_shape(stages.encode_text(model), params, tokens)
        spans = tokens.shape[:2]
        text = Shape((*spans, 1, self.backbone.text_width), jnp.float32)
        return {"text": text, "text_mask": Shape((*spans, 1), jnp.bool_)}

    def _tokens(self, shape: tuple[int, ...]) -> float:
        model = self.task.model
        patch = getattr(getattr(model, "dit", model), "patch", 1)
        return math.prod(shape[:4]) / (math.prod(patch) if isinstance(patch, tuple) else 1)


def nbytes(shape: Any) -> int:
    """Of one array."""
    item = 4 if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key) else shape.dtype.itemsize
    return math.prod(shape.shape) * item


def held_bytes(shapes: Any, places: Any) -> int:
    """Bytes of a tree on one device."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True)
    return sum(nbytes(Shape(place.shard_shape(s.shape), s.dtype)) for s, place in leaves)


def remat_node(config: Any, name: str) -> tuple[str, Any] | None:
    """(path, node) of the call in a stage's model that may recompute its layers, if there is one."""

    def search(node: Any, path: str):
        if not hasattr(node, "keys"):
            return None
        if "kind" in node and hasattr(build(node), "remat"):
            return path, node
        return next((hit for k in node if (hit := search(node[k], f"{path}.{k}"))), None)

    node, path = config.stages[name].task, f"stages.{name}.task"
    while "model" not in node:
        node, path = node.task, f"{path}.task"
    return search(node.model, f"{path}.model")


def choose_stage(config: Any, wanted: str | None) -> str:
    """The stage that is planned: the one asked for, or the last."""
    order = list(config.order)
    if wanted and wanted not in order:
        raise InputError(f"no stage {wanted!r}; the config has {', '.join(order)}")
    return wanted or order[-1]
