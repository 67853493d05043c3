# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run: Orbax writes the arrays, a manifest says when to believe them.

    DIRECTORY/STEP/model          the average of the parameters and what is not trained: all that a pipeline needs
    DIRECTORY/STEP/state          the rest of the training state
    DIRECTORY/STEP/meta           JSON: config, place in the data, versions, history
    DIRECTORY/STEP/manifest.json  names, shapes and dtypes; size and hash of every file. Written last

A step is saved in the background, atomically: without its manifest it does not count. Orbax alone would restore a file
with a flipped byte, take an empty directory for the latest step and cast a dtype in silence; the manifest refuses these.
Older steps go only when a newer one is whole.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxvid.io.weights import unflatten
from jaxvid.types import InputError

MANIFEST = "manifest.json"
SCHEMA = 1
_MANIFEST_BYTES = 16 << 20
_MODEL = ("ema", "rest")  # fields of the state that a pipeline needs


class Checkpoints:
    """The checkpoints of one run, with one writer. Use as a context manager: leaving waits for the last save.

    Opening takes a lock, sweeps what a killed writer left and proves that the place can be written, so that a run
    fails before it compiles. ``keep`` is how many steps stay.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2):
        if keep < 1:
            raise InputError(f"keep={keep} checkpoints would lose the run; keep at least 1, better 2")
        self.directory = os.path.abspath(os.fspath(directory))
        self.keep = keep
        self.warnings: list[str] = []
        try:
            os.makedirs(self.directory, exist_ok=True)
            self._lock = open(os.path.join(self.directory, ".writer.lock"), "a+")
        except OSError as e:
            raise InputError(
                f"cannot write to {self.directory} ({e.strerror}); give a writable --workdir"
            ) from None
        if jax.process_index() == 0:  # one process of a run decides; the others follow what it leaves
            self._take_lock()
            for name in os.listdir(self.directory):
                if "orbax-checkpoint-tmp" in name or name.startswith(".trash-"):
                    shutil.rmtree(os.path.join(self.directory, name), ignore_errors=True)
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Starts to save; returns when the arrays are copied, so that the state may be donated.

        ``state`` is a dataclass of trees with the fields `ema` and `rest` among others; ``meta`` is JSON-able. A
        failure of the previous save is raised here.
        """
        self.wait()
        path = os.path.join(self.directory, str(step))
        if os.path.exists(path):
            return
        model, other = _split(state)
        meta = {**meta, "step": step, "schema": SCHEMA}
        tree = {k: [list(np.shape(v)), str(v.dtype)] for k, v in {**model, **other}.items()}
        args = {"meta": ocp.args.JsonSave(meta), "state": ocp.args.StandardSave(other)}
        args["model"] = ocp.args.StandardSave(model)
        self._writer.save(path, args=ocp.args.Composite(**args))
        self._saving = self._thread.submit(self._finish, step, path, tree)

    def wait(self) -> None:
        """Until the last save is whole; raises what went wrong with it."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            try:
                saving.result()
            except (OSError, ValueError, RuntimeError) as e:
                text = " ".join(str(e).split())[:300]
                raise InputError(
                    f"a checkpoint could not be saved in {self.directory} ({text}); free space?"
                ) from e

    def latest(self) -> int | None:
        """The newest step that is whole, every byte hashed; None where nothing was ever saved.

        Damaged newer steps are set aside (renamed to ``STEP.bad``) with a warning. When there are steps and all are
        damaged this is an InputError: a run never starts over in silence.
        """
        self.wait()
        reasons = []
        for step in reversed(all_steps(self.directory)):
            path = os.path.join(self.directory, str(step))
            reason = damage(path, hashes=True)
            if reason is None:
                return step
            if not os.path.exists(os.path.join(path, MANIFEST)):
                # A writer was killed before it was done: nothing that was whole is lost.
                os.replace(path, _free(path + ".unfinished"))
                self.warnings.append(f"checkpoint {path} was not completed; set aside as {step}.unfinished")
                continue
            reasons.append(f"{step}: {reason}")
            os.replace(path, _free(path + ".bad"))
            self.warnings.append(f"checkpoint {path} is damaged ({reason}); set aside as {step}.bad")
        bad = sorted(n for n in os.listdir(self.directory) if n.partition(".")[0].isdigit() and ".bad" in n)
        if reasons or bad:
            said = "; ".join(reasons) or ", ".join(bad)
            raise InputError(f"no checkpoint in {self.directory} is whole ({said}); use a new --workdir")
        return None

    def restore(self, step: int, shapes: Any, shardings: Any) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of a step, with the structure of ``shapes``, laid out as ``shardings`` says.

        The mesh may be another than the one that saved. Names, shapes and dtypes must be those of ``shapes``.
        """
        path = os.path.join(self.directory, str(step))
        leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
        places = structure.flatten_up_to(shardings)
        wanted = {
            _name(p): jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
            for (p, s), place in zip(leaves, places, strict=True)
        }
        _compare(path, wanted)
        model = {k: v for k, v in wanted.items() if _of_model(k)}
        other = {k: v for k, v in wanted.items() if not _of_model(k)}
        args = {"meta": ocp.args.JsonRestore(), "state": ocp.args.StandardRestore(other)}
        args["model"] = ocp.args.StandardRestore(model)
        found = _read(path, args)
        flat = {**found["model"], **found["state"]}
        _check_finite(path, {k: v for k, v in flat.items() if v.is_fully_addressable})
        return structure.unflatten([flat[k] for k in wanted]), found["meta"]

    def close(self) -> None:
        """Waits for the last save and lets go of the lock."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._writer.close()
            self._lock.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read(200).strip() or "unknown"
            self._lock.close()
            raise InputError(
                f"{self.directory} is being written by another run ({holder}); stop it or give another --workdir"
            ) from None
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.write(f"pid {os.getpid()} on {os.uname().nodename}")
        self._lock.flush()

    def _finish(self, step: int, path: str, tree: Mapping[str, Any]) -> None:
        """In the background: after Orbax has committed, the manifest; after the manifest, the old steps go."""
        self._writer.wait_until_finished()
        if jax.process_index() == 0:
            files = {name: [os.path.getsize(f), _hash(f)] for name, f in _files(path)}
            made = {"schema": SCHEMA, "step": step, "saved": time.time(), "tree": tree, "files": files}
            _write_json(os.path.join(path, MANIFEST), made)
            for old in all_steps(self.directory)[: -self.keep]:
                trash = os.path.join(self.directory, f".trash-{old}")
                os.replace(os.path.join(self.directory, str(old)), trash)
                shutil.rmtree(trash, ignore_errors=True)


def all_steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps that have a directory, whole or not, ascending."""
    if not os.path.isdir(directory):
        return []
    return sorted(
        int(n) for n in os.listdir(directory) if n.isdigit() and os.path.isdir(os.path.join(directory, n))
    )


def damage(path: str | os.PathLike[str], hashes: bool = False) -> str | None:
    """Why a step's directory cannot be believed, or None. ``hashes`` reads every byte, else sizes are compared."""
    try:
        manifest = _manifest(path)
    except InputError as e:
        return str(e)
    for name, entry in manifest["files"].items():
        file = os.path.join(path, name)
        if os.path.islink(file) or not os.path.isfile(file):
            return f"{name} is missing"
        if os.path.getsize(file) != entry[0]:
            return f"{name} has {os.path.getsize(file)} bytes instead of {entry[0]}"
        if hashes and _hash(file) != entry[1]:
            return f"{name} was changed since it was written"
    return None


def load_ema(workdir: str | os.PathLike[str], stage: str, step: int | None = None) -> dict[str, Any]:
    """The averaged parameters of a stage of a run: ``{'params': ..., other collections}``, nested dicts of numpy arrays.

    The newest whole checkpoint of ``WORKDIR/STAGE/checkpoints`` is read, or that of ``step``; nothing is written.
    """
    directory = os.path.join(os.fspath(workdir), stage, "checkpoints")
    path = find(directory, step)
    tree = _manifest(path)["tree"]
    names = [k for k in tree if _of_model(k)]
    as_numpy = {k: ocp.RestoreArgs(restore_type=np.ndarray) for k in names}
    blank = dict.fromkeys(names, 0)
    found = _read(path, {"model": ocp.args.PyTreeRestore(item=blank, restore_args=as_numpy)})["model"]
    _check_finite(path, found)
    variables = unflatten({k.replace(".", "/"): np.asarray(v) for k, v in found.items()})
    return {"params": variables.get("ema", {}), **variables.get("rest", {})}


def load_meta(directory: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """The meta of a step (the newest whole one): config, place in the data, versions, history, step."""
    return _read(find(directory, step), {"meta": ocp.args.JsonRestore()})["meta"]


def find(directory: str | os.PathLike[str], step: int | None = None) -> str:
    """The path of a step, or of the newest one that is whole, for reading."""
    directory = os.path.abspath(os.fspath(directory))
    steps = all_steps(directory)
    if step is not None:
        steps = [s for s in steps if s == step]
    reasons = []
    for s in reversed(steps):
        reason = damage(os.path.join(directory, str(s)), hashes=True)
        if reason is None:
            return os.path.join(directory, str(s))
        reasons.append(f"{s}: {reason}")
    if reasons:
        raise InputError(
            f"no checkpoint in {directory} is whole ({'; '.join(reasons)}); train again or copy it again"
        )
    what = "checkpoint" if step is None else f"checkpoint of step {step}"
    raise InputError(f"no {what} in {directory}; give the --workdir of a training run")


def _check_finite(path: str, flat: Mapping[str, Any]) -> None:
    """Nothing that is learned may be NaN or infinite."""
    for name, value in flat.items():
        learned = name.partition(".")[0] in ("params", "ema") and jax.numpy.issubdtype(
            value.dtype, jax.numpy.floating
        )
        if learned and not np.isfinite(np.asarray(value)).all():
            raise InputError(f"{path}: {name} holds NaN or infinity; take an earlier checkpoint")


def _split(state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    flat = {_name(p): v for p, v in jax.tree_util.tree_flatten_with_path(state)[0]}
    return {k: v for k, v in flat.items() if _of_model(k)}, {
        k: v for k, v in flat.items() if not _of_model(k)
    }


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _of_model(name: str) -> bool:
    return name.partition(".")[0] in _MODEL


def _read(path: str, args: Mapping[str, Any]) -> dict[str, Any]:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        try:
            found = reader.restore(path, args=ocp.args.Composite(**args))
        except (OSError, ValueError, KeyError, TypeError) as e:
            text = " ".join(str(e).split())[:300]
            raise InputError(
                f"{path} is not a checkpoint of this library ({text}); give a run of jaxvid train"
            ) from e
    return {k: found[k] for k in args}


def _compare(path: str, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """The first differences between what is stored and what is wanted, as one error."""
    stored = {k: (tuple(v[0]), v[1]) for k, v in _manifest(path)["tree"].items()}
    asked = {k: (tuple(v.shape), str(v.dtype)) for k, v in wanted.items()}
    said = [
        f"{k} is stored as {stored[k]} and wanted as {asked[k]}"
        for k in asked
        if k in stored and asked[k] != stored[k]
    ]
    said += [f"{k} is not stored" for k in asked if k not in stored]
    said += [f"{k} is stored and not wanted" for k in stored if k not in asked]
    if said:
        more = f"; and {len(said) - 8} more" if len(said) > 8 else ""
        raise InputError(
            f"{path} is of another model or optimizer: {'; '.join(said[:8])}{more}; use its own config"
        )


def _manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    file = os.path.join(path, MANIFEST)
    if not os.path.isfile(file):
        raise InputError("no manifest.json, it was not completed or is foreign")
    if os.path.getsize(file) > _MANIFEST_BYTES:
        raise InputError("manifest.json is too large to be one")
    try:
        with open(file, encoding="utf-8") as f:
            made = json.load(f)
        newer = made["schema"] > SCHEMA
        fine = isinstance(made["tree"], dict) and all(
            isinstance(v, list) and len(v) == 2 and not os.path.isabs(k) and ".." not in k.split("/")
            for k, v in made["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError("manifest.json cannot be read") from None
    if newer:
        raise InputError(f"it was written by a newer jaxvid (schema {made['schema']}); update jaxvid")
    if not fine:
        raise InputError("manifest.json is not one of ours")
    return made


def _files(path: str) -> list[tuple[str, str]]:
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            if os.path.relpath(file, path) != MANIFEST:
                found.append((os.path.relpath(file, path), file))
    return sorted(found)


def _hash(file: str) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _write_json(path: str, value: Any) -> None:
    aside = path + ".part"
    with open(aside, "w", encoding="utf-8") as f:
        json.dump(value, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _free(path: str) -> str:
    n, at = 1, path
    while os.path.exists(at):
        n, at = n + 1, f"{path}-{n}"
    return at
