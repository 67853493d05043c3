# SPDX-License-Identifier: Apache-2.0
"""Attention over a cut sequence: equal to one device for every mask, and what travels is what has to."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.ops import masks, ring_halo, ring_hops, ring_zigzag
from jaxvid.ops.ring import ring_attention, sequence_attention, ulysses_attention
from jaxvid.ops.ring_parts import invariant
from jaxvid.ops.shards import fast_ways
from jaxvid.sharding import make_mesh
from jaxvid.types import InputError

MASKS = [
    "full", "causal", "block_causal", "block_causal across shards", "frames", "band", "band of the past", "wide band",
    "band of frames", "sink", "segments", "causal segments", "array", "nothing",
]  # fmt: skip


class Fake:
    """Stands for a device in a mesh that nothing runs on."""

    def __init__(self, i, process=0, platform="cpu", slice_index=None):
        self.id, self.process_index, self.platform, self.device_kind = i, process, platform, "fake"
        self.slice_index = slice_index


def fake_mesh(count=8, **sizes):
    return make_mesh(**{"data": 1, **sizes}, devices=[Fake(i) for i in range(count)])


@pytest.fixture(scope="module")
def differences(run_python):
    code = "import sys; sys.argv.append('attention'); from tests.ops.sequence_cases import main; main()"
    return json.loads(run_python(code, devices=8, timeout=900))


@pytest.mark.parametrize("mask", MASKS)
def test_the_ring_equals_one_device(differences, mask):
    assert differences[f"ring, {mask}"] < 1e-12


@pytest.mark.parametrize("mask", ["full", "causal", "block_causal", "band", "sink", "segments"])
@pytest.mark.parametrize("how", ["ulysses", "combined", "chosen"])
def test_so_do_ulysses_and_both_together(differences, how, mask):
    assert differences[f"{how}, {mask}"] < 1e-12


@pytest.mark.parametrize("way", ["zig-zag", "halo", "hops", "ulysses", "combined"])
def test_in_single_precision(differences, way):
    assert differences[f"float32, {way}"] < 1e-5


def test_on_meshes_that_do_not_move_arrays_by_themselves(differences):
    assert differences["explicit"] < 1e-12


SCHEDULE = """
import re, jax, jax.numpy as jnp
from jaxvid.ops import masks
from jaxvid.ops.ring import ring_attention
from jaxvid.sharding import make_mesh
jax.config.update("jax_disable_most_optimizations", True)
mesh, found = make_mesh(data=1, sequence=8), {}
x = jax.ShapeDtypeStruct((1, 256, 2, 8), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(None, "sequence")))
for name, mask in dict(full=None, band=masks.band(8, 8), past=masks.band(40, 0)).items():
    run = lambda q, k, v: ring_attention(q, k, v, mesh=mesh, mask=mask)
    back = jax.grad(lambda *a: run(*a).sum(), (0, 1, 2))
    for way, f in ((name, run), (f"{name} back", back)):
        lowered = jax.jit(f).lower(x, x, x)
        count = lambda text, word: len(re.findall(word, text))
        program, compiled = lowered.as_text(), lowered.compile().as_text()
        found[way] = [count(program, "collective_permute"), count(program, "optimization_barrier"),
                      count(compiled, "all-gather|all-reduce|all-to-all")]
import json; print(json.dumps(found))
"""


def test_what_travels(run_python):
    """R - 1 hops and a barrier each, none trailing; nothing is ever gathered."""
    found = json.loads(run_python(SCHEDULE, devices=8, timeout=900))
    assert found["full"] == [7, 7, 0]
    # forward again, then keys and values, and their gradients one hop behind and home
    assert found["full back"] == [7 + 7 + 8, 7 + 7, 0]
    assert found["band"] == [2, 1, 0] and found["band back"] == [2 + 2 + 2, 1 + 1, 0]
    assert found["past"] == [2, 2, 0], "a window of the past that reaches over two shards takes two hops"


MEMORY = """
import json, jax, jax.numpy as jnp
from jaxvid.ops.ring import ring_attention
from jaxvid.sharding import make_mesh
jax.config.update("jax_disable_most_optimizations", True)
found = []
for ranks in (2, 8):
    mesh = make_mesh(data=1, sequence=ranks, devices=jax.devices()[:ranks])
    x = jax.ShapeDtypeStruct((1, 1 << 17, 2, 64), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(None, "sequence")))
    f = jax.grad(lambda q, k, v: ring_attention(q, k, v, mesh=mesh, implementation="chunked").sum(), (0, 1, 2))
    found.append(jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes)
print(json.dumps(found))
"""


def test_memory_of_a_device_falls_with_their_number(run_python):
    two, eight = json.loads(run_python(MEMORY, devices=8, timeout=900))
    assert two / eight > 3, (two, eight)


def test_which_way_serves_which_mask():
    assert ring_zigzag.suits(masks.causal(), 8, 4) and ring_zigzag.suits(masks.block_causal(4), 8, 4)
    assert not ring_zigzag.suits(masks.block_causal(3), 8, 4) and not ring_zigzag.suits(masks.full(), 8, 4)
    assert not ring_zigzag.suits(masks.causal(), 9, 4), "an odd shard has no halves"
    left, right = ring_halo.edges(masks.band(5, 2), 8, 4)
    assert (left.keys, left.queries, right.keys, right.queries) == (5, 5, 2, 2)
    assert ring_halo.edges(masks.band(9, 0), 8, 4) is None and ring_halo.edges(masks.full(), 8, 4) is None
    left, right = ring_halo.edges(masks.frames(masks.band(1, 0), 4), 8, 4)
    assert (left.keys, left.queries, right.keys) == (4, 4, 0)


def test_causal_hops_are_balanced_and_bands_skip():
    rows = ring_hops.blocks(masks.band(9, 0), 8, 8)
    assert len(rows) == 3, "hops that nobody needs are left out"
    assert rows[2][:2] == [None, None] and rows[1][0] is None, "the first shards have no past"
    rows = ring_hops.blocks(masks.causal(), 8, 4)
    assert rows[0] == [0, 0, 0, 0] and rows[1] == [None, "all", "all", "all"]


def test_masks_that_may_be_moved():
    rule = masks.frames(masks.block_causal(2), 3)
    for by in range(1, 13):
        moved = rule.dense(24, 24) == rule.dense(24, 24, by, by)
        assert invariant(rule, by) <= bool(np.all(moved))
    assert invariant(rule, 6) and not invariant(rule, 3)
    assert not invariant(masks.causal() | masks.sink(2), 4)


def test_neighbours_with_a_fast_link():
    devices = [Fake(i, process=i // 4) for i in range(8)]
    assert fast_ways(make_mesh(data=1, sequence=8, devices=devices), "sequence") == 4
    assert fast_ways(make_mesh(data=4, sequence=2, devices=devices), "sequence") == 2
    tpus = [Fake(i, process=i // 4, platform="tpu", slice_index=0) for i in range(8)]
    assert fast_ways(make_mesh(data=1, sequence=8, devices=tpus), "sequence") == 8


def arrays(length=64, heads=4, keys=4):
    shapes = (1, length, heads, 8), (1, length, keys, 8), (1, length, keys, 8)
    return tuple(jnp.zeros(s) for s in shapes)


@pytest.mark.parametrize(
    "said, call",
    [
        ("no axis 'frames', only data, fsdp, tensor, sequence", dict(axis="frames")),
        ("60 tokens do not divide among the 8 devices .*pad them to 64", dict(length=60)),
        ("4 tokens is shorter than the 8 devices", dict(length=4)),
        ("ways=3 does not divide the 8 devices", dict(ways=3)),
        ("4 heads with 2 key heads cannot be split among 4 devices", dict(keys=2, ways=4)),
        ("want q .*G dividing H", dict(keys=3)),
    ],
)
def test_says_what_does_not_fit(said, call):
    sizes = {k: call.pop(k) for k in ("length", "heads", "keys") if k in call}
    with pytest.raises(InputError, match=said):
        sequence_attention(*arrays(**sizes), mesh=fake_mesh(sequence=8), **call)


@pytest.mark.parametrize(
    "mask, said",
    [
        (np.ones((63, 64), bool), r"shape \(63, 64\)"),
        (np.ones((64, 32), bool), r"shape \(64, 32\)"),
        (np.ones((3, 1, 64, 64), bool), r"shape \(3, 1, 64, 64\)"),
        (masks.segments(jnp.zeros((2, 48), int), jnp.zeros((2, 48), int)), r"shape \(2, 48\)"),
        (
            masks.segments(jnp.zeros((3, 64), int), jnp.zeros((3, 64), int)) & masks.causal(),
            r"shape \(3, 64\)",
        ),
    ],
)
def test_arrays_of_a_mask_are_of_the_tokens(mask, said):
    with pytest.raises(InputError, match=said):
        sequence_attention(*arrays(), mesh=fake_mesh(sequence=8), mask=mask)


def test_empty_arrays():
    q, k, v = arrays()
    for given in ((q[:0], k[:0], v[:0]), (q, k[:, :, :0], v[:, :, :0])):
        with pytest.raises(InputError, match="none of them empty"):
            sequence_attention(*given, mesh=fake_mesh(sequence=8))


def test_heads_that_ulysses_cannot_split():
    with pytest.raises(InputError, match=r"\(Ulysses\); use ways=1, which is a ring"):
        ulysses_attention(*arrays(heads=6, keys=3), mesh=fake_mesh(sequence=8))


def test_refusals_give_reasons():
    mesh = make_mesh(data=1)
    with pytest.raises(NotImplementedError, match="cudnn takes"):
        ring_attention(*arrays(), mesh=mesh, implementation="cudnn")
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        ring_attention(*arrays(), mesh=mesh, implementation="fast")
    with pytest.raises(NotImplementedError, match="axis of heads"):
        ring_attention(*arrays(), mesh=fake_mesh(sequence=8), mask=jnp.ones((1, 4, 64, 64), bool))


TPU = """
import os
os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0",
    TPU_ACCELERATOR_TYPE="v5litepod-4", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_LOG_DIR="disabled")
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jaxvid.ops.pick import target
from jaxvid.ops.ring import ring_attention
from jaxvid.sharding import make_mesh
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = make_mesh(data=1, sequence=4, devices=devices)
x = jax.ShapeDtypeStruct((1, 4096, 8, 128), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P(None, "sequence")))
run = lambda q, k, v: ring_attention(q, k, v, mesh=mesh, implementation="reference")
with target("tpu"):
    print(jax.jit(run).lower(x, x, x).compile().as_text())
"""


def test_the_compiled_schedule_of_a_tpu(run_python):
    """Send, compute, wait, at every hop."""
    pytest.importorskip("libtpu")
    text = run_python(TPU)
    entry = text[text.index("ENTRY") :]
    assert "all-gather" not in text
    signs = {"collective-permute-start": "S", "collective-permute-done": "W"}
    computes = ("fusion", "convolution", "conditional", "while", "custom-call")
    called = re.findall(rf" ({'|'.join([*signs, *computes])})\(", entry)
    order = "".join(signs.get(name, "A") for name in called)
    assert order.count("S") == order.count("W") == 3
    assert re.fullmatch(r"(A*SA+WA*){3}", order), order
