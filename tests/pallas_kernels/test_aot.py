# SPDX-License-Identifier: Apache-2.0
"""Kernels through the real compilers without the hardware (`make kernels-aot`): libtpu, and ptxas for sm_90a."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TPU = """
import os
os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0", TPU_LOG_DIR="disabled",
                  TPU_ACCELERATOR_TYPE="v5litepod-4", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
devices = topologies.get_topology_desc(platform="tpu", topology_name="{topology}").devices
"""

CUDA = '''
import os
os.environ["MOSAIC_GPU_DUMP_PTXAS"] = os.environ["MOSAIC_GPU_DUMP_SASS"] = "1"
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
H200 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 19 } runtime_version { major: 13 }
device_description_str: "NVIDIA H200" """
devices = topologies.get_topology_desc(
    platform="cuda", topology_name="h200", target_config=H200, topology="1x1x1").devices
'''

SHAPES = """
place = NamedSharding(Mesh(np.array(devices[:1]), ("x",)), PartitionSpec())
bf, f32 = jnp.bfloat16, jnp.float32
S = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=place)

def step(f, inputs, outputs):  # values and gradients
    def both(inputs, outputs):
        outs, back = jax.vjp(f, *inputs)
        return outs, back(outputs)
    jax.jit(both).lower(inputs, outputs).compile()

def attention(f, width):
    x = S(bf, 1, 4096, 8, width)
    step(f, [x, x, x], (x, S(f32, 1, 4096, 8)))

def windows(f, shift):
    x = S(bf, 1, 8, 16, 16, 8, 128)
    step(lambda q, k, v: f(q, k, v, window=(4, 4, 8), shift=shift), [x, x, x], x)

def scan(f):
    x, dt, b, h = S(bf, 1, 2048, 16, 64), S(f32, 1, 2048, 16), S(bf, 1, 2048, 1, 128), S(f32, 1, 16, 64, 128)
    step(f, [x, dt, S(f32, 16), b, b, h], (x, h))

from pallas_kernels.tiles import FULL, Near
MASKS = [FULL, ((Near(None, 0),),), ((Near(500, 300),),)]
"""


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the wheel libtpu")
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiles_for_tpu(topology, run_python):
    work = """
from pallas_kernels import attention_tpu, ssd_tpu, windows_tpu
for width in (64, 128):
    for mask in MASKS:
        attention(lambda q, k, v: attention_tpu.attention(q, k, v, mask=mask), width)
scan(ssd_tpu.ssd)
for shift in ((0, 0, 0), (2, 2, 4)):
    windows(windows_tpu.attention, shift)
print("compiled")
"""
    assert "compiled" in run_python(TPU.format(topology=topology) + SHAPES + work, timeout=1800)


NVIDIA = next(iter(getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", None) or []), "")
NVDISASM = shutil.which("nvdisasm", path=f"{NVIDIA}/cu13/bin{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda13_plugin") or NVDISASM is None,
    reason="needs the wheels jax-cuda13-plugin, jax-cuda13-pjrt, nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-nvdisasm",
)
def test_compiles_for_hopper_without_spills_in_loops(run_python):
    """Spilled bytes per kernel, and nothing of them within a loop: dk and dv at width 128, and the scan backwards, fill
    all registers, but only on their way into the loop and out of it."""
    work = """
import contextlib, json, sys, tempfile
from pallas_kernels import attention_gpu, ssd_gpu, windows_gpu
with tempfile.TemporaryFile() as said:
    kept, old = os.dup(2), os.dup(1)
    os.dup2(said.fileno(), 1); os.dup2(said.fileno(), 2)
    for width in (64, 128):
        for mask in MASKS:
            attention(lambda q, k, v: attention_gpu.attention(q, k, v, mask=mask), width)
    scan(ssd_gpu.ssd)
    for shift in ((0, 0, 0), (2, 2, 0)):
        windows(windows_gpu.attention, shift)
    sys.stdout.flush()
    os.dup2(old, 1); os.dup2(kept, 2)
    said.seek(0)
    print(json.dumps(said.read().decode(errors="replace")))
"""
    path = (
        f'import os\nos.environ["PATH"] = {os.path.dirname(NVDISASM)!r} + os.pathsep + os.environ["PATH"]\n'
    )
    text = json.loads(run_python(path + CUDA + SHAPES + work, timeout=1800).splitlines()[-1])
    found = re.findall(r"properties for (\S+).*?(\d+) bytes spill stores", text, re.DOTALL)
    assert len(found) == 3 * 2 * 3 + 2 + 2 * 2, found
    print(found)  # for the page: pytest -rP
    for name, spilled in found:
        assert int(spilled) <= (150 if re.search("dkv|ssd_backward", name) else 0), found
    kernels = re.split(r"//-+ \.text\.(\S+) -+", text)[1:]
    assert len(kernels) == 2 * len(found)
    walks = 0
    for name, code in zip(kernels[::2], kernels[1::2], strict=True):
        for loop in loops_of_products(code):
            walks += 1
            spilled = [line for line in loop if re.search(r"\b(LDL|STL)\b", line)]
            assert not spilled, (name, spilled)
    # a walk over tiles that are whole, and another one where a mask cuts some, in each pass of the attention
    assert walks >= 2 * 3 * (1 + 2 + 2)


def loops_of_products(code: str) -> list[list[str]]:
    """The instructions of each loop with tensor-core products in it, of SASS. A loop ends in a conditional branch back;
    what waits for a barrier stands behind the end of the kernel, and jumps back unconditionally."""
    lines, labels, loops = [], {}, []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(\S.*)", line):
            lines.append(instruction[1])
            back = re.match(r"@!?U?P\d\s+BRA `\((\.L_x_\d+)\)", instruction[1])
            if back and back[1] in labels:
                loop = lines[labels[back[1]] :]
                if any("HGMMA" in one for one in loop):
                    loops.append(loop)
    return loops


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the wheel libtpu")
def test_no_more_bundles_than_splash_attention():
    """At the default tiles, forward, dq, and dk and dv, in libtpu's final code for a v6e."""
    command = [
        sys.executable,
        "-m",
        "experiments.e001_bench.static",
        "--topology=v6e:2x2",
        "--only=1024x1024",
    ]
    root = pathlib.Path(__file__).parents[2]
    env = dict(os.environ, PYTHONPATH=str(root))
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=1800)
    assert not done.returncode, done.stderr[-3000:]
    print(done.stdout)  # for the page: pytest -rP
    ours, theirs = done.stdout.split("splash", 1)
    counts = lambda text: [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) bundles", text)]
    assert len(counts(ours)) == len(counts(theirs)) == 3, done.stdout
    for mine, other in zip(sorted(counts(ours)), sorted(counts(theirs)), strict=True):
        assert mine <= other, done.stdout
