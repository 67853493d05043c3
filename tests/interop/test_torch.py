# SPDX-License-Identifier: Apache-2.0
"""What we write is read by the originals in torch, where they are installed (make interop)."""

import numpy as np
import pytest

from jaxvid.cli import main
from tests.interop.seeded import REFERENCES, foreign
from tests.interop.test_import import make_diffusers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def test_diffusers_runs_our_export_to_the_same_latents(tmp_path):
    from tests.interop.references import pipeline

    main.dispatch(["import", str(make_diffusers(tmp_path / "source")), "--to", str(tmp_path / "bundle")])
    out = tmp_path / "out"
    main.dispatch(
        [
            "export",
            str(tmp_path / "bundle"),
            "--format",
            "diffusers",
            "--to",
            str(out),
            "--shard-gb",
            "0.0005",
        ]
    )
    made = pipeline(out)
    with np.load(REFERENCES / "pipeline.npz") as file:
        np.testing.assert_allclose(made["latents"], file["latents"], atol=2e-5)
    main.dispatch(
        ["export", str(tmp_path / "bundle"), "--format", "original", "--to", str(tmp_path / "theirs")]
    )
    state = torch.load(tmp_path / "theirs" / "Wan2.1_VAE.pth", weights_only=True)
    there = foreign("vae", "original")
    assert set(state) == set(there)
    for key, value in there.items():
        np.testing.assert_array_equal(state[key].numpy(), value)


def test_diffusers_reads_a_config_that_we_made(tmp_path):
    """From the authors' layout to diffusers': the config is made from sizes alone."""
    from jaxvid.io.lazy import from_array, write_arrays

    for name, cls in (("skyreels", "SkyReelsV2Transformer3DModel"), ("wan_i2v", "WanTransformer3DModel")):
        source = tmp_path / name
        source.mkdir()
        write_arrays(
            source / "model.safetensors", {k: from_array(v) for k, v in foreign(name, "original").items()}
        )
        (source / "config.json").write_text('{"num_heads": 2}')
        main.dispatch(["import", str(source), "--to", str(tmp_path / f"{name}_in")])
        out = tmp_path / f"{name}_out"
        main.dispatch(["export", str(tmp_path / f"{name}_in"), "--format", "diffusers", "--to", str(out)])
        model = getattr(diffusers, cls).from_pretrained(out / "transformer")
        for key, value in foreign(name).items():
            np.testing.assert_array_equal(model.state_dict()[key].numpy(), value)
