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
