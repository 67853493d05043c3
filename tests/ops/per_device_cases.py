# SPDX-License-Identifier: Apache-2.0
"""What `test_per_device.py` runs in an interpreter of its own, with eight CPU devices.

``values`` prints case -> the largest relative difference of values and gradients between kernels on a mesh, in their
interpreters, and plain JAX on one device; ``lowered`` prints case -> kernels in the program that a TPU would get.
"""

import json
import sys

from tests import conftest  # noqa: F401  the rules of all tests, before JAX

import jax  # isort: skip
import jax.numpy as jnp

from jaxvid.ops import masks, pick
from jaxvid.ops.attention import attention_with_lse
from jaxvid.ops.ssd import ssd
from jaxvid.ops.windows import window_attention
from jaxvid.sharding import make_mesh, spread
from tests.ops.sequence_cases import draw, worst

IDS = jnp.arange(128)[None] * jnp.arange(1, 5)[:, None] // 100  # [4, 128], another for every row


def attention_op(mask, offset=0, keys=4):
    """(run(implementation), arrays)"""
    arrays = [draw(4, 128, heads, 64, seed=i).astype("float32") for i, heads in enumerate((4, keys, keys))]
    run = lambda name: (
        lambda q, k, v: attention_with_lse(q, k, v, mask=mask, q_offset=offset, implementation=name)
    )
    return run, arrays, "reference"


def scan_op(groups):
    x, dt = draw(4, 200, 4, 16), jax.nn.softplus(draw(4, 200, 4))
    b, c, d = draw(4, 200, groups, 16, seed=1), draw(4, 200, groups, 16, seed=2), draw(4, seed=3)
    arrays = [a.astype("float32") for a in (x, dt, -jnp.exp(draw(4)), b, c, d, draw(4, 4, 16, 16, seed=4))]
    run = lambda name: (
        lambda x, dt, A, B, C, D, h: ssd(x, dt, A, B, C, D, initial_state=h, implementation=name)
    )
    return run, arrays, "chunked"


def windows_op(frames, shift):
    arrays = [draw(2, frames, 4, 8, 2, 64, seed=i).astype("float32") for i in range(3)]
    run = lambda name: (
        lambda q, k, v: window_attention(q, k, v, window=(4, 4, 8), shift=shift, implementation=name)
    )
    return run, arrays, "partition"


OPS = {
    "attention": (lambda: attention_op(None), dict(data=2, fsdp=2, tensor=2)),
    "causal, segments": (
        lambda: attention_op(masks.causal() & masks.segments(IDS, IDS), keys=2),
        dict(data=4, tensor=2),
    ),
    "one key head, offset at run time": (
        lambda: attention_op(masks.causal(), jnp.asarray(5), keys=1),
        dict(data=1, tensor=4, fsdp=2),
    ),
    "heads along sequence": (lambda: attention_op(None), dict(data=2, tensor=2, sequence=2)),
    "scan": (lambda: scan_op(1), dict(data=2, fsdp=2, tensor=2)),
    "scan, groups": (lambda: scan_op(2), dict(data=4, tensor=2)),
    "scan, heads along sequence": (lambda: scan_op(1), dict(data=1, fsdp=2, sequence=4)),
    "windows": (lambda: windows_op(4, (0, 2, 0)), dict(data=2, fsdp=1, tensor=2, sequence=2)),
    "windows, frames cut": (lambda: windows_op(8, (0, 0, 0)), dict(data=2, tensor=2, sequence=2)),
    "windows, frames cut and shifted": (lambda: windows_op(16, (2, 2, 0)), dict(data=2, sequence=4)),
    "fewer rows than devices": (lambda: windows_op(4, (0, 0, 0)), dict(data=4, tensor=2)),
}
VALUES = [name for name in OPS if name != "windows"]  # that one's frames are too few for its mesh
REASONS = {
    "rows": "4 rows do not divide among the 3 devices of data x fsdp",
    "heads": "4 heads do not divide among the 3 devices of tensor",
    "groups": "2 and 4 heads do not divide among the 4 devices of tensor",
    "windows": "windows of 4 frames do not divide the 2 frames of a device",
}


def difference(name):
    (run, arrays, plain), sizes = OPS[name][0](), OPS[name][1]
    with spread(make_mesh(**sizes)), pick.interpreted():
        return worst(run("mosaic_tpu"), lambda *a: outside(run(plain), *a), *arrays)


def outside(f, *arrays):
    with spread(None):
        return f(*arrays)


def kernels(name):
    """[kernels in the program for a TPU, what a kernel that is named says]."""
    (run, arrays, _), sizes = OPS[name][0](), OPS[name][1]
    said = ""
    with spread(make_mesh(**sizes)), pick.tracing_for("tpu"):
        lowered = jax.jit(lambda *a: run(None)(*a)).trace(*arrays).lower(lowering_platforms=("tpu",))
        try:
            jax.eval_shape(run("mosaic_tpu"), *arrays)
        except NotImplementedError as error:
            said = str(error)
    return [lowered.as_text().count("@tpu_custom_call"), said]


def uneven():
    """As `kernels`, for the cases of REASONS."""
    cases = {
        "rows": (dict(data=3), 3),
        "heads": (dict(data=1, tensor=3), 3),
        "groups": (dict(data=1, tensor=4), 4),
    }
    for name, (sizes, count) in cases.items():
        op = (lambda: scan_op(2)) if name == "groups" else (lambda: attention_op(None))
        OPS[name] = (op, dict(sizes, devices=jax.devices()[:count]))
    return {name: kernels(name) for name in REASONS}


def main():
    if sys.argv[-1] == "values":
        jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the time
        found = {name: difference(name) for name in VALUES}
    else:
        found = {**{name: kernels(name) for name in VALUES}, **uneven()}
    print(json.dumps(found))
