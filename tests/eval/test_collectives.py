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


def test_arrays_that_travel_together_are_added():
    text = """
ENTRY %main.1 (p: f32[8], q: f32[4]) -> (f32[8], f32[4]) {
  %p = f32[8]{0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %s = ((f32[8]{0:T(128)}, f32[4]{0}), (f32[16]{0:T(128)}, f32[8]{0})) all-gather-start(%p, %q), dimensions={0}
  %c = (f32[8]{0:T(128)}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), channel_id=3
  ROOT %r = (f32[8]{0:T(256)(128)}, f32[4]{0}) all-reduce(%p, %q), to_apply=%add
}
"""
    assert collectives(text) == {
        "all-gather": Traffic(1, 24 * 4),
        "collective-permute": Traffic(1, 8 * 4),
        "all-reduce": Traffic(1, 12 * 4),
    }


def test_loops_and_travelling_messages_of_a_tpu():
    """libtpu does not say how often a loop runs, and a message that travels while it computes is in two fusions."""
    text = """
%condition.1 (a: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7), backend_config={}
  %a = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%a), index=0
  ROOT %lt.3 = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%begins (x: f32[1]) -> (f32[1], f32[8]) {
  %x = f32[1]{0} parameter(0)
  %g.1 = f32[8]{0:T(128)S(1)} all-gather(%x), channel_id=66, dimensions={0}
  ROOT %start = (f32[1]{0}, f32[8]{0}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%computes (x: f32[1]) -> f32[8] {
  %x.1 = f32[1]{0} parameter(0)
  ROOT %g.2 = f32[8]{0:T(128)S(1)} all-gather(%x.1), channel_id=66, dimensions={0}
}

%body.1 (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %f.1 = (f32[1]{0}, f32[8]{0:T(128)(2,1)}) fusion(%a.1), kind=kCustom, calls=%begins
  %f.2 = f32[8]{0} fusion(%f.1), kind=kCustom, calls=%computes
  ROOT %t = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%f.2)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %while.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%p), condition=%condition.1, body=%body.1, metadata={}
  ROOT %r = f32[8]{0} get-tuple-element(%while.1), index=1
}
"""
    assert collectives(text) == {"all-gather": Traffic(7, 7 * 32)}
