# SPDX-License-Identifier: Apache-2.0
"""The scan over a cut sequence: equal to one device, with states and gradients, and never a gathered sequence."""

import json

import jax.numpy as jnp
import pytest

from jaxvid.ops.ring import sequence_parallel_ssd
from jaxvid.sharding import make_mesh
from jaxvid.types import InputError


@pytest.fixture(scope="module")
def differences(run_python):
    code = "import sys; sys.argv.append('scan'); from tests.ops.sequence_cases import main; main()"
    return json.loads(run_python(code, devices=8))


@pytest.mark.parametrize("case", ["gathered", "doubled", "from zero", "one group", "heads cut"])
def test_equals_one_device(differences, case):
    assert differences[case] < 1e-12


def test_in_single_precision(differences):
    assert differences["float32"] < 1e-5


MEMORY = """
import json, re, jax, jax.numpy as jnp
from jaxvid.ops.ring import sequence_parallel_ssd
from jaxvid.sharding import make_mesh
jax.config.update("jax_disable_most_optimizations", True)
found, length = [], 1 << 15
for ranks in (2, 8):
    mesh = make_mesh(data=1, sequence=ranks, devices=jax.devices()[:ranks])
    place = jax.NamedSharding(mesh, jax.P(None, "sequence"))
    shape = lambda *s: jax.ShapeDtypeStruct((1, length, *s), jnp.float32, sharding=place)
    args = shape(4, 16), shape(4), jax.ShapeDtypeStruct((4,), jnp.float32), shape(1, 16), shape(1, 16)
    f = jax.grad(lambda *a: sequence_parallel_ssd(*a, mesh=mesh)[0].sum(), (0, 1, 3, 4))
    compiled = jax.jit(f).lower(*args).compile()
    sizes = [eval(s + ",") for s in re.findall(r"all-gather[^=]*= ?f32\\[([\\d,]+)", compiled.as_text())]
    gathered = [size for size in sizes if any(n >= length // ranks for n in size)]
    found.append([compiled.memory_analysis().temp_size_in_bytes, len(gathered)])
print(json.dumps(found))
"""


def test_memory_of_a_device_falls_with_their_number(run_python):
    (two, gathered), (eight, more) = json.loads(run_python(MEMORY, devices=8))
    assert gathered == more == 0
    assert two / eight > 3, (two, eight)


class Fake:
    """Stands for a device in a mesh that nothing runs on."""

    def __init__(self, i):
        self.id, self.process_index, self.platform, self.device_kind = i, 0, "cpu", "fake"


@pytest.mark.parametrize(
    "length, said", [(12, "do not divide among the 8 devices"), (4, "shorter than the 8 devices")]
)
def test_says_what_does_not_fit(length, said):
    mesh = make_mesh(data=1, sequence=8, devices=[Fake(i) for i in range(8)])
    x, b = jnp.zeros((1, length, 2, 3)), jnp.zeros((1, length, 1, 4))
    with pytest.raises(InputError, match=said):
        sequence_parallel_ssd(x, x[..., 0], -jnp.ones(2), b, b, mesh=mesh)
