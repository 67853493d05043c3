# SPDX-License-Identifier: Apache-2.0
"""A bundle comes back as it was saved, replaces only bundles, and says in one line what is wrong with a bad one."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxvid.io import bundle
from jaxvid.types import InputError

SPEC = {
    "model": {"kind": "jaxvid.models.text_to_video:TextToVideo", "width": 8},
    "vae": {"kind": "jaxvid.models.video_vae:VideoVAE"},
    "process": {"kind": "jaxvid.diffusion.process:Process"},
    "serves": {"sizes": [[64, 64]], "fps": [16.0]},
    "defaults": {"steps": 4},
    "text_length": 32,
}
PARAMS = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3) / 7}}
VAE = {"params": {"b": np.ones(3, np.float32)}, "stats": {"mean": np.full(4, 0.1, np.float32)}}


@pytest.fixture
def saved(tmp_path):
    return bundle.save_bundle(tmp_path / "b", SPEC, PARAMS, VAE)


def test_round_trip_is_exact(saved):
    spec, params, vae = bundle.load_bundle(saved)
    assert {k: spec[k] for k in SPEC} == json.loads(json.dumps(SPEC))
    np.testing.assert_array_equal(params["a"]["kernel"], PARAMS["a"]["kernel"])
    np.testing.assert_array_equal(vae["stats"]["mean"], VAE["stats"]["mean"])
    assert sorted(p.name for p in saved.iterdir()) == [
        "README.md",
        "model.safetensors",
        "pipeline.json",
        "vae.safetensors",
    ]
    assert "64x64" in (saved / "README.md").read_text()


def test_bfloat16_on_disk(tmp_path):
    _, params, vae = bundle.load_bundle(
        bundle.save_bundle(tmp_path / "b", SPEC, PARAMS, VAE, dtype="bfloat16")
    )
    assert vae["params"]["b"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(vae["stats"]["mean"], VAE["stats"]["mean"])
    np.testing.assert_array_equal(params["a"]["kernel"], PARAMS["a"]["kernel"].astype(ml_dtypes.bfloat16))


def test_a_bundle_may_use_the_autoencoder_of_the_one_beside_it(saved, tmp_path):
    other = bundle.save_bundle(tmp_path / "c", SPEC, PARAMS, VAE, vae_in="b")
    assert not (other / "vae.safetensors").exists()
    spec, _, vae = bundle.load_bundle(other)
    np.testing.assert_array_equal(vae["stats"]["mean"], VAE["stats"]["mean"])
    again = bundle.save_bundle(tmp_path / "d", spec, PARAMS, vae)  # and elsewhere it has its own
    assert (again / "vae.safetensors").exists() and "vae_in" not in bundle.load_spec(again)
    changed = {**VAE, "params": {"b": np.zeros(3, np.float32)}}
    with pytest.raises(InputError, match="another one"):
        bundle.save_bundle(tmp_path / "e", SPEC, PARAMS, changed, vae_in="b")
    with pytest.raises(InputError, match="no weights at"):
        bundle.save_bundle(tmp_path / "e", SPEC, PARAMS, VAE, vae_in="nobody")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "d"]
    for name in ("../b", "", "/b", 3):
        (other / "pipeline.json").write_text(json.dumps({**bundle.load_spec(saved), "vae_in": name}))
        with pytest.raises(InputError, match="no name of a folder"):
            bundle.load_bundle(other)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="choose one of float32, bfloat16"):
        bundle.save_bundle(tmp_path / "b", SPEC, PARAMS, VAE, dtype="int4")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "save_weights", full)
    with pytest.raises(InputError, match="No space left"):
        bundle.save_bundle(tmp_path / "b", SPEC, PARAMS, VAE)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_replaced_and_anything_else_is_not(saved, tmp_path):
    bundle.save_bundle(saved, {**SPEC, "text_length": 64}, PARAMS, VAE)
    assert bundle.load_spec(saved)["text_length"] == 64
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match="not a bundle"):
        bundle.save_bundle(tmp_path / "mine", SPEC, PARAMS, VAE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "mine"]


def test_a_failing_save_leaves_the_old_bundle(saved):
    with pytest.raises(InputError):
        bundle.save_bundle(saved, {**SPEC, "text_length": 64}, {"a": np.array(["x"])}, VAE)
    assert bundle.load_spec(saved)["text_length"] == 32
    assert [p.name for p in saved.parent.iterdir()] == ["b"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "pipeline.json"),
        ("[]", "pipeline.json"),
        ('{"format": "other"}', "not the description"),
        ('{"format": "jaxvid pipeline", "version": 99}', "version 99"),
        ('{"format": "jaxvid pipeline", "version": 1}', "lacks model"),
    ],
)
def test_a_foreign_description_is_one_line(saved, text, said):
    (saved / "pipeline.json").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        bundle.load_bundle(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"serves": []}, {"serves": {"sizes": [], "fps": [16]}}, {"text_length": "long"}, {"vae": "x"}]
)
def test_fields_of_a_wrong_type_are_one_line(saved, change):
    (saved / "pipeline.json").write_text(json.dumps({**bundle.load_spec(saved), **change}))
    with pytest.raises(InputError, match="wrong type"):
        bundle.load_spec(saved)


def test_truncated_weights_are_one_line(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match="truncated") as caught:
        bundle.load_bundle(saved)
    assert "\n" not in str(caught.value)


def test_no_bundle(tmp_path):
    assert not bundle.is_bundle(tmp_path)
    with pytest.raises(InputError, match="no pipeline.json"):
        bundle.load_bundle(tmp_path)
