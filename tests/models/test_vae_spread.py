# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's stream with frames cut among devices says what one device says, backwards too."""

import json

RUN = """
import functools, json, jax, jax.numpy as jnp, numpy as np
from jaxvid.models.vae_spread import chunk
from jaxvid.sharding import make_mesh, spread
from tests.models.test_video_vae import MODELS, variables_of

jax.config.update("jax_disable_most_optimizations", True)
draw = lambda *shape: np.random.default_rng(shape).standard_normal(shape).astype(np.float32)

def stream(vae, method, mesh, variables, start, pieces):
    # a sum that weighs every number of every piece differently, so that its gradient sees them all
    total, memory, outs = 0.0, None, []
    with spread(mesh):
        for i, piece in enumerate([start, *pieces]):
            out, memory = chunk(vae, variables, piece, memory, i == 0, method)
            outs.append(out)
            total += (out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)).sum()
    return total, outs

found = {}
for name, vae in MODELS.items():
    variables, n, side = variables_of(vae), vae.time_factor, 2 * vae.space_factor
    works = {"from_latents_chunk": (draw(2, 2, 2, 2, 4), [draw(2, 4, 2, 2, 4), draw(2, 8, 2, 2, 4)])}
    works["to_latents_chunk"] = draw(2, 1 + n, side, side, 3), [draw(2, 4 * n, side, side, 3)]
    for method, (start, pieces) in works.items():
        results = {}
        for ways, data in ((1, 1), (2, 2), (4, 1)):
            mesh = None if ways == 1 else make_mesh(data, sequence=ways, devices=jax.devices()[: ways * data])
            # arrays are arguments: what is a constant would be computed while compiling
            run = jax.jit(jax.value_and_grad(functools.partial(stream, vae, method, mesh), (0, 2), has_aux=True))
            text = str(jax.make_jaxpr(functools.partial(stream, vae, method, mesh))(variables, start, pieces))
            (_, outs), gradients = run(variables, start, pieces)
            assert ("ppermute" in text) == (ways > 1)
            results[ways] = jax.tree.map(np.asarray, (outs, gradients))
        for ways in (2, 4):
            apart = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(1e-3, np.abs(b).max()), results[ways], results[1])
            found[f"{name} {method} {ways}"] = [float(max(jax.tree.leaves(part))) for part in apart]
print(json.dumps(found))
"""


def test_values_and_gradients_of_one_device(run_python):
    """4 and 8 latent frames on 2 and 4 devices: with one frame on a device the past lies on two of them."""
    found = json.loads(run_python(RUN, devices=4, timeout=1200))
    assert len(found) == 8
    for name, (values, gradients) in found.items():
        assert values < 1e-5 and gradients < 1e-4, (name, values, gradients)
