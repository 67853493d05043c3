# SPDX-License-Identifier: Apache-2.0
"""A network whose frames are spread over devices says and learns what it does on one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.nn.mixers.mamba import Mamba
from jaxvid.sharding import cut_channels, cut_frames, make_mesh, spread, spread_mesh
from jaxvid.types import InputError


@pytest.fixture(scope="module")
def differences(run_python):
    return json.loads(
        run_python("from tests.models.spread_cases import main; main()", devices=4, timeout=1200)
    )


@pytest.mark.parametrize("mesh", ["sequence", "both"])
def test_it_trains_and_samples_as_on_one_device(differences, mesh):
    losses, video = differences[mesh]
    assert losses < 1e-4, "losses and norms of gradients, of two steps"
    assert video < 1e-4


def test_nothing_is_spread_outside():
    mesh = make_mesh(devices=jax.devices()[:1])
    x = jnp.ones((2, 3, 4))
    with spread(mesh):
        assert spread_mesh() is None, "a mesh whose sequence is whole spreads nothing"
        assert cut_frames(x) is x and cut_channels(x, 4) is x


class Fake:
    """Stands for a device in a mesh that nothing runs on."""

    def __init__(self, i):
        self.id, self.process_index, self.platform, self.device_kind = i, 0, "cpu", "fake"


def test_frames_that_do_not_divide_are_refused():
    with spread(make_mesh(data=1, sequence=4, devices=[Fake(i) for i in range(4)])):
        with pytest.raises(
            InputError, match="6 frames do not divide among the 4 devices of 'sequence'; use 8"
        ):
            cut_frames(jnp.zeros((1, 6, 2)))
    assert spread_mesh() is None


def test_review_tokens_take_part_in_orders_that_cross_shards():
    """A guard of the toy above: its scan looks at every frame, so a shard that missed one would show."""
    mixer = Mamba(order=2, head=8, state=4, expand=1)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 2, 2, 8)), jnp.float32)
    params = mixer.init(jax.random.key(0), x)
    out = lambda x: mixer.apply(params, x)[0][0, 0, 0, 0].sum()
    assert np.all(np.abs(jax.grad(out)(x)).sum((0, 2, 3, 4)) > 0)
