# SPDX-License-Identifier: Apache-2.0
"""Messages read off compiled programs: kinds, bytes, and how often a loop sends them."""

import json

from jaxvid.eval.collectives import Traffic, collectives

PROGRAM = """
import json, jax, jax.numpy as jnp
from jaxvid.eval.collectives import collectives
mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
def local(x):
    send = lambda x, _: (jnp.sin(jax.lax.ppermute(x, "x", [(i, (i + 1) % 4) for i in range(4)])), None)
    x, _ = jax.lax.scan(send, x, None, length=5)
    return x * jax.lax.psum(x.sum(), "x") + jax.lax.all_gather(x, "x").sum(0)
run = jax.shard_map(local, mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P("x"), check_vma=False)
text = jax.jit(run).lower(jax.ShapeDtypeStruct((8, 16), jnp.float32)).compile().as_text()
print(json.dumps({k: [t.count, t.bytes] for k, t in collectives(text).items()}))
"""


def test_a_compiled_program(run_python):
    found = json.loads(run_python(PROGRAM, devices=4))
    shard = 2 * 16 * 4  # bytes
    assert found["collective-permute"] == [5, 5 * shard], "a loop of five sends five times"
    assert found["all-reduce"] == [1, 4] and found["all-gather"] == [1, 4 * shard]


def test_what_starts_and_what_is_done_count_once():
    text = """
ENTRY %main.1 (p: bf16[8,4]) -> bf16[32,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %s = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%p), dimensions={0}
  ROOT %d = bf16[32,4]{1,0} all-gather-done(%s)
}
"""
    assert collectives(text) == {"all-gather": Traffic(1, 32 * 4 * 2)}
    assert collectives("no program") == {}
