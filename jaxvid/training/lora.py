# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: a small change ``scale * down @ up`` to chosen kernels, learned while the weights themselves stay.

Adapters are a flat dict ``{path of a kernel: {'down' [.., in, r], 'up' [.., r, out]}}``; kernels with a leading axis of
layers have adapters with one. What is merged is an ordinary tree of parameters, so no network knows of adapters.

Ref: Hu et al., LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.io.interop import closest
from jaxvid.io.lazy import from_array, open_safetensors, write_arrays
from jaxvid.io.wan_keys import Leaf, plain, rename
from jaxvid.io.weights import flatten, load_metadata, unflatten
from jaxvid.types import Array, InputError

Adapters = Mapping[str, Mapping[str, Array]]
ATTENTION = (r"(self|cross)/(q|k|v|out)/kernel",)  # of Wan's transformer: what is adapted by custom
_STYLES = {  # names in files: in front of a key, behind it for down and up
    "diffusers": ("transformer.", "lora_A.weight", "lora_B.weight"),
    "original": ("diffusion_model.", "lora_down.weight", "lora_up.weight"),
}
_PARTS = re.compile(r"(.+)\.(?:lora_(A|B|down|up)(?:\.default)?\.weight|(alpha))")


def kernels(params: Any, patterns: Sequence[str] = ATTENTION) -> dict[str, Array]:
    """The kernels of Dense layers, [in, out] or [layers, in, out], whose path holds one of the regular expressions.

    Raises InputError when a pattern finds none.
    """
    able = {
        name: leaf
        for name, leaf in flatten(params).items()
        if name.endswith("kernel") and leaf.ndim in (2, 3)
    }
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in able):
            some = ", ".join(sorted(able)[:4])
            raise InputError(f"no kernel's path holds {pattern!r}; there are {some}, ...")
    return {
        name: leaf for name, leaf in able.items() if any(re.search(pattern, name) for pattern in patterns)
    }


def init(
    key: Array, params: Any, patterns: Sequence[str] = ATTENTION, rank: int = 16
) -> dict[str, dict[str, Array]]:
    """Adapters in float32 that change nothing yet: ``down`` random, ``up`` zero. Raises InputError."""
    chosen = kernels(params, patterns)
    least = min(min(leaf.shape[-2:]) for leaf in chosen.values())
    if not 1 <= rank <= least:
        raise InputError(
            f"rank={rank} is not in 1..{least}, the smallest side of the kernels that were chosen"
        )
    made = {}
    for draw, (name, leaf) in zip(jax.random.split(key, len(chosen)), sorted(chosen.items()), strict=True):
        *layers, rows, columns = leaf.shape
        down = jax.random.normal(draw, (*layers, rows, rank), jnp.float32) * rows**-0.5
        made[name] = {"down": down, "up": jnp.zeros((*layers, rank, columns), jnp.float32)}
    return made


def merge(params: Any, adapters: Adapters, scale: float | Array = 1.0) -> Any:
    """``params`` with ``scale * down @ up`` added to the kernels, computed in float32, in the kernels' dtype.

    With ``-scale`` it is the inverse, up to a rounding of the dtype.
    """
    flat = flatten(params)
    for name, pair in adapters.items():
        if name not in flat:
            raise InputError(
                f"the adapters change {name}, which these weights do not have{closest(name, flat)}"
            )
        kernel = jnp.asarray(flat[name])
        change = jnp.matmul(pair["down"].astype(jnp.float32), pair["up"].astype(jnp.float32))
        if change.shape != kernel.shape:
            raise InputError(f"the adapters change {name} by {change.shape}; it is {kernel.shape}")
        flat[name] = (kernel.astype(jnp.float32) + scale * change).astype(kernel.dtype)
    return unflatten(flat)


def unmerge(params: Any, adapters: Adapters, scale: float | Array = 1.0) -> Any:
    """The inverse of `merge`, up to a rounding of the kernels' dtype."""
    return merge(params, adapters, -scale)


def save(
    path,
    adapters: Adapters,
    leaves: Iterable[Leaf],
    style: str = "diffusers",
    *,
    scale: float = 1.0,
    prefix: str = "",
) -> None:
    """A safetensors file in the key style of diffusers or of the authors, one pair per layer.

    leaves: the table of the network (`wan_keys.dit_leaves`). scale: that of `merge`, written as ``alpha / rank``. prefix:
    where the network's parameters lie in the adapters' paths, such as ``dit/``. Raises InputError.
    """
    known = {prefix + leaf.name: leaf for leaf in leaves if leaf.lies == "linear"}
    before, down, up = _style(style)
    arrays: dict[str, np.ndarray] = {}
    for name, pair in adapters.items():
        if name not in known:
            raise InputError(f"{name} has no name in files{closest(name, known)}")
        leaf, a, b = known[name], np.asarray(pair["down"]), np.asarray(pair["up"])
        a, b = (a, b) if leaf.layered else (a[None], b[None])
        for layer in range(len(a)):
            key = before + _key(leaf, layer, style)
            arrays[f"{key}.{down}"], arrays[f"{key}.{up}"] = a[layer].T, b[layer].T
            if style == "original":
                arrays[f"{key}.alpha"] = np.float32(scale * a.shape[-1])
    told = {"format": "pt", "lora_scale": repr(float(scale))}
    write_arrays(path, {key: from_array(arrays[key]) for key in sorted(arrays)}, told)


def load(
    path, leaves: Iterable[Leaf], shapes: Mapping[str, Sequence[int]], prefix: str = ""
) -> dict[str, dict[str, Array]]:
    """Adapters from a file in either style, for kernels of ``shapes`` (without ``prefix``), with scale 1: ``alpha / rank``
    is multiplied into ``up``. Layers that the file leaves out are not changed.

    Every key of the file must find its place. Raises InputError with those that did not.
    """
    known: dict[str, tuple[Leaf, int]] = {}
    for leaf in leaves:
        if leaf.lies == "linear":
            for layer in range(shapes[leaf.name][0] if leaf.layered else 1):
                known[_key(leaf, layer, "diffusers")] = leaf, layer
    found: dict[str, dict[str, np.ndarray]] = {}
    lost = []
    for key, array in open_safetensors(path).items():
        match = _PARTS.fullmatch(key)
        base = None if match is None else _base(match[1])
        if base not in known:
            lost.append(key)
            continue
        what = "alpha" if match[3] else {"A": "down", "B": "up"}.get(match[2], match[2])
        found.setdefault(base, {})[what] = array.read()
    halves = [base for base, pair in found.items() if not {"down", "up"} <= set(pair)]
    if lost or halves:
        names = [key + closest(_base(key.split(".lora_")[0]), known) for key in lost] + halves
        raise InputError(
            f"{path}: {len(names)} keys find no place, {'; '.join(names[:4])}; is it for another network?"
        )
    if not found:
        raise InputError(f"{path} holds no adapters")
    return _stacked(path, found, known, shapes, prefix, _told_scale(path))


def _stacked(path, found, known, shapes, prefix, told):
    made: dict[str, dict[str, np.ndarray]] = {}
    ranks: dict[str, int] = {}
    for base, pair in found.items():
        name = known[base][0].name
        ranks[name] = max(ranks.get(name, 0), len(pair["down"]))
    for base, pair in found.items():
        leaf, layer = known[base]
        rank, (*_, rows, columns) = ranks[leaf.name], shapes[leaf.name]
        down, up = pair["down"].astype(np.float32).T, pair["up"].astype(np.float32).T
        if down.shape[0] != rows or up.shape[1] != columns or down.shape[1] != up.shape[0]:
            raise InputError(
                f"{path}: {base} is for a kernel of {down.shape[0]} x {up.shape[1]}; it is {rows} x {columns}"
            )
        scale = float(pair["alpha"]) / down.shape[1] if "alpha" in pair else told
        outer = (shapes[leaf.name][0],) if leaf.layered else ()
        empty = {
            "down": np.zeros((*outer, rows, rank), np.float32),
            "up": np.zeros((*outer, rank, columns), np.float32),
        }
        room = made.setdefault(prefix + leaf.name, empty)
        at = (layer,) if leaf.layered else ()
        room["down"][(*at, slice(None), slice(down.shape[1]))] = down
        room["up"][(*at, slice(down.shape[1]))] = scale * up
    return made


def _told_scale(path) -> float:
    try:
        return float(load_metadata(path).get("lora_scale", 1.0))
    except ValueError:
        raise InputError(f"{path}: its lora_scale is not a number") from None


def _style(style: str) -> tuple[str, str, str]:
    if style not in _STYLES:
        raise InputError(f"style {style!r} is unknown; choose one of {', '.join(_STYLES)}")
    return _STYLES[style]


def _key(leaf: Leaf, layer: int, style: str) -> str:
    key = leaf.key.format(layer)
    return (rename("dit", key, "original") if style == "original" else key).removesuffix(".weight")


def _base(key: str) -> str:
    key = plain(key.removeprefix("transformer.").removeprefix("base_model.model."))
    return rename("dit", f"{key}.weight", "diffusers").removesuffix(".weight")


@dataclasses.dataclass(frozen=True)
class LoraTask:
    """Another task's network learns through adapters alone: they are ``params``, its weights the collection ``base``.

    task: such as `DiffusionTask`. start: ``params -> params``, which brings trained weights in place of fresh ones.
    """

    task: Any
    patterns: tuple[str, ...] = ATTENTION
    rank: int = 16
    scale: float = 1.0
    start: Callable[..., Any] | None = None

    @property
    def model(self) -> Any:
        return self.task.model

    @property
    def process(self) -> Any:
        return self.task.process

    def init(self, key: Array, batch) -> dict[str, Any]:
        weights, adapters = jax.random.split(key)
        variables = dict(self.task.init(weights, batch))
        params = variables.pop("params")
        params = params if self.start is None else self.start(params)
        made = init(adapters, params, self.patterns, self.rank)
        return {**variables, "params": unflatten_pairs(made), "base": unflatten(flatten(params))}

    def loss(self, variables: Mapping[str, Any], batch, key: Array) -> tuple[Array, dict[str, Array]]:
        rest = {name: value for name, value in variables.items() if name not in ("params", "base")}
        merged = merge(variables["base"], flat_pairs(variables["params"]), self.scale)
        return self.task.loss({**rest, "params": merged}, batch, key)


def unflatten_pairs(adapters: Adapters) -> dict[str, Any]:
    """Adapters as a nested tree, such as a checkpoint holds."""
    return unflatten(
        {f"{name}/{half}": leaf for name, pair in adapters.items() for half, leaf in pair.items()}
    )


def flat_pairs(tree: Any) -> dict[str, dict[str, Array]]:
    """The inverse of `unflatten_pairs`."""
    pairs: dict[str, dict[str, Array]] = {}
    for path, leaf in flatten(tree).items():
        name, half = path.rsplit("/", 1)
        pairs.setdefault(name, {})[half] = leaf
    return pairs
