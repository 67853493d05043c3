# SPDX-License-Identifier: Apache-2.0
"""What we write is read by the originals in torch, where they are installed (make interop)."""

import jax
import numpy as np
import pytest

from jaxvid.cli import main
from jaxvid.io.lazy import from_array, write_arrays
from jaxvid.io.pth import write_pth
from tests.interop.seeded import REFERENCES, foreign
from tests.interop.test_import import make_diffusers, sampled

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("dit, name", [("wan", "pipeline"), ("wan_i2v", "pipeline_i2v")])
def test_diffusers_runs_our_export_to_the_same_latents(tmp_path, dit, name):
    """Five steps of the same solver from the same noise: diffusers' pipeline on what we exported, ours on what we hold."""
    from jaxvid.pipeline import Pipeline
    from tests.interop.references import pipeline

    source, bundle, out = make_diffusers(tmp_path / "source", dit), tmp_path / "bundle", tmp_path / "out"
    main.dispatch(["import", str(source), "--to", str(bundle), "--size", "32x48"])
    argv = ["export", str(bundle), "--format", "diffusers", "--to", str(out), "--shard-gb", "0.0005"]
    main.dispatch(argv)
    made = pipeline(out, image=dit == "wan_i2v")
    with np.load(REFERENCES / f"{name}.npz") as file:
        np.testing.assert_allclose(made["latents"], file["latents"], atol=2e-5)
    with jax.default_matmul_precision("highest"):
        ours = np.moveaxis(sampled(Pipeline.load(bundle), made), -1, 1)
    np.testing.assert_allclose(ours, made["latents"], atol=1e-3)
    print(f"latents of {dit}: ours and diffusers' differ by {np.abs(ours - made['latents']).max():.1e}")


def test_torch_reads_our_pth(tmp_path):
    there = foreign("vae", "original")
    write_pth(tmp_path / "w.pth", {key: from_array(value) for key, value in there.items()})
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    assert set(state) == set(there)
    for key, value in there.items():
        np.testing.assert_array_equal(state[key].numpy(), value)


def test_diffusers_reads_a_config_that_we_made(tmp_path):
    """From the authors' layout to diffusers': the config is made from sizes alone."""
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
