# SPDX-License-Identifier: Apache-2.0
"""Prompts to tokens: the ids of the original tokenizer, from either of its two files."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from jaxvid.data.tokens import clean, load_tokenizer
from jaxvid.types import InputError

FOLDER = pathlib.Path(__file__).parents[1] / "interop" / "references" / "tokenizer"
REFERENCE = json.loads((FOLDER / "ref.json").read_text())


@pytest.mark.parametrize(
    "package, file", [("tokenizers", "tokenizer.json"), ("sentencepiece", "spiece.model")]
)
def test_ids_are_the_original_ones(package, file, tmp_path):
    pytest.importorskip(package)
    shutil.copy(FOLDER / file, tmp_path)
    tokenize = load_tokenizer(tmp_path)
    length = REFERENCE["max_length"]
    for prompt, ids in zip(REFERENCE["prompts"], REFERENCE["ids"], strict=True):
        np.testing.assert_array_equal(tokenize(prompt, length), ids)
    assert tokenize("", 4).tolist() == [1, 0, 0, 0]
    full = tokenize("a cat runs on the beach. a dog runs on the beach.", 512)
    short = tokenize("a cat runs on the beach. a dog runs on the beach.", 5)
    assert short.tolist() == [*full[:4], 1]  # cutting keeps the end


def test_cleaning():
    assert clean("  two   spaces\n and&amp;amp; an entity\t") == "two spaces and& an entity"


def test_a_folder_without_or_with_a_broken_tokenizer_is_told(tmp_path):
    with pytest.raises(InputError, match="no tokenizer.json and no spiece.model"):
        load_tokenizer(tmp_path)
    for package, file in (("sentencepiece", "spiece.model"), ("tokenizers", "tokenizer.json")):
        pytest.importorskip(package)
        (tmp_path / file).write_bytes(b"{}")
        with pytest.raises(InputError, match="is not a tokenizer"):
            load_tokenizer(tmp_path)
