# SPDX-License-Identifier: Apache-2.0
"""Traps of the libraries that we stand on, each with the test that keeps us out of it."""

import ast
import configparser
import json
import pathlib
import re
import tomllib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxvid
from jaxvid.types import InputError

ROOT = pathlib.Path(__file__).parents[1]


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def requirements() -> dict[str, str]:
    """name -> lower bound of what an installation pulls in."""
    lines = setup_cfg()["options"]["install_requires"].split("\n")
    found = [
        re.fullmatch(r"([\w.-]+)>=([\w.]+)", line) for line in lines if line and not line.startswith("#")
    ]
    assert all(found), f"lower bounds only: {lines}"
    return {one[1].lower().replace("_", "-"): one[2] for one in found}


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:4])


def calls(*tops: str):
    """Every call in the library's source: (where, name of what is called, the syntax node)."""
    for top in tops:
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


# jax


def test_meshes_always_say_their_axis_types():
    # jax.make_mesh defaults to Explicit axes, under which an attention-shaped einsum raises a ShardingTypeError.
    makers = ("jax.make_mesh", "jax.sharding.Mesh", "Mesh", "sharding.Mesh", "jax.sharding.AbstractMesh")
    bad = [
        where
        for where, name, node in calls("jaxvid", "pallas_kernels", "configs", "experiments", "tests")
        if name in makers and not any(word.arg == "axis_types" for word in node.keywords)
    ]
    assert not bad, f"a mesh without axis_types: {bad}"


def test_our_mesh_is_auto():
    from jaxvid.sharding import make_mesh

    assert set(make_mesh().axis_types) == {jax.sharding.AxisType.Auto}


def test_the_oldest_jax_still_runs_on_the_oldest_python():
    assert setup_cfg()["options"]["python_requires"] == ">=3.11"
    assert as_numbers(requirements()["jax"]) <= (0, 10, 2), "jax 0.10.2 is the last one for Python 3.11"


# imports


def test_no_module_imports_tensorflow_or_torch_or_touches_a_device(run_python):
    said = run_python("""
import json, pkgutil, sys, importlib, importlib.abc
tried = []
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split('.')[0] in ('tensorflow', 'torch', 'clu', 'wandb', 'transformers', 'IPython', 'matplotlib'):
            tried.append(name)
sys.meta_path.insert(0, Watch())
import jaxvid
modules = [one.name for one in pkgutil.walk_packages(jaxvid.__path__, 'jaxvid.')]
for name in modules:
    if not name.endswith('__main__'):
        importlib.import_module(name)
from jax._src import xla_bridge
print(json.dumps({'tried': tried, 'modules': len(modules), 'device': xla_bridge.backends_are_initialized()}))
""")
    said = json.loads(said.splitlines()[-1])
    assert said["modules"] > 40
    assert said["tried"] == []
    assert said["device"] is False


# data


def test_batches_can_be_read_where_nobody_parsed_absl_flags(run_python):
    # Grain's worker processes die in notebooks, where absl's flags are not parsed and argv is Jupyter's. We read with
    # threads, and an iterator that was closed, or forgotten, does not keep the interpreter from leaving.
    said = run_python(
        """
import sys
sys.argv = ['ipykernel_launcher.py', '-f', 'kernel.json']
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.data.shapes.source import ShapesSource
source, bucket = ShapesSource('train', size=8), Bucket(5, 32, 32, 2)
with batches(source, [bucket], fps=16, seed=0) as it:
    video, cond = next(it)
print(video.x.shape)
forgotten = batches(source, [bucket], fps=16, seed=0)
next(forgotten)
print('left')
""",
        timeout=120,
    )
    assert said.splitlines() == ["(2, 5, 32, 32, 3)", "left"]


def test_grain_workers_are_threads():
    bad = [
        where
        for where, name, _ in calls("jaxvid")
        if name.split(".")[-1] in ("mp_prefetch", "MultiprocessingOptions")
    ]
    assert not bad, f"worker processes need flags.FLAGS.mark_as_parsed() first: {bad}"


def test_what_tensorflow_datasets_forgets_to_declare_is_declared():
    assert {"tensorflow-datasets", "importlib-resources"} <= set(requirements())
    import importlib_resources

    assert importlib_resources.files("jaxvid").joinpath("py.typed").is_file()


# files


@pytest.mark.parametrize("size", [(33, 32), (32, 33), (1, 1)])
def test_odd_sizes_are_refused_with_the_nearest_even_one(tmp_path, size):
    from jaxvid.io.video_file import VideoWriter

    height, width = size
    with pytest.raises(InputError, match=rf"{width + width % 2}|{height + height % 2}"):
        with VideoWriter(tmp_path / "odd.mp4", fps=16, height=height, width=width) as writer:
            writer.append(np.zeros((2, height, width, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_files_are_h264_and_say_their_colours(tmp_path):
    import av

    from jaxvid.io.video_file import VideoWriter

    with VideoWriter(tmp_path / "a.mp4", fps=16, height=32, width=48) as writer:
        writer.append(np.full((7, 32, 48, 3), (230, 40, 40), np.uint8))
    with av.open(str(tmp_path / "a.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        # 1 is BT.709 in all three tables: an untagged file is off by up to 40 of 255 in some players
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 7
    assert np.abs(np.stack(frames).astype(int) - (230, 40, 40)).max() <= 3


def test_no_codec_that_browsers_do_not_play():
    used = [
        (where, ast.unparse(node)) for where, name, node in calls("jaxvid") if name.endswith("add_stream")
    ]
    assert used, "nothing in the library writes video any more?"
    bad = [where for where, code in used if re.search(r"mp4v|mpeg4|FMP4", code)]
    assert not bad, f"mp4v: {bad}"


def test_trackers_hand_over_files_and_never_arrays():
    # W&B and TensorBoard want moviepy for arrays; an encoded file needs nothing.
    given = [
        (where, ast.unparse(node.args[0]))
        for where, name, node in calls("jaxvid")
        if name.endswith("wandb.Video")
    ]
    bad = [where for where, what in given if not re.search(r"path|str\(|file|BytesIO", what)]
    assert not bad, f"an array goes to W&B: {bad}"
    assert not [where for where, name, _ in calls("jaxvid") if name.endswith(".add_video")]


def test_bfloat16_weights_make_no_detour_through_float16(tmp_path):
    from jaxvid.io.weights import load_weights, save_weights

    wide = jnp.asarray([1e30, -3e-30, 65536.0, 1.0], jnp.bfloat16)  # none of the first three fits float16
    save_weights(tmp_path / "w.safetensors", {"a": {"b": wide}})
    back = load_weights(tmp_path / "w.safetensors")["a"]["b"]
    assert np.asarray(back).dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(np.asarray(back).view(np.uint16), np.asarray(wide).view(np.uint16))


# the package


def test_pyproject_stands_beside_setup_cfg():
    # setup.cfg alone is "not a Python project" for pip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["build-system"]["build-backend"] == "setuptools.build_meta"


def test_one_version_everywhere():
    version = setup_cfg()["metadata"]["version"]
    assert jaxvid.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "constraints").glob("py*.txt")), ids=lambda path: path.name)
def test_the_pins_satisfy_the_lower_bounds(path):
    lines = [line.split("==") for line in path.read_text().split("\n") if line and not line.startswith("#")]
    pins = {name.lower().replace("_", "-"): version for name, version in lines}
    for name, bound in requirements().items():
        assert name in pins, f"{path.name} does not pin {name}"
        assert as_numbers(pins[name]) >= as_numbers(bound), f"{path.name} pins {name} below {bound}"


def test_what_is_shipped_is_packed():
    data = setup_cfg()["options.package_data"]["jaxvid"].split()
    assert {"py.typed", "assets/**"} <= set(data)
    assert (ROOT / "jaxvid" / "py.typed").exists()
    assets = [path for path in (ROOT / "jaxvid" / "assets").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in assets) <= 64e6, "the shipped models outgrew 64 MB"
