# SPDX-License-Identifier: Apache-2.0
import json
import os
import struct

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxvid.io import weights
from jaxvid.io.weights import load_metadata, load_shapes, load_weights, restore_into, save_weights
from jaxvid.types import InputError

TREE = {
    "params": {
        "a": {"kernel": jnp.arange(6.0).reshape(2, 3), "scale": jnp.float32(2)},
        "b": {"low": jnp.arange(4, dtype=jnp.bfloat16), "none": jnp.zeros((0, 3))},
    },
    "stats": {"count": jnp.int32(7), "mask": jnp.array([True, False])},
}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_keeps_every_bit(tmp_path):
    save_weights(tmp_path / "w.safetensors", TREE, metadata={"licence": "Apache-2.0"})
    same(load_weights(tmp_path / "w.safetensors"), TREE)
    assert load_metadata(tmp_path / "w.safetensors") == {"licence": "Apache-2.0"}
    assert load_shapes(tmp_path / "w.safetensors")["params/a/kernel"].shape == (2, 3)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_the_library_reads_ours_and_we_read_theirs(tmp_path):
    save_weights(tmp_path / "ours", TREE)
    flat = weights.flatten(TREE)
    for name, value in safetensors.numpy.load_file(tmp_path / "ours").items():
        np.testing.assert_array_equal(value, np.asarray(flat[name]))
    low = np.arange(5).astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"x/y": low, "z": np.ones((2, 2), np.float16)}, tmp_path / "theirs")
    same(load_weights(tmp_path / "theirs"), {"x": {"y": low}, "z": np.ones((2, 2), np.float16)})


def test_dtype_is_for_floating_leaves(tmp_path):
    save_weights(tmp_path / "w", TREE, dtype="bfloat16")
    back = load_weights(tmp_path / "w")
    assert back["params"]["a"]["kernel"].dtype == ml_dtypes.bfloat16
    assert back["stats"]["count"].dtype == np.int32


def test_boxes_are_taken_off(tmp_path):
    save_weights(tmp_path / "w", {"k": nn.LogicallyPartitioned(jnp.ones((2, 2)), ("embed", "mlp"))})
    same(load_weights(tmp_path / "w"), {"k": np.ones((2, 2), np.float32)})


def forge(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(1,), at=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}


@pytest.mark.parametrize(
    "header, data",
    [
        (b"", b""),
        (b"[" * 100_000, b""),
        ([1], b""),
        ({"a": entry()}, b"123"),
        ({"a": entry()}, b"12345"),
        ({"a": entry(), "b": entry()}, b"1234"),
        ({"a": entry(), "b": entry(at=(8, 12))}, b"1" * 12),
        ({"a": entry(shape=(2,))}, b"1234"),
        ({"a": entry(shape=(-1,))}, b"1234"),
        ({"a": entry(shape=(1 << 62, 4))}, b"1234"),
        ({"a": entry(dtype="OBJ")}, b"1234"),
        ({"a": entry(at=(4, 0))}, b"1234"),
        ({"a": entry(at=(True, 4))}, b"1234"),
        ({"../a": entry()}, b"1234"),
        ({"": entry()}, b"1234"),
        ({"a": entry(), "a/b": entry(at=(4, 8))}, b"\0" * 8),
        (b'{"a": {}, "a": {}}', b""),
        ({"a": 3}, b""),
        ({"__metadata__": {"x": 3}}, b""),
        ({f"a{i}": entry(shape=(0,), at=(0, 0)) for i in range(20_001)}, b""),
    ],
)
def test_forged_files_are_refused_with_their_name(tmp_path, header, data):
    with pytest.raises(InputError, match="w.safetensors|goes through a leaf"):
        load_weights(forge(tmp_path / "w.safetensors", header, data))


@pytest.mark.parametrize("length", [0, 1, (1 << 63) + 1, 1 << 40, 100])
def test_lying_header_lengths_are_refused(tmp_path, length):
    with pytest.raises(InputError, match="truncated or not"):
        load_weights(forge(tmp_path / "w", {"a": entry()}, b"1234", length))


def test_every_truncation_is_refused(tmp_path):
    save_weights(tmp_path / "w", TREE)
    whole = (tmp_path / "w").read_bytes()
    for n in range(0, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:n])
        with pytest.raises(InputError, match="cut"):
            load_weights(tmp_path / "cut")


def test_missing_foreign_and_non_finite_files(tmp_path):
    with pytest.raises(InputError, match="no weights at"):
        load_weights(tmp_path / "nothing")
    (tmp_path / "text").write_text("this is a text, and it is long enough to have a header")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_weights(tmp_path / "text")
    save_weights(tmp_path / "nan", {"a": jnp.array([1.0, jnp.nan])})
    with pytest.raises(InputError, match="NaN"):
        load_weights(tmp_path / "nan")


def test_unwritable_place_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        save_weights(tmp_path / "file" / "w", TREE)
    assert (tmp_path / "file").read_text() == "x"


def test_restore_into_casts_floats_and_keeps_structure():
    abstract = jax.eval_shape(lambda: TREE)
    same(restore_into(abstract, weights.flatten(jax.tree.map(np.asarray, TREE))), TREE)
    low = jax.tree.map(
        lambda x: np.asarray(x).astype(ml_dtypes.bfloat16) if x.dtype == jnp.float32 else np.asarray(x), TREE
    )
    assert restore_into(abstract, low)["params"]["a"]["kernel"].dtype == np.float32


def test_restore_into_lists_what_does_not_fit():
    abstract = jax.eval_shape(lambda: TREE)
    flat = weights.flatten(jax.tree.map(np.asarray, TREE))
    flat["params/a/kernels"] = flat.pop("params/a/kernel")
    flat["params/b/low"] = flat["params/b/low"][:2]
    flat["stats/count"] = np.float32(3)
    with pytest.raises(InputError) as e:
        restore_into(abstract, flat)
    said = str(e.value)
    assert "3/6" in said and "missing params/a/kernel (closest: params/a/kernels)" in said
    assert (
        "unused params/a/kernels" in said
        and "(2,) instead of (4,)" in said
        and "stats/count is float32" in said
    )
    assert "\n" not in said
