# SPDX-License-Identifier: Apache-2.0
"""Prompts to the tokens of a trained text encoder: cleaned as its authors did, then cut up by its own tokenizer.

Ids end with </s> (1) and are padded with 0. A tokenizer.json is read by `tokenizers`, a spiece.model by `sentencepiece`.
"""

from __future__ import annotations

import html
import pathlib
from collections.abc import Callable

import numpy as np

from jaxvid.types import InputError

END = 1


def clean(text: str) -> str:
    """Broken characters mended (by ftfy, where it is installed), HTML entities resolved, white space made single."""
    try:
        import ftfy

        text = ftfy.fix_text(text)
    except ImportError:  # clean text is the same without it
        pass
    return " ".join(html.unescape(html.unescape(text)).split())


def load_tokenizer(folder) -> Callable[[str, int], np.ndarray]:
    """``(text, length) -> int32 [length]`` from tokenizer.json (preferred) or spiece.model. Raises InputError."""
    folder = pathlib.Path(folder)
    if (folder / "tokenizer.json").is_file():
        ids = _from_json(folder / "tokenizer.json")
    elif (folder / "spiece.model").is_file():
        ids = _from_pieces(folder / "spiece.model")
    else:
        raise InputError(f"{folder} has no tokenizer.json and no spiece.model; put the text encoder's there")

    def tokenize(text: str, length: int) -> np.ndarray:
        found = ids(clean(text))[: length - 1]
        tokens = np.zeros(length, np.int32)
        tokens[: len(found) + 1] = [*found, END]
        return tokens

    return tokenize


def _from_json(file: pathlib.Path) -> Callable[[str], list[int]]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError(f"{file} needs the package tokenizers; pip install 'jaxvid[wan]'") from None
    try:
        made = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 (it raises nothing more precise)
        raise InputError(
            f"{file} is not a tokenizer ({' '.join(str(error).split())[:120]}); fetch it again"
        ) from None
    made.no_truncation()
    made.no_padding()
    return lambda text: made.encode(text, add_special_tokens=False).ids


def _from_pieces(file: pathlib.Path) -> Callable[[str], list[int]]:
    try:
        import sentencepiece
    except ImportError:
        raise InputError(f"{file} needs the package sentencepiece; pip install 'jaxvid[wan]'") from None
    try:
        made = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{file} is not a tokenizer ({' '.join(str(error).split())[:120]}); fetch it again"
        ) from None
    return lambda text: list(made.encode(text))
