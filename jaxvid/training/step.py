# SPDX-License-Identifier: Apache-2.0
"""One step of training as a pure function of the state and a batch.

The state is a value: a step and a key decide everything that is random, so a run that was stopped and restored goes on
bit for bit. The key is folded with the step and never split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxvid.sharding import batch_sharding, params_sharding, replicated, spread
from jaxvid.types import Array, InputError, Params


@flax.struct.dataclass
class TrainState:
    """All that training needs to go on, besides the place in the data."""

    step: Any  # int32 [], steps tried
    params: Any  # float32
    ema: Any  # float32, the moving average of params
    rest: Any  # collections beside params that are not trained (latent statistics)
    opt_state: Any
    key: Any  # uint32, raw bits of a key: plain numbers survive every checkpoint format
    skipped: Any  # int32 [], steps whose loss or gradient was not finite


def init_state(task: Any, optimizer: Any, key: Array, batch: Any) -> TrainState:
    """The state before step 0. Pure, so that it can be jitted with shardings or only evaluated for shapes."""
    init, run = jax.random.split(key)
    variables = nn.unbox(dict(task.init(init, batch)))
    params = variables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        rest=variables,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(run),
        skipped=jnp.zeros((), jnp.int32),
    )


def state_sharding(mesh: Mesh, task: Any, optimizer: Any, batch: Any) -> tuple[TrainState, TrainState]:
    """(shapes, shardings) of the state for batches like this one; nothing is computed.

    Optimizer moments lie where their parameters lie; everything else is copied.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda k, b: dict(task.init(k, b))["params"], key, batch)
    places = params_sharding(mesh, boxed)
    shapes = jax.eval_shape(lambda k, b: init_state(task, optimizer, k, b), key, batch)
    everywhere = replicated(mesh)
    hole = lambda leaf: isinstance(leaf, optax.MaskedNode)  # where an optimizer of parts has nothing
    moments = optax.tree_map_params(
        optimizer,
        lambda moment, place: moment if hole(moment) else place,
        shapes.opt_state,
        places,
        transform_non_params=lambda _: everywhere,
        is_leaf=hole,
    )
    return shapes, TrainState(
        step=everywhere,
        params=places,
        ema=places,
        rest=jax.tree.map(lambda _: everywhere, shapes.rest),
        opt_state=moments,
        key=everywhere,
        skipped=everywhere,
    )


def make_init(
    task: Any, optimizer: Any, mesh: Mesh, shardings: TrainState
) -> Callable[[Array, Any], TrainState]:
    """Jitted `init_state`, made where it shall lie."""
    return jax.jit(
        lambda key, batch: init_state(task, optimizer, key, batch),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=shardings,
    )


def make_train_step(
    task: Any, optimizer: Any, mesh: Mesh, shardings: TrainState, *, ema: float = 0.999, accumulate: int = 1
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]:
    """``step(state, batch) -> (state, metrics)``, jitted with its shardings stated and the state donated.

    ema: decay of the average, reached by a warm-up ``min(ema, (1 + n) / (10 + n))``.
    accumulate: the batch is taken in so many parts, one after the other, and their gradients are averaged.
    A step whose loss or gradient is not finite leaves parameters, average and optimizer as they were, bit for bit, and
    is counted in ``skipped``.
    """
    if not 0 <= ema < 1:
        raise InputError(f"ema={ema} is not a decay; give a number from 0 up to, not including, 1")
    if accumulate < 1:
        raise InputError(f"accumulate={accumulate} parts are none; give 1 or more")

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def loss(params: Params, part: Any, key: Array) -> tuple[Array, dict[str, Array]]:
            return task.loss({"params": params, **state.rest}, part, key)

        with spread(mesh):
            grads, metrics = _gradient(loss, state.params, batch, key, accumulate)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        ok = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        good = (state.step - state.skipped).astype(jnp.float32)
        decay = jnp.minimum(ema, (1 + good) / (10 + good))
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.ema, params)
        # A choice, never a product: zero times NaN is NaN.
        params, average, opt_state = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (params, average, opt_state),
            (state.params, state.ema, state.opt_state),
        )
        skipped = state.skipped + (~ok).astype(jnp.int32)
        metrics = {**metrics, "grad_norm": norm, "skipped": skipped}
        if hasattr(optimizer, "rate"):
            metrics["rate"] = jnp.asarray(optimizer.rate(state.step - state.skipped), jnp.float32)
        state = dataclasses.replace(
            state, step=state.step + 1, params=params, ema=average, opt_state=opt_state, skipped=skipped
        )
        return state, metrics

    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(
    task: Any, mesh: Mesh, shardings: TrainState
) -> Callable[[Params, Any, Any, Array], dict[str, Array]]:
    """``evaluate(params, rest, batch, key) -> metrics``: the loss without learning."""

    def evaluate(params: Params, rest: Any, batch: Any, key: Array) -> dict[str, Array]:
        with spread(mesh):
            return _with_loss(*task.loss({"params": params, **rest}, batch, key))

    return jax.jit(
        evaluate,
        in_shardings=(shardings.params, shardings.rest, batch_sharding(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )


def _with_loss(loss: Array, metrics: dict[str, Array]) -> dict[str, Array]:
    return {**metrics, "loss": loss}


def _gradient(
    loss: Callable[..., Any], params: Params, batch: Any, key: Array, accumulate: int
) -> tuple[Params, dict[str, Array]]:
    """Gradient and metrics of a batch, averaged over its parts."""
    grad = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (value, metrics), grads = grad(params, batch, key)
        return grads, _with_loss(value, metrics)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % accumulate:
        raise InputError(
            f"a batch of {size} does not divide into accumulate={accumulate} parts; use a multiple"
        )

    # Part i takes rows i, i + accumulate, ...: every device keeps working on its own rows.
    parts = jax.tree.map(
        lambda x: x.reshape(size // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total: Any, part: Any) -> tuple[Any, None]:
        i, rows = part
        (value, metrics), grads = grad(params, rows, jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, total, (grads, _with_loss(value, metrics))), None

    first = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (first[1], _with_loss(*first[0])))
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))
    return jax.tree.map(lambda x: x / accumulate, total)
