# SPDX-License-Identifier: Apache-2.0
"""A bundle: a directory from which a pipeline is loaded without its training code.

    pipeline.json        what it is: the calls that make model, autoencoder and process, what it serves, defaults
    model.safetensors    the denoiser's parameters
    vae.safetensors      the autoencoder's variables: params and the statistics of its latents
    README.md            the model card

A bundle beside another one may use the other's autoencoder: then `vae_in` of its pipeline.json is the other's name.
Nothing in a bundle is ever run: the JSON is data, and whoever builds from it names the packages that it may name.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxvid.config import from_json, to_json
from jaxvid.io.lazy import load_mapped
from jaxvid.io.weights import flatten, load_weights, save_weights
from jaxvid.types import InputError

FORMAT, VERSION = "jaxvid pipeline", 1
SPEC, MODEL, VAE, CARD = "pipeline.json", "model.safetensors", "vae.safetensors", "README.md"
DTYPES = ("float32", "bfloat16", "float16")
NEEDED = ("model", "vae", "process", "serves", "defaults", "text_length")


def is_bundle(path) -> bool:
    """Whether ``path`` is a directory that says it holds a pipeline."""
    return pathlib.Path(path, SPEC).is_file()


def save_bundle(
    path,
    spec: Mapping[str, Any],
    params,
    vae,
    *,
    dtype: str | None = None,
    card: str = "",
    beside=(),
    vae_in: str | None = None,
) -> pathlib.Path:
    """Writes a bundle aside and renames it to ``path``; a bundle that was there is replaced, anything else is refused.

    Args:
      path: the directory to make.
      spec: plain data with the keys `NEEDED`; see `jaxvid.pipeline`.
      params: tree of the model's parameters.
      vae: tree ``{'params', 'stats'}`` of the autoencoder.
      dtype: type of the floats in the files, such as 'bfloat16'; by default as they are. Statistics stay float32.
      card: text of the README.
      beside: files and folders that are copied into it, such as a tokenizer's.
      vae_in: name of the bundle beside it that has the same autoencoder, which is not written again.
    """
    path = pathlib.Path(path)
    missing = [key for key in NEEDED if key not in spec]
    if missing:
        raise InputError(f"a bundle's description lacks {', '.join(missing)}")
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    if path.exists() and not is_bundle(path) and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists and is not a bundle; choose an empty or new directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; choose another place") from None
    if dtype is not None:  # the statistics are few and all else depends on them
        params, vae = _cast(params, dtype), {**vae, "params": _cast(vae["params"], dtype)}
    try:
        spec = {k: v for k, v in spec.items() if k != "vae_in"} | {"format": FORMAT, "version": VERSION}
        if vae_in is not None:
            spec["vae_in"] = vae_in
            _check_same(vae_file(path, spec), vae, vae_in)
        (part / SPEC).write_text(to_json(spec), encoding="utf-8")
        save_weights(part / MODEL, params, metadata={"format": FORMAT})
        if vae_in is None:
            save_weights(part / VAE, vae, metadata={"format": FORMAT})
        (part / CARD).write_text(card or _card(spec), encoding="utf-8")
        for extra in beside:
            (shutil.copytree if extra.is_dir() else shutil.copyfile)(extra, part / extra.name)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o777 & ~mask)  # mkdtemp made it private
        _replace(part, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; choose another place"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def load_bundle(path) -> tuple[dict[str, Any], Any, Any]:
    """``(spec, params, vae)`` of a bundle: plain data and trees of arrays, nothing built yet. Raises `InputError`."""
    spec = load_spec(path)
    read = load_mapped if "imported" in spec else load_weights  # imported weights may be larger than memory
    return spec, read(pathlib.Path(path, MODEL)), read(vae_file(path, spec))


def vae_file(path, spec: Mapping[str, Any]) -> pathlib.Path:
    """Where a bundle's autoencoder lies: in it, or in the bundle beside it that it names. Raises `InputError`."""
    other = spec.get("vae_in")
    if other is None:
        return pathlib.Path(path, VAE)
    if not isinstance(other, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", other):
        raise InputError(f"vae_in={str(other)[:40]!r} of {path} is no name of a folder beside it; correct it")
    return pathlib.Path(path).absolute().parent / other / VAE


def _check_same(file: pathlib.Path, vae, name: str) -> None:
    there, here = flatten(load_weights(file)), flatten(vae)
    same = there.keys() == here.keys() and all(np.array_equal(there[k], np.asarray(here[k])) for k in here)
    if not same:
        raise InputError(f"the autoencoder in {name} is another one; save this bundle with its own")


def load_spec(path) -> dict[str, Any]:
    """The checked content of a bundle's pipeline.json."""
    file = pathlib.Path(path, SPEC)
    spec = read_json(file)
    if spec.get("format") != FORMAT:
        raise InputError(
            f"{file} is not the description of a jaxvid pipeline; save one with Pipeline.save(directory)"
        )
    if spec.get("version") != VERSION:
        raise InputError(
            f"{file} has version {spec.get('version')!r} and this jaxvid reads {VERSION}; update jaxvid"
        )
    return check_spec(spec, file)


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """A JSON object as plain data. Raises `InputError`, naming the file."""
    try:
        return from_json(file.read_text(encoding="utf-8")).to_dict()
    except FileNotFoundError:
        raise InputError(
            f"{file.parent} has no {file.name}; give a bundle's directory or a training run's"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())[:160]}") from None
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def check_spec(spec: dict[str, Any], file: pathlib.Path) -> dict[str, Any]:
    """``spec`` if it says all that a pipeline needs, in the right types. Raises `InputError`."""
    missing = [key for key in NEEDED if spec.get(key) is None]
    if missing:
        raise InputError(f"{file} lacks {', '.join(missing)}; save the bundle again")
    serves = spec["serves"]
    parts = [spec[part] for part in ("model", "vae", "process", "defaults", "serves")]
    fine = all(isinstance(part, Mapping) for part in parts) and isinstance(spec["text_length"], int)
    fine = fine and all(
        isinstance(serves.get(key), (list, tuple)) and len(serves[key]) for key in ("sizes", "fps")
    )
    if not fine:
        raise InputError(f"{file} has fields of a wrong type; save the bundle again")
    return spec


def _replace(part: pathlib.Path, path: pathlib.Path):
    """Moves directory ``part`` to ``path``; what was there goes only after the new one has come."""
    if not path.exists():
        os.replace(part, path)
        return
    old = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    os.replace(path, old)
    try:
        os.replace(part, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _cast(tree, dtype: str):
    wanted = jax.numpy.dtype(dtype)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(wanted) if np.asarray(leaf).dtype.kind == "f" else leaf, tree
    )


def _card(spec) -> str:
    serves = spec["serves"]
    return (
        "# A JaxVid pipeline\n\n"
        f"Sizes (height x width): {', '.join('x'.join(map(str, size)) for size in serves['sizes'])}. "
        f"Frames per second: {', '.join(f'{fps:g}' for fps in serves['fps'])}.\n\n"
        '    import jaxvid\n    jaxvid.Pipeline.load("this directory")("what the video shows", seconds=4).save("x.mp4")\n'
    )
