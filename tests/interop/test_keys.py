# SPDX-License-Identifier: Apache-2.0
"""Names and layouts: every foreign key has one place and comes back from it bit for bit, at tiny and at real size."""

import jax
import numpy as np
import pytest

from jaxvid.imports import table_of
from jaxvid.io.interop import Weights, check, compare, convert, convert_back, open_weights
from jaxvid.io.lazy import from_array, write_arrays, write_sharded
from jaxvid.io.pth import open_pth, write_pth
from jaxvid.io.wan_keys import FOREIGN, foreign_keys, foreign_shape, layout_of, part_of, plain, rename
from jaxvid.io.wan_repo import Part, describe
from jaxvid.types import InputError
from tests.interop.seeded import DIT, KEYS, NODES, VAE, foreign, table

LAYOUTS = ("diffusers", "original")


@pytest.mark.parametrize("name", NODES)
def test_keys_and_shapes_are_those_of_the_original_implementation(name):
    """Held against lists that the torch models wrote of themselves."""
    ours = {key: list(value.shape) for key, value in foreign(name).items()}
    assert ours == KEYS[name]["shapes"]
    part = NODES[name][0]
    for original, diffusers in KEYS[name]["original_to_diffusers"].items():
        assert rename(part, original, "diffusers") == diffusers
        assert rename(part, diffusers, "original") == original
    if name == "clip":  # of which the authors' layout is not read
        return
    for layout, keys in zip(LAYOUTS, (set(ours), set(KEYS[name]["original_to_diffusers"])), strict=True):
        assert part_of(keys) == part and layout_of(part, keys) == layout


@pytest.mark.parametrize("name", NODES)
def test_there_and_back_is_the_same_bit_for_bit(name, tmp_path):
    leaves, shapes = table(name)
    for layout in LAYOUTS:
        arrays = foreign(name, layout)
        write_arrays(tmp_path / "w.safetensors", {k: from_array(v) for k, v in arrays.items()})
        weights = open_weights(tmp_path / "w.safetensors")
        assert check(compare(leaves, shapes, weights.arrays), name).matched == len(arrays)
        mine = convert(leaves, shapes, weights)
        assert {n: a.read().shape for n, a in mine.items()} == shapes
        back = convert_back(leaves, mine, weights.part, layout)
        assert set(back) == set(arrays)
        for key, value in arrays.items():
            assert back[key].shape == value.shape
            np.testing.assert_array_equal(back[key].read(), value)


@pytest.mark.parametrize("lies", FOREIGN)
def test_axes_turn_back(lies):
    shape = {"conv": (3, 2, 1, 4, 5), "patch": (12, 5), "table": (6, 5)}.get(lies, (4, 5))
    shape = (7,) if lies.endswith("norm") else shape
    theirs_of, ours_of, back = FOREIGN[lies]
    a = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    there = back(a, theirs_of(shape))
    assert there.shape == tuple(theirs_of(shape))
    np.testing.assert_array_equal(ours_of(there), a)


def _dit(**sizes):
    return "dit", {**DIT, "head": 128, "text_width": 4096, "level_channels": 256, **sizes}


REAL = {  # keys and parameters, counted on the originals
    "1.3B": (*_dit(width=1536, layers=30, hidden=8960), 825, 1_418_996_800),
    "14B": (*_dit(width=5120, layers=40, hidden=13824), 1095, 14_288_491_584),
    "TI2V-5B": (*_dit(width=3072, layers=30, hidden=14336, channels=48), 825, 4_999_787_712),
    "I2V-14B": (
        *_dit(width=5120, layers=40, hidden=13824, beside=20, image_width=1280),
        1303,
        16_394_878_784,
    ),
    "SkyReels-1.3B": (*_dit(width=1536, layers=30, hidden=8960, rates=2), 830, 1_435_525_696),
    "VAE 2.1": ("vae", {**VAE, "base": 96}, 194, 126_892_531),
    "VAE 2.2": (
        "vae",
        {**VAE, "base": 160, "dec_base": 256, "z": 48, "patch": 2, "residual": True},
        196,
        None,
    ),
    "UMT5-XXL": ("umt5", {"kind": "jaxvid.models.umt5:UMT5Encoder"}, 242, None),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sizes_have_the_real_number_of_keys_and_parameters(name):
    part, node, keys, parameters = REAL[name]
    leaves, shapes = table_of(part, node)
    found = [key for leaf in leaves for key in foreign_keys(leaf, shapes[leaf.name])]
    assert len(found) == len(set(found)) == keys
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    assert parameters is None or count == parameters
    assert (
        sum(
            int(np.prod(foreign_shape(leaf, shapes[leaf.name]))) * len(foreign_keys(leaf, shapes[leaf.name]))
            for leaf in leaves
        )
        == count
    )


def test_presets_are_the_real_sizes():
    from jaxvid.models import umt5, video_vae, wan_dit

    for preset, name in (
        (wan_dit.wan21_1_3b, "1.3B"),
        (wan_dit.wan21_14b, "14B"),
        (wan_dit.wan22_ti2v_5b, "TI2V-5B"),
        (wan_dit.wan21_i2v_14b, "I2V-14B"),
        (wan_dit.skyreels_1_3b, "SkyReels-1.3B"),
    ):
        made = preset()
        for field in ("width", "layers", "hidden", "head", "channels", "beside", "image_width", "rates"):
            assert getattr(made, field) == REAL[name][1].get(field, getattr(wan_dit.WanDiT(), field)), (
                name,
                field,
            )
    assert video_vae.wan22().dec_base == REAL["VAE 2.2"][1]["dec_base"]
    assert umt5.umt5_xxl().width == 4096


def test_names_of_wrappers_are_taken_off_and_others_are_left():
    assert plain("model.diffusion_model.blocks.0.norm3.weight") == "blocks.0.norm3.weight"
    assert plain("blocks.1._fsdp_wrapped_module.ffn.0.bias") == "blocks.1.ffn.0.bias"
    assert rename("dit", "something.else", "diffusers") == "something.else"
    with pytest.raises(InputError, match="no weights of Wan"):
        part_of({"a.weight"})


def test_what_does_not_fit_is_told_with_the_closest_name():
    leaves, shapes = table("wan")
    arrays = {key: from_array(value) for key, value in foreign("wan").items()}
    arrays["blocks.0.ffn.net.0.prol.weight"] = arrays.pop("blocks.0.ffn.net.0.proj.weight")
    arrays["blocks.1.attn1.to_q.bias"] = from_array(np.zeros(7, np.float32))
    report = compare(leaves, shapes, arrays)
    assert not report.whole and report.matched == report.wanted - 2
    text = "; ".join(report.lines())
    assert "missing blocks.0.ffn.net.0.proj.weight (closest: blocks.0.ffn.net.0.prol.weight)" in text
    assert "blocks.1.attn1.to_q.bias is (7,) instead of (64,)" in text
    with pytest.raises(InputError, match="94/96 keys matched"):
        check(report, "w")
    with pytest.raises(InputError):  # a wrong shape is never let pass
        check(report, "w", partial=True)
    del arrays["blocks.1.attn1.to_q.bias"]
    assert check(compare(leaves, shapes, arrays), "w", partial=True).matched == 94


def test_a_transformer_of_first_and_last_frames_is_refused(tmp_path):
    """Rather than run with a table of places that nothing reads."""
    arrays = {**foreign("wan_i2v", "original"), "img_emb.emb_pos": np.zeros((1, 514, 40), np.float32)}
    write_arrays(tmp_path / "w.safetensors", {k: from_array(v) for k, v in arrays.items()})
    with pytest.raises(InputError, match="FLF2V"):
        describe(Part(open_weights(tmp_path / "w.safetensors"), {"num_heads": 2}))


def test_not_a_number_is_named():
    leaves, shapes = table("umt5")
    arrays = foreign("umt5")
    arrays["encoder.block.1.layer.0.SelfAttention.q.weight"][0, 0] = np.nan
    made = convert(
        leaves, shapes, Weights("umt5", "diffusers", {k: from_array(v) for k, v in arrays.items()}, "w")
    )
    made["norm/scale"].read()
    with pytest.raises(InputError, match=r"encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight holds NaN"):
        made["blocks/q/kernel"].read()


def test_shards_are_one_file_and_disagreement_is_told(tmp_path):
    arrays = {key: from_array(value) for key, value in foreign("umt5").items()}
    files = write_sharded(tmp_path, "model", arrays, 20_000)
    assert len(files) > 5
    together = open_weights(tmp_path / "model.safetensors.index.json").arrays
    assert set(together) == set(arrays)
    for key, value in arrays.items():
        np.testing.assert_array_equal(together[key].read(), value.read())
    files[1].rename(tmp_path / "away")
    with pytest.raises(InputError, match="names .* which is not there"):
        open_weights(tmp_path / "model.safetensors.index.json")
    files[0].rename(files[1])
    with pytest.raises(InputError):
        open_weights(tmp_path / "model.safetensors.index.json")


def test_two_tables_of_tokens_must_be_equal(tmp_path):
    arrays = foreign("umt5")
    twice = {**arrays, "encoder.embed_tokens.weight": arrays["shared.weight"]}
    write_arrays(tmp_path / "same.safetensors", {k: from_array(v) for k, v in twice.items()})
    assert set(open_weights(tmp_path / "same.safetensors").arrays) == set(arrays)
    twice["encoder.embed_tokens.weight"] = arrays["shared.weight"] + 1
    write_arrays(tmp_path / "other.safetensors", {k: from_array(v) for k, v in twice.items()})
    with pytest.raises(InputError, match="two token tables"):
        open_weights(tmp_path / "other.safetensors")


def test_pth_is_the_same_as_safetensors(tmp_path):
    import ml_dtypes

    arrays = foreign("vae", "original")
    low = {k: v.astype(ml_dtypes.bfloat16) for k, v in arrays.items()}
    for kind, held in (("f32", arrays), ("bf16", low)):
        write_pth(tmp_path / f"{kind}.pth", {k: from_array(v) for k, v in held.items()})
        back = open_pth(tmp_path / f"{kind}.pth")
        assert list(back) == list(held)
        for key, value in held.items():
            assert back[key].dtype == value.dtype
            np.testing.assert_array_equal(back[key].read(), value)
    weights = open_weights(tmp_path / "f32.pth")
    assert (weights.part, weights.layout) == ("vae21", "original")
    assert jax.tree.structure(dict.fromkeys(weights.arrays)) == jax.tree.structure(
        dict.fromkeys(foreign("vae"))
    )
