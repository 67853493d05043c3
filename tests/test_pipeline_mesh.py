# SPDX-License-Identifier: Apache-2.0
"""The same seed and prompt give the same video on 1, 2 and 8 devices, however they are laid out, up to rounding."""

import json

import pytest

MESHES = {
    "rows, 2": dict(data=2),
    "frames, 2": dict(data=1, sequence=2),
    "frames, 8": dict(data=1, sequence=8),
    "all, 8": dict(data=1, fsdp=2, tensor=2, sequence=2),
}

RUN = """
import json, jax, numpy as np
from jaxvid.pipeline import Pipeline
from jaxvid.sharding import make_mesh
from jaxvid.types import InputError
from tests.toy_pipeline import FPS, toy_pipeline

jax.config.update("jax_disable_most_optimizations", True)
one = toy_pipeline()
asked = dict(prompt="a red star", seconds=61 / FPS, seed=3, steps=2)  # 16 latent frames, decoded in two pieces
want, found = one(**asked), {}
latents = (16 * want.latents).astype(np.float32)  # so large that a wrong frame shows
decoded = one.decode(latents).frames.astype(int)
for name, sizes in MESHES.items():
    count = int(np.prod(list(sizes.values())))
    mesh = make_mesh(**sizes, devices=jax.devices()[:count])
    pipe = Pipeline(one.spec, one.engine.params, one.engine.variables, mesh=mesh)
    got = pipe(**asked)
    apart = np.abs(got.latents - want.latents).max() / np.abs(want.latents).max()
    pixels = np.abs(got.frames.astype(int) - want.frames).max()
    again = np.abs(pipe.decode(latents).frames - decoded).max()
    weights = jax.tree.leaves(pipe.engine.weights("params"))
    cut = sum(leaf.addressable_shards[0].data.size for leaf in weights) / sum(leaf.size for leaf in weights)
    found[name] = [float(apart), int(pixels), int(again), cut]
try:
    three = make_mesh(1, sequence=3, devices=jax.devices()[:3])
    Pipeline(one.spec, one.engine.params, one.engine.variables, mesh=three)(**asked)
except InputError as error:
    found["refusal"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(run_python):
    return json.loads(run_python(f"MESHES = {MESHES}\n{RUN}", devices=8, timeout=1200).splitlines()[-1])


@pytest.mark.parametrize("name", MESHES)
def test_the_same_video_on_any_mesh(found, name):
    latents, pixels, decoded, _ = found[name]
    assert latents < 1e-4, "relative to the largest latent, float32"
    assert pixels <= 1 and decoded <= 1, "of 255"


def test_weights_are_cut_by_fsdp_and_tensor(found):
    assert found["frames, 2"][3] == 1
    assert found["all, 8"][3] < 0.5


def test_frames_that_do_not_divide_are_refused_before_sampling(found):
    assert found["refusal"].startswith("16 latent frames do not divide among the 3 devices")
    assert found["refusal"].endswith("use sequence=2, or another length")
