# SPDX-License-Identifier: Apache-2.0
"""Devices that are not here: compilers for them, their memory, and how fast they are said to be.

TPUs are compiled for by libtpu and GPUs by the compiler in jax's CUDA plugin, both without a device; ``cpu`` simulates
as many devices as the mesh has.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import sys
from typing import Any

from jaxvid.types import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of one device: memory in bytes, dense bfloat16 operations and one-way link bytes per second, by data sheet."""

    memory: float
    flops: float
    link: float
    devices_of_host: int = 4


CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 45e9),
    "v5e": Chip(16 * 2**30, 197e12, 45e9),
    "v5p": Chip(95 * 2**30, 459e12, 90e9),
    "v6e": Chip(32 * 2**30, 918e12, 90e9),
    "h200": Chip(141e9, 989e12, 450e9),
}
CPU = Chip(0, 1e11, 1e10)  # the memory is what this machine has

# What the compiler has to know about an H200, by the data sheet; with cuDNN 9.
_H200 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 19 } runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """``name`` as the user wrote it, ``kind`` of CHIPS or 'cpu', and how many devices (None: as many as the mesh)."""

    name: str
    kind: str
    count: int | None

    @property
    def platform(self) -> str:
        """As `jaxvid.ops.pick` calls it."""
        return {"cpu": "cpu", "h200": "gpu"}.get(self.kind, "tpu")

    @property
    def chip(self) -> Chip:
        """Memory of a simulated CPU device is its part of the machine's."""
        if self.kind != "cpu":
            return CHIPS[self.kind]
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return dataclasses.replace(CPU, memory=machine / (self.count or 1))


def parse_topology(text: str) -> Topology:
    """'cpu', 'h200:8' or 'v5e:16x16'. Raises InputError for what is not known."""
    known = "cpu, h200:8, " + ", ".join(
        f"{kind}:{'2x2x1' if kind in ('v4', 'v5p') else '2x4'}" for kind in CHIPS if kind != "h200"
    )
    if text == "cpu":
        return Topology(text, "cpu", None)
    kind, _, shape = text.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", shape):
        raise InputError(f"no topology {text[:40]!r}; write one like {known}")
    sizes = [int(n) for n in shape.split("x")]
    wanted = {"h200": 1, "v5p": 3, "v4": 3}.get(kind, 2)
    if len(sizes) != wanted:
        raise InputError(f"topology {text!r} has {len(sizes)} sizes; {kind} has {wanted}, as in {known}")
    return Topology(text, kind, math.prod(sizes))


def parse_mesh(text: str | None) -> dict[str, int]:
    """'data=2,fsdp=4' as sizes by axis."""
    from jaxvid.sharding import AXES

    sizes: dict[str, int] = {}
    for part in (text or "").split(",") if text else ():
        axis, _, size = part.partition("=")
        if axis.strip() not in AXES or not re.fullmatch(r"-?\d+", size.strip()):
            raise InputError(
                f"mesh {part.strip()!r} is not axis=size; write for example data=2,fsdp=4 ({', '.join(AXES)})"
            )
        sizes[axis.strip()] = int(size)
    return sizes


def check_compiler(topology: Topology) -> None:
    """Raises InputError, naming the extra to install, where the compiler for a topology is missing."""
    if topology.platform == "tpu" and not (_has("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
        raise InputError(
            f"topology {topology.name} is compiled for by libtpu, which is not installed; pip install 'jaxvid[tpu]'"
        )
    if topology.platform == "gpu" and not _has("jax_plugins.xla_cuda13"):
        python = sys.version_info
        older = (
            ""
            if python >= (3, 12)
            else f" (with Python 3.12 or newer; this is {python.major}.{python.minor})"
        )
        raise InputError(
            f"topology {topology.name} is compiled for by jax's CUDA plugin, which is not installed; "
            f"pip install 'jaxvid[cuda13]'{older}"
        )


def environment(topology: Topology, devices: int) -> dict[str, str]:
    """What must stand in the environment before jax starts."""
    made = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")}
    if topology.kind == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
        made["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    if topology.platform == "tpu":
        made |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of the host that we pretend to be, not of the topology
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_LOG_DIR": "disabled",
        }
    return made


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for, in an interpreter that began with `environment`."""
    import jax
    from jax.experimental import topologies

    if topology.kind == "cpu":
        return jax.devices("cpu")[: topology.count]
    try:
        if topology.platform == "gpu":
            return list(
                topologies.get_topology_desc(
                    platform="cuda",
                    topology_name="h200",
                    target_config=_H200,
                    topology=f"1x1x{topology.count}",
                ).devices
            )
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices)
    except Exception as error:  # noqa: BLE001 the compilers raise types of their own
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"the compiler has no topology {topology.name!r} ({said}); try another shape"
        ) from None


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
