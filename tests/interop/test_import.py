# SPDX-License-Identifier: Apache-2.0
"""jaxvid import and export, from a download in either layout to a pipeline that runs, and back."""

import json
import pathlib
import shutil
import struct
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxvid.cli import main
from jaxvid.io.interop import open_weights
from jaxvid.io.lazy import from_array, open_safetensors, write_sharded
from jaxvid.io.pth import write_pth
from jaxvid.io.wan_repo import STATS, open_repo
from jaxvid.types import InputError
from tests.interop.seeded import REFERENCES, foreign, stats

pytest.importorskip("tokenizers")

FOLDERS = {"transformer": "wan", "vae": "vae", "text_encoder": "umt5"}
LICENCE = "the words of a licence\n"


def stored(arrays, dtype=None):
    return {k: from_array(v if dtype is None else v.astype(dtype)) for k, v in arrays.items()}


def dump(path, value):
    path.write_text(json.dumps(value))


def make_diffusers(root, dit="wan", dtype=None, shard=200_000):
    folders = {**FOLDERS, "transformer": dit} | ({"image_encoder": "clip"} if dit == "wan_i2v" else {})
    for folder, name in folders.items():
        (root / folder).mkdir(parents=True)
        stem = "model" if name in ("umt5", "clip") else "diffusion_pytorch_model"
        write_sharded(
            root / folder, stem, stored(foreign(name), dtype if folder == "transformer" else None), shard
        )
    kind = "SkyReelsV2Transformer3DModel" if dit == "skyreels" else "WanTransformer3DModel"
    dump(root / "transformer" / "config.json", {"_class_name": kind, "num_attention_heads": 2, "eps": 1e-6})
    mean, std = stats("vae")
    vae = {"_class_name": "AutoencoderKLWan", "latents_mean": mean, "latents_std": std}
    dump(root / "vae" / "config.json", vae)
    dump(root / "text_encoder" / "config.json", {"model_type": "umt5", "vocab_size": 96})
    if "image_encoder" in folders:
        dump(
            root / "image_encoder" / "config.json",
            {"model_type": "clip_vision_model", "num_attention_heads": 4},
        )
    shutil.copytree(REFERENCES / "tokenizer", root / "tokenizer")
    (root / "LICENSE.txt").write_text(LICENCE)
    return root


def make_original(root):
    root.mkdir(parents=True)
    write_sharded(root, "diffusion_pytorch_model", stored(foreign("wan", "original")), 1 << 30)
    dump(root / "config.json", {"_class_name": "WanModel", "num_heads": 2, "dim": 64, "eps": 1e-6})
    write_pth(root / "Wan2.1_VAE.pth", stored(foreign("vae", "original")))
    write_pth(
        root / "models_t5_umt5-xxl-enc-bf16.pth", stored(foreign("umt5", "original"), ml_dtypes.bfloat16)
    )
    shutil.copytree(REFERENCES / "tokenizer", root / "google" / "umt5-xxl")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("import")


@pytest.fixture(scope="module")
def bundle(root):
    """The tiny pipeline, imported from diffusers' layout."""
    source = make_diffusers(root / "diffusers")
    main.dispatch(["import", str(source), "--to", str(root / "bundle"), "--size", "32x48"])
    return root / "bundle"


def test_both_layouts_make_the_same_bundle(root, bundle, capsys):
    main.dispatch(
        ["import", str(make_original(root / "original")), "--to", str(root / "other"), "--size", "32x48"]
    )
    said = capsys.readouterr().out
    assert "dit: original layout, 96/96 keys matched, 0 unused" in said
    assert "licence: Apache-2.0" in said and said.splitlines()[-1] == str(root / "other")
    for file in ("model", "vae"):
        one, two = (open_safetensors(at / f"{file}.safetensors") for at in (bundle, root / "other"))
        assert set(one) == set(two)
        for name in one:
            np.testing.assert_array_equal(
                one[name].read().astype(np.float32), two[name].read().astype(np.float32)
            )
    assert two["stats/mean"].read().tolist() == pytest.approx([float(x) for x in STATS[16][0].split()])
    model = open_safetensors(root / "other" / "model.safetensors")
    assert model["text_encoder/blocks/q/kernel"].dtype == ml_dtypes.bfloat16  # as it came


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_export_is_what_was_imported_bit_for_bit(root, bundle, layout, capsys):
    out = root / f"out_{layout}"
    main.dispatch(["export", str(bundle), "--format", layout, "--to", str(out), "--shard-gb", "0.0005"])
    assert "licence: Apache-2.0" in capsys.readouterr().out
    assert (out / "LICENSE.txt").read_text() == LICENCE
    for folder, name in FOLDERS.items():
        if layout == "diffusers":
            file = next(iter(sorted((out / folder).glob("*.index.json"))), None)
            file = file or next((out / folder).glob("*.safetensors"))
        else:
            file = {
                "wan": "diffusion_pytorch_model*.index.json",
                "vae": "Wan2.1_VAE.pth",
                "umt5": "models_t5*.pth",
            }
            file = next(out.glob(file[name]))
        weights = open_weights(file)
        assert weights.layout == layout
        there = foreign(name)
        assert set(weights.arrays) == set(there)
        for key, value in there.items():
            np.testing.assert_array_equal(weights.arrays[key].read(), value)
    # and it can be imported again, sizes coming from weights and the configs that were written
    main.dispatch(["import", str(out), "--to", str(root / f"again_{layout}"), "--size", "32x48"])
    one, two = ((at / "model.safetensors").read_bytes() for at in (bundle, root / f"again_{layout}"))
    assert one == two


def sampled(pipe, reference):
    """Latents that our parts make of a reference's prompt, image, noise and levels."""
    from jaxvid.diffusion import guidance
    from jaxvid.run import _told
    from jaxvid.sampling.plan import together
    from jaxvid.sampling.sample import sample
    from jaxvid.sampling.solvers import by_name

    engine = pipe.engine
    prompt, negative = (str(reference[name]) for name in ("prompt", "negative"))
    image = {"image": reference["picture"]} if "picture" in reference else {}
    run = pipe.prepare(prompt, negative=negative, seconds=9 / 16, **image)
    told = _told(engine, run.request, run.given, [prompt, negative], 3)
    model = engine.model.clone(dit=engine.model.dit.clone(whole_levels=False))
    params = engine.weights("params")

    def network(x, t, cond, memory):
        return model.apply({"params": params}, x, t, cond, memory)

    cond = {name: told[name] for name in ("text", "text_mask", "span")} | told["more"]
    cond = jax.tree.map(jnp.asarray, cond)
    null = jax.tree.map(jnp.asarray, told["null"])
    pair = guidance.doubled(engine.process, network, cond, null)
    denoise = guidance.classifier_free(pair, reference["guidance"])
    times = np.concatenate([[1.0], reference["sigmas"]]).astype(np.float32)
    noise = jnp.asarray(np.moveaxis(reference["noise"], 1, -1))
    return np.asarray(jax.jit(lambda x: sample(denoise, by_name("euler"), together(5, 3), times, x))(noise))


@pytest.mark.parametrize("name", ["pipeline", "pipeline_i2v"])
def test_the_pipeline_is_the_original_one(root, bundle, name):
    """Tokens, text encoder, image encoder, guidance, five Euler steps and the decoder, from the noise of the reference: the
    same latents and frames as diffusers' pipelines."""
    from jaxvid.pipeline import Pipeline

    with np.load(REFERENCES / f"{name}.npz") as file:
        reference = dict(file)
    if name == "pipeline_i2v":
        source, bundle = make_diffusers(root / "i2v", "wan_i2v"), root / "i2v_bundle"
        main.dispatch(["import", str(source), "--to", str(bundle), "--size", "32x48"])
    pipe = Pipeline.load(bundle)
    with jax.default_matmul_precision("highest"):
        latents = sampled(pipe, reference)
    np.testing.assert_allclose(np.moveaxis(latents, -1, 1), reference["latents"], atol=1e-3)
    clip = pipe.decode(latents[0])
    theirs = np.moveaxis(reference["video"][0], 0, -1)
    assert clip.frames.shape == (9, 32, 48, 3)
    assert np.abs(clip.frames / 127.5 - 1 - theirs).max() < 1.5 / 127.5
    if name == "pipeline_i2v":
        made = pipe("a cat runs", seconds=9 / 16, steps=1, guidance=1, image=reference["picture"])
        assert np.isfinite(made.latents).all() and made.latents.shape == (3, 4, 6, 16)
        with pytest.raises(InputError, match="give image"):
            pipe("a cat runs", seconds=9 / 16)


def test_a_pipeline_runs_saves_and_keeps_an_image(bundle, root):
    from jaxvid.pipeline import Pipeline

    pipe = Pipeline.load(bundle)
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    clip = pipe("a cat runs", seconds=9 / 16, steps=2, image=image)
    assert clip.frames.shape == (9, 32, 48, 3) and clip.latents.shape == (3, 4, 6, 16)
    assert clip.recipe["solver"] == "unipc" and clip.recipe["negative"].startswith("色调")
    np.testing.assert_array_equal(clip.latents[0], pipe.encode(np.repeat(image[None], 29, 0))[0])
    pipe.save(root / "saved")
    assert (root / "saved" / "LICENSE.txt").read_text() == LICENCE
    again = Pipeline.load(root / "saved")("a cat runs", seconds=9 / 16, steps=2, image=image)
    np.testing.assert_array_equal(again.latents, clip.latents)


def test_bfloat16_is_kept_and_forced_frames_go_on(root):
    """SkyReels' weights in half precision: kept so, computed so, and rolled out window by window with their rate."""
    from jaxvid.pipeline import Pipeline

    source = make_diffusers(root / "sky", "skyreels", ml_dtypes.bfloat16)
    main.dispatch(["import", str(source), "--to", str(root / "sky_bundle"), "--size", "16x16"])
    spec = json.loads((root / "sky_bundle" / "pipeline.json").read_text())
    assert (
        spec["imported"]["licence"].startswith("SkyReels")
        and "SkyReels" in (root / "sky_bundle/README.md").read_text()
    )
    assert spec["model"]["dit"]["rate"] == 1 and spec["defaults"]["dtype"] == "bfloat16"
    pipe = Pipeline.load(root / "sky_bundle")
    assert pipe.engine.params["dit"]["blocks"]["self"]["q"]["kernel"].dtype == ml_dtypes.bfloat16
    clip = pipe("a cat runs", seconds=125 / 24, steps=1, guidance=1)
    assert len(clip) == 125 and clip.recipe["method"] == "rollout"
    assert np.isfinite(clip.latents).all() and clip.latents.shape[0] == 32


def test_weights_go_leaf_by_leaf_to_where_the_mesh_says(bundle):
    from jaxvid.config import SAFE, build
    from jaxvid.imports import abstract, described, place, stored_part
    from jaxvid.io.weights import flatten
    from jaxvid.sharding import make_mesh, params_sharding

    networks, _, whole = described(bundle)
    arrays = stored_part(bundle, "dit", whole)
    where = params_sharding(make_mesh(), abstract("dit", build(networks["dit"], SAFE)))
    placed, where = flatten(place(arrays, where)), flatten(where)
    assert set(placed) == set(arrays) == set(where)
    for name, value in placed.items():
        assert value.sharding.is_equivalent_to(where[name], value.ndim)
        np.testing.assert_array_equal(value, arrays[name].read())


def test_verify_prints_and_fails(root, bundle, capsys, tmp_path):
    source = root / "diffusers" / "transformer"
    to = tmp_path / "part"
    assert main.call(["import", str(source), "--to", str(to), "--verify", str(REFERENCES / "wan.npz")]) == 0
    said = capsys.readouterr().out
    assert "t_per_token" in said and "ABOVE" not in said and (to / "parts.json").is_file()
    cases = dict(np.load(REFERENCES / "wan.npz"))
    wrong = {k: v + 1e-3 * k.startswith("image/out") for k, v in cases.items() if k.startswith("image/")}
    np.savez(tmp_path / "wrong.npz", **wrong)
    shutil.rmtree(to)
    assert main.call(["import", str(source), "--to", str(to), "--verify", str(tmp_path / "wrong.npz")]) == 2
    assert "ABOVE" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: shutil.rmtree(p / "tokenizer"), "tokenizer"),
        (lambda p: (p / "tokenizer" / "tokenizer.json").write_text("{}"), "is not a tokenizer"),
        (lambda p: shutil.rmtree(p / "vae"), "^dit"),
        (lambda p: _cut(next((p / "transformer").glob("*-00002-of-*"))), "truncated"),
        (lambda p: next((p / "transformer").glob("*-00002-of-*")).unlink(), "which is not there"),
        (lambda p: (p / "transformer" / "config.json").write_text("{"), "is not JSON"),
        (lambda p: dump(p / "transformer" / "config.json", {"num_attention_heads": 7}), "do not divide"),
        (
            lambda p: dump(p / "transformer" / "config.json", {"num_attention_heads": 0}),
            "0 heads do not divide",
        ),
        (
            lambda p: dump(p / "transformer" / "config.json", {"num_attention_heads": 2, "eps": None}),
            "eps None",
        ),
        (lambda p: dump(p / "transformer" / "config.json", [1]), "holds a list"),
        (lambda p: (p / "vae" / "config.json").unlink(), None),
        (lambda p: _nan(p), "holds NaN"),
        (lambda p: (p / "transformer_2").mkdir(), "two experts"),
        (lambda p: _wrong_index(p / "transformer"), "disagree about"),
        (lambda p: _twice(_shard(p)), "header is not JSON"),
        (
            lambda p: _shard(p).write_bytes(struct.pack("<Q", 1 << 40) + _shard(p).read_bytes()[8:]),
            "truncated",
        ),
        (lambda p: _shape(p), "quant_conv.bias is (31,) instead of (32,)"),
        (lambda p: _code(p), "weights_only=True"),
        (lambda p: _cut(_pth(p)), "truncated"),
    ],
)
def test_damage_is_told_in_one_line_and_leaves_nothing(tmp_path, damage, message, capsys):
    source = make_diffusers(tmp_path / "source")
    damage(source)
    code = main.call(["import", str(source), "--to", str(tmp_path / "to")])
    said = capsys.readouterr()
    if message is None or message.startswith("^"):
        assert code == 0 and (message is None or said.out.startswith(message[1:]))
        return
    assert code == 2 and message in said.err and said.err.count("\n") == 1, said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def _cut(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[:-100])


def _shard(root: pathlib.Path) -> pathlib.Path:
    return next((root / "transformer").glob("*-00001-of-*"))


def _wrong_index(folder: pathlib.Path):
    """A key is said to be in another shard than it is in."""
    file = next(folder.glob("*.index.json"))
    index = json.loads(file.read_text())
    one, other = sorted(set(index["weight_map"].values()))[:2]
    key = next(key for key, where in index["weight_map"].items() if where == one)
    index["weight_map"][key] = other
    dump(file, index)


def _twice(path: pathlib.Path):
    """A header with the same name twice."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].rstrip()
    again = json.dumps(dict([next(iter(json.loads(header).items()))])).encode()
    header = header[:-1] + b"," + again[1:]
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def _shape(root: pathlib.Path):
    arrays = foreign("vae")
    arrays["quant_conv.bias"] = arrays["quant_conv.bias"][:-1]
    shutil.rmtree(root / "vae")
    (root / "vae").mkdir()
    write_sharded(root / "vae", "diffusion_pytorch_model", stored(arrays), 200_000)


def _pth(root: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(root / "vae")
    write_pth(root / "Wan2.1_VAE.pth", stored(foreign("vae", "original")))
    return root / "Wan2.1_VAE.pth"


def _code(root: pathlib.Path):
    """A .pth whose program would run a command."""
    with zipfile.ZipFile(_pth(root), "w") as file:
        file.writestr("w/data.pkl", b"cos\nsystem\n(S'touch ran'\ntR.")


def _nan(root: pathlib.Path):
    arrays = foreign("vae")
    arrays["quant_conv.bias"][0] = np.nan
    write_sharded(root / "vae", "diffusion_pytorch_model", stored(arrays), 200_000)


def test_single_networks_are_said_to_be_no_pipeline(root, bundle, tmp_path, capsys):
    argv = ["import", str(root / "diffusers" / "transformer"), "--to", str(tmp_path / "part")]
    assert main.call([*argv, "--verify", str(tmp_path / "none.npz")]) == 2
    assert "no file of references" in capsys.readouterr().err and not (tmp_path / "part").exists()
    assert main.call(argv) == 0
    assert "single networks and no pipeline: vae, umt5 not there" in capsys.readouterr().out
    assert main.call(["generate", "a cat", "--checkpoint", str(tmp_path / "part")]) == 2
    assert "holds single networks" in capsys.readouterr().err


def test_sizes_that_do_not_divide_are_refused(root, tmp_path, capsys):
    argv = ["import", str(root / "diffusers"), "--to", str(tmp_path / "odd"), "--size", "33x48"]
    assert main.call(argv) == 2
    assert "33x48 is not a multiple of 16x16" in capsys.readouterr().err and not (tmp_path / "odd").exists()


def test_keys_that_are_missing_fail_unless_told_otherwise(tmp_path, capsys):
    arrays = foreign("umt5")
    arrays["encoder.final_layer_norm.weigth"] = arrays.pop("encoder.final_layer_norm.weight")
    (tmp_path / "source").mkdir()
    write_sharded(tmp_path / "source", "model", stored(arrays), 1 << 30)
    argv = ["import", str(tmp_path / "source"), "--to", str(tmp_path / "to")]
    assert main.call(argv) == 2
    assert "31/32 keys matched" in (said := capsys.readouterr().err) and "closest" in said
    assert main.call([*argv, "--partial"]) == 0
    assert not open_safetensors(tmp_path / "to" / "umt5.safetensors")["norm/scale"].read().any()


def test_a_family_that_the_tensors_contradict_is_refused(tmp_path):
    sky = make_diffusers(tmp_path / "sky", dit="skyreels")
    assert open_repo(sky).family == open_repo(sky, "skyreels").family == "skyreels"
    with pytest.raises(InputError, match="--family wan21-14b, but the tensors are those of skyreels"):
        open_repo(sky, "wan21-14b")
    plain = make_diffusers(tmp_path / "plain")
    assert (
        open_repo(plain, "skyreels").family == "skyreels"
    )  # some of SkyReels' differ from Wan's by their name only
    with pytest.raises(InputError, match="--family wan22-5b"):
        open_repo(plain, "wan22-5b")


def test_a_config_without_a_class_is_its_folders(tmp_path):
    source = make_diffusers(tmp_path / "plain")
    mean, std = [0.5] * len(stats("vae")[0]), stats("vae")[1]
    dump(source / "vae" / "config.json", {"latents_mean": mean, "latents_std": std})
    assert open_repo(source).parts["vae"].config["latents_mean"] == mean
