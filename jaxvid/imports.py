# SPDX-License-Identifier: Apache-2.0
"""A download of open weights to a directory of ours: a whole bundle, or the networks that are there.

Arrays are read, turned and written one by one. A bundle is what `jaxvid.io.bundle` says, with the tokenizer in a folder and,
under ``imported``, what an export needs; a directory of single networks has a parts.json and a file per network.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.config import SAFE, build, to_json
from jaxvid.data.tokens import load_tokenizer
from jaxvid.io.bundle import CARD, FORMAT, MODEL, SPEC, VAE, VERSION, is_bundle, load_spec, read_json
from jaxvid.io.interop import check, compare, convert
from jaxvid.io.lazy import Stored, from_array, open_safetensors, total_bytes, write_arrays
from jaxvid.io.wan_keys import DIT_UNUSED, Leaf, clip_leaves, dit_leaves, umt5_leaves, vae_leaves
from jaxvid.io.wan_repo import Part, Repo, describe, description, imported, latent_stats, licence_of
from jaxvid.io.weights import flatten, unflatten
from jaxvid.types import InputError

PARTS = "parts.json"
PLACES = {
    "dit": (MODEL, "dit/"),
    "umt5": (MODEL, "text_encoder/"),
    "clip": (MODEL, "image_encoder/"),
    "vae": (VAE, "params/"),
}


def import_repo(repo: Repo, target, sizes=None, partial: bool = False) -> Iterator[str]:
    """Makes the directory ``target``, saying line by line what was matched. Nothing is left when it fails.

    ``sizes`` [[height, width], ...] are served instead of the family's; ``partial`` lets keys be missing (they become zeros)
    or unused. Raises InputError.
    """
    target = pathlib.Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists; choose an empty or new directory")
    whole = {"dit", "vae", "umt5"} <= set(repo.parts)
    spec = description(repo, sizes) if whole else None
    if spec is not None:
        _check_sizes(spec)
    if spec is not None and _narrow(repo):
        spec["defaults"]["dtype"] = "bfloat16"
    if spec is not None and all(map(importlib.util.find_spec, ("tokenizers", "sentencepiece"))):
        load_tokenizer(repo.tokenizer)  # a damaged one is told now, and not by the first prompt
    made: dict[str, dict[str, Stored]] = {}
    for name, part in repo.parts.items():
        node = describe(part)
        leaves, shapes = table_of(name, node)
        report = compare(leaves, shapes, part.weights.arrays, DIT_UNUSED)
        check(report, part.weights.source, partial)
        yield f"{name}: {part.weights.layout} layout, {report.lines()[0]}"
        yield from (f"  {line}" for line in report.lines()[1:])
        found = convert(leaves, shapes, part.weights)
        made[name] = {**{n: zeros(s) for n, s in shapes.items() if n not in found}, **found}
    yield f"licence: {licence_of(repo)}"
    if spec is None:
        lack = ", ".join(name for name in ("dit", "vae", "umt5") if name not in repo.parts)
        yield f"single networks and no pipeline: {lack} not there"
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        if spec is not None:
            _write_bundle(aside, spec, repo, made)
        else:
            _write_parts(aside, repo, made)
        _write_papers(aside, repo)
        os.chmod(aside, 0o755)  # mkdtemp made it private
        if target.exists():
            target.rmdir()
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    yield f"{total_bytes(a for arrays in made.values() for a in arrays.values()) / 1e9:.3f} GB of weights"


def _check_sizes(spec) -> None:
    """Raises InputError for sizes that the autoencoder and the patches do not divide."""
    factor, patch = build(spec["vae"]).space_factor, build(spec["model"]).dit.patch
    for height, width in spec["serves"]["sizes"]:
        if height % (factor * patch[1]) or width % (factor * patch[2]):
            raise InputError(
                f"size {height}x{width} is not a multiple of {factor * patch[1]}x{factor * patch[2]}; give --size another"
            )


def _narrow(repo: Repo) -> bool:
    """Whether the transformer's weights are in half precision for the most part."""
    dtypes = [array.dtype.itemsize for array in repo.parts["dit"].weights.arrays.values()]
    return sum(size < 4 for size in dtypes) > len(dtypes) / 2


def zeros(shape: tuple[int, ...]) -> Stored:
    """What stands where a key is missing and that was allowed."""
    return Stored(tuple(shape), np.dtype(np.float32), lambda: np.zeros(shape, np.float32))


def _write_bundle(folder, spec, repo: Repo, made):
    spec = {**spec, "format": FORMAT, "version": VERSION}
    (folder / SPEC).write_text(to_json(spec), encoding="utf-8")
    licence = {"format": FORMAT, "licence": licence_of(repo)}
    model = {PLACES[name][1] + n: a for name in made if name != "vae" for n, a in made[name].items()}
    write_arrays(folder / MODEL, model, licence)
    write_arrays(folder / VAE, _with_stats(repo.parts["vae"], made["vae"]), licence)
    shutil.copytree(
        repo.tokenizer,
        folder / "tokenizer",
        ignore=lambda at, names: [n for n in names if not _of_tokenizer(pathlib.Path(at, n))],
    )


def _of_tokenizer(path: pathlib.Path) -> bool:
    return path.is_file() and (path.suffix == ".model" or "token" in path.name)


def _with_stats(part: Part, arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    mean, std = (from_array(np.asarray(numbers, np.float32)) for numbers in latent_stats(part))
    return {f"params/{n}": a for n, a in arrays.items()} | {"stats/mean": mean, "stats/std": std}


def _write_parts(folder, repo: Repo, made):
    nodes = {name: describe(part) for name, part in repo.parts.items()}
    told = {"format": "jaxvid parts", "version": VERSION, "networks": nodes, "imported": imported(repo)}
    (folder / PARTS).write_text(to_json(told), encoding="utf-8")
    for name, arrays in made.items():
        arrays = _with_stats(repo.parts[name], arrays) if name == "vae" else arrays
        write_arrays(folder / f"{name}.safetensors", arrays, {"licence": licence_of(repo)})


def _write_papers(folder, repo: Repo):
    sources = "".join(
        f"- {name}: `{pathlib.Path(p.weights.source).name}`\n" for name, p in repo.parts.items()
    )
    (folder / CARD).write_text(
        f"# Imported weights ({repo.family})\n\nLicence of the weights: {licence_of(repo)}\n\nMade from\n\n{sources}",
        encoding="utf-8",
    )
    if repo.licence is not None:
        shutil.copyfile(repo.licence, folder / repo.licence.name)


def table_of(name: str, node: Mapping[str, Any]) -> tuple[list[Leaf], dict[str, tuple[int, ...]]]:
    """The leaves and our shapes of the network ``name``, 'dit', 'vae' or 'umt5', which the call ``node`` makes."""
    tree = abstract(name, build(dict(node), SAFE))
    shapes = {n: tuple(leaf.shape) for n, leaf in flatten(tree).items()}
    if name == "vae":
        return vae_leaves(shapes, bool(node["residual"])), shapes
    if name == "clip":
        return clip_leaves(node["layers"]), shapes
    return (
        umt5_leaves()
        if name == "umt5"
        else dit_leaves(bool(node.get("image_width")), bool(node.get("rates")))
    ), shapes


def abstract(name: str, model):
    """Shapes of a network's parameters, in boxes of logical axes; nothing is computed."""
    if name == "vae":
        args = (jax.ShapeDtypeStruct((1, 1, model.space_factor, model.space_factor, 3), jnp.float32),)
    elif name == "clip":
        args = (jax.ShapeDtypeStruct((1, model.size, model.size, 3), jnp.float32),)
    elif name == "umt5":
        args = (jax.ShapeDtypeStruct((1, 8), jnp.int32),)
    else:
        frames = max(model.block, 1)
        latents = (1, frames, 2, 2)
        cond = {"text": jax.ShapeDtypeStruct((1, 1, 8, model.text_width), jnp.float32)}
        if model.beside:
            cond["beside"] = jax.ShapeDtypeStruct((*latents, model.beside), jnp.float32)
        if model.image_width:
            cond["image"] = jax.ShapeDtypeStruct((1, 257, model.image_width), jnp.float32)
        args = (
            jax.ShapeDtypeStruct((*latents, model.channels), jnp.float32),
            jax.ShapeDtypeStruct((1, frames), jnp.float32),
            cond,
        )
    made = jax.eval_shape(lambda *a: model.init(jax.random.key(0), *a), *args)
    return made["params"]


def described(path) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any], bool]:
    """Of an imported directory: the calls that make its networks, what its import noted, whether it is a bundle."""
    path = pathlib.Path(path)
    if is_bundle(path):
        spec = load_spec(path)
        if "imported" not in spec:
            raise InputError(
                f"{path} was not imported; only networks of Wan and SkyReels-V2 go back to their layouts"
            )
        model = spec["model"]
        networks = {"dit": model["dit"], "umt5": model["text_encoder"], "vae": spec["vae"]}
        networks |= {"clip": model["image_encoder"]} if "image_encoder" in model else {}
        return networks, spec["imported"], True
    if not (path / PARTS).is_file():
        raise InputError(f"{path} was not made by jaxvid import; give a directory that was")
    told = read_json(path / PARTS)
    if not isinstance(told.get("networks"), Mapping) or not isinstance(told.get("imported"), Mapping):
        raise InputError(f"{path / PARTS} lacks what an import writes; import again")
    return dict(told["networks"]), dict(told["imported"]), False


def stored_part(path, name: str, bundle: bool) -> dict[str, Stored]:
    """The arrays of one network of an imported directory, by our names; of a vae without its statistics."""
    file, prefix = (
        PLACES[name] if bundle else (f"{name}.safetensors", PLACES[name][1] if name == "vae" else "")
    )
    arrays = open_safetensors(pathlib.Path(path, file))
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def stored_stats(path, bundle: bool) -> dict[str, np.ndarray]:
    """Mean and std of the latents of an imported directory's autoencoder."""
    arrays = open_safetensors(pathlib.Path(path, VAE if bundle else "vae.safetensors"))
    return {name: arrays[f"stats/{name}"].read() for name in ("mean", "std")}


def load_part(path, name: str):
    """``(part, model, variables)`` of one network of an imported directory, on the device; part as in `wan_keys.PARTS`."""
    networks, told, bundle = described(path)
    if name not in networks:
        raise InputError(f"{path} holds no {name}; it has {', '.join(networks)}")
    model = build(dict(networks[name]), SAFE)
    params = unflatten({n: jnp.asarray(a.read()) for n, a in stored_part(path, name, bundle).items()})
    variables = {"params": params}
    if name == "vae":
        variables["stats"] = jax.tree.map(jnp.asarray, stored_stats(path, bundle))
    return told["parts"][name]["part"], model, variables


def place(arrays: Mapping[str, Stored], shardings: Any = None) -> Any:
    """A tree on the devices, with at most one leaf in host memory. ``shardings``: a tree like it, or None."""
    where = {} if shardings is None else flatten(shardings)
    placed = {}
    for name, array in arrays.items():
        value = array.read()
        placed[name] = jax.block_until_ready(jax.device_put(value, where.get(name)))
        del value
    return unflatten(placed)
