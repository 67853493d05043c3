# SPDX-License-Identifier: Apache-2.0
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.sharding import AXES, batch_sharding, make_mesh, params_sharding, put_batch
from jaxvid.types import InputError


class Fake:
    """Stands for a device in a mesh that nothing runs on."""

    def __init__(self, i):
        self.id, self.process_index, self.platform, self.device_kind = i, 0, "cpu", "fake"


def test_axes_are_automatic():
    mesh = make_mesh()
    assert mesh.axis_names == AXES and set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize("sizes", [dict(data=3), dict(data=-1, fsdp=-1), dict(fsdp=0), dict(data=1, fsdp=3)])
def test_meshes_that_do_not_fit(sizes):
    with pytest.raises(InputError, match="mesh"):
        make_mesh(**sizes, devices=[Fake(i) for i in range(8)])


def test_minus_one_takes_the_rest():
    assert dict(make_mesh(fsdp=4, devices=[Fake(i) for i in range(8)]).shape) == dict(
        data=2, fsdp=4, tensor=1, sequence=1
    )


def test_names_resolve_and_what_does_not_divide_is_copied():
    mesh = make_mesh(data=1, fsdp=4, tensor=2, devices=[Fake(i) for i in range(8)])
    box = lambda shape, *names: nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
    tree = dict(
        both=box((8, 6), "embed", "mlp"),
        odd=box((6, 5), "embed", "mlp"),
        twice=box((8, 8), "embed", "embed"),
        stacked=box((3, 8, 2), "layers", "embed", "heads"),
        unknown=box((8,), "somewhere"),
        plain=jax.ShapeDtypeStruct((3, 1 << 14), jnp.float32),
        small=jax.ShapeDtypeStruct((8,), jnp.float32),
    )
    specs = {k: tuple(s.spec) for k, s in params_sharding(mesh, tree).items()}
    assert specs == dict(
        both=('fsdp', 'tensor'), odd=(), twice=('fsdp',), stacked=(None, 'fsdp', 'tensor'), unknown=(),
        plain=(None, 'fsdp'), small=(),
    )  # fmt: skip


def test_a_batch_must_divide():
    mesh = make_mesh(data=2, fsdp=2, devices=[Fake(i) for i in range(4)])
    assert tuple(batch_sharding(mesh, 8).spec) == (("data", "fsdp"),)
    with pytest.raises(InputError, match="batch of 6 .*use batch="):
        batch_sharding(mesh, 6)


def test_put_batch_keeps_values_and_dtypes():
    batch = {"x": np.arange(6.0, dtype=np.float32).reshape(2, 3), "ok": np.array([True, False])}
    out = put_batch(batch, make_mesh())
    assert out["ok"].dtype == bool and isinstance(out["x"], jax.Array)
    np.testing.assert_array_equal(np.asarray(out["x"]), batch["x"])


ROWS = """
import math, re, flax.linen as nn, jax, jax.numpy as jnp
from jaxvid.models.video_dit import VideoDiT
from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.sharding import batch_sharding, make_mesh, params_sharding, spread
jax.config.update("jax_disable_most_optimizations", True)
mesh = make_mesh(data=1, fsdp=4)
sizes = dict(repeats=2, width=64, channels=16, patch=(1, 1, 1), head=16, text_width=16)
model = VideoDiT(mixers=(Mamba(head=16, state=16),), **sizes)
rows = batch_sharding(mesh)
S = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
x, t = S(52, 3, 3, 5, 16), S(52, 3)
cond = {"text": S(52, 1, 8, 16), "text_mask": S(52, 1, 8, dtype=bool), "span": S(52, 3, dtype=jnp.int32)}
boxed = jax.eval_shape(model.init, jax.random.key(0), x, t, cond)["params"]
params = nn.unbox(boxed)
places = params_sharding(mesh, boxed)

def loss(params, x, t, cond):
    with spread(mesh):
        return (model.apply({"params": params}, x, t, cond)[0] ** 2).mean()

run = jax.jit(jax.grad(loss), in_shardings=(places, rows, rows, rows), out_shardings=places)
text = run.lower(params, x, t, cond).compile().as_text()
shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\\[([0-9,]+)\\]", text)}
print([s for s in shapes if s[0] in (52, 104) and math.prod(s) >= 52 * 45 * 64], len(re.findall("all-gather", text)))
"""


def test_parameters_come_together_and_rows_stay_apart(run_python):
    """52 rows on 4 devices: no device ever has all their tokens, or both directions of a scan of all of them."""
    said = run_python(ROWS, devices=4)
    assert said.startswith("[] ") and int(said.split()[-1]) > 0
