# SPDX-License-Identifier: Apache-2.0
"""Captions through the text encoder of an imported bundle, which is frozen: each sentence once, kept on disk by content.

So training holds neither the encoder's parameters nor its arithmetic, and a checkpoint none of it either.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.config import to_json
from jaxvid.data.latents import digest
from jaxvid.data.tokens import clean, load_tokenizer
from jaxvid.imports import described, load_part, stored_part
from jaxvid.types import InputError

VERSION = 1  # of what happens between a sentence and its stored rows
LOOKED_AT = 4096  # bytes of every array of the encoder that its key is made of


class Captions:
    """``text -> (float32 [L, D], bool [L])``: rows of a sentence, zeros behind them, and which are rows.

    directory: an imported bundle. cache: a directory. length: L. What is not in the cache is encoded when it is asked for,
    with an encoder that is loaded then and let go by `release`.
    """

    def __init__(self, directory: str | os.PathLike[str], cache: str | os.PathLike[str], length: int):
        directory = pathlib.Path(directory)
        networks, _, bundle = described(directory)
        if not bundle or "umt5" not in networks:
            raise InputError(
                f"{directory} has no text encoder; import a whole pipeline, with its text_encoder"
            )
        self.directory, self.length, self.width = directory, length, int(networks["umt5"]["width"])
        self.tokenize = load_tokenizer(directory / "tokenizer")
        self.bank = pathlib.Path(cache) / digest("captions", VERSION, encoder_key(directory), length)
        self.lock = threading.Lock()
        self.encode: Any = None

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        file = self.bank / f"{digest(clean(text))}.npy"
        try:
            rows = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or cut off by a full disk
            with self.lock:
                rows = self._encoded(text)
                self._keep(file, rows)
        made = np.zeros((self.length, self.width), np.float32)
        made[: len(rows)] = rows
        return made, np.arange(self.length) < len(rows)

    def release(self) -> None:
        """Lets the encoder's parameters go."""
        with self.lock:
            self.encode = None

    def _encoded(self, text: str) -> np.ndarray:
        if self.encode is None:
            _, model, variables = load_part(self.directory, "umt5")
            run = jax.jit(model.apply)
            self.encode = lambda tokens: run(variables, tokens)
        rows, mask = self.encode(jnp.asarray(self.tokenize(text, self.length))[None])
        return np.asarray(rows[0])[np.asarray(mask[0])]

    def _keep(self, file: pathlib.Path, rows: np.ndarray) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}.part")
        with open(aside, "wb") as out:
            np.save(out, rows)
        os.replace(aside, file)


class Blank:
    """In place of `Captions` before there is anything to encode with: zeros of the right shape, for a dry run."""

    def __init__(self, length: int, width: int):
        self.length, self.width = length, width

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((self.length, self.width), np.float32), np.arange(self.length) < 1

    def release(self) -> None:
        pass


def encoder_key(directory: pathlib.Path) -> str:
    """A hash of what makes rows of a sentence: tokenizer, sizes, and the first bytes of every array of the encoder."""
    key = hashlib.blake2b(to_json(described(directory)[0]["umt5"]).encode(), digest_size=16)
    for file in sorted((directory / "tokenizer").iterdir()):
        key.update(file.name.encode() + file.read_bytes())
    for name, array in sorted(stored_part(directory, "umt5", True).items()):
        key.update(f"{name} {array.dtype} {array.shape}".encode())
        key.update(array.read().reshape(-1).view(np.uint8)[:LOOKED_AT].tobytes())
    return key.hexdigest()
