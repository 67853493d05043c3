# SPDX-License-Identifier: Apache-2.0
"""Shows what this machine has: devices, versions, memory, codecs. Never fails: what cannot be told is told to be so.

With ``--distributed`` it checks the processes of a run instead, and fails where they do not work together.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys

import jaxvid
from jaxvid.cli import doctor_distributed, main

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "av",
    "pillow",
    "safetensors",
    "ml_collections",
)


arguments = doctor_distributed.arguments


def run(options) -> None:
    """Prints a line per fact to standard output."""
    if options.distributed:
        doctor_distributed.run(options)
        return
    for name, tell in FACTS.items():
        try:
            said = tell()
        except Exception as error:  # noqa: BLE001
            said = f"cannot be told ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        lines = said if isinstance(said, list) else [said]
        for number, line in enumerate(lines):
            print(f"{name if not number else '':<10} {line}")


def _packages():
    def version(name):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{name} MISSING"

    return [", ".join(version(name) for name in PACKAGES[i : i + 6]) for i in range(0, len(PACKAGES), 6)]


def _devices():
    import jax

    lines = []
    for device in jax.devices():
        stats = device.memory_stats() or {}
        limit = f", {stats['bytes_limit'] / 2**30:.1f} GiB" if "bytes_limit" in stats else ""
        used = f" ({stats['bytes_in_use'] / 2**30:.1f} in use)" if "bytes_in_use" in stats else ""
        lines.append(f"{device.platform} {device.id}: {device.device_kind}{limit}{used}")
    return [*lines, f"process {jax.process_index()} of {jax.process_count()}"]


def _memory():
    with open("/proc/meminfo", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file)
    total, free = (int(facts[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    return f"{total:.1f} GiB, {free:.1f} available; {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"


def _pages(path="/sys/kernel/mm/transparent_hugepage/enabled"):
    """Whether the C library asks the kernel for huge pages: XLA takes and returns large buffers in every step on a CPU."""
    try:
        with open(path, encoding="ascii") as file:
            mode = file.read().partition("[")[2].partition("]")[0]
    except OSError:
        return "as this system has them"
    if mode != "madvise":
        return f"huge pages: {mode}"
    if "glibc.malloc.hugetlb=" in os.environ.get("GLIBC_TUNABLES", ""):
        return "huge pages: asked for (GLIBC_TUNABLES)"
    return "huge pages: not asked for; GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command makes CPU training faster"


def _preallocation():
    share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
    off = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "").lower() in ("0", "false")
    return (
        "off"
        if off
        else f"{share} of an accelerator's memory (XLA_PYTHON_CLIENT_PREALLOCATE=false turns it off)"
    )


def _codecs():
    import av

    wanted = {
        "libx264": "writes mp4",
        "h264": "reads H.264",
        "hevc": "reads H.265",
        "av1": "reads AV1",
        "libdav1d": "reads AV1",
    }
    have = [f"{name} ({what})" for name, what in wanted.items() if name in av.codecs_available]
    missing = "" if "libx264" in av.codecs_available else "; libx264 is MISSING: mp4 files cannot be written"
    return ", ".join(have) + missing


def _cache():
    place = main.use_compilation_cache()
    return (
        place or "none: the cache directory cannot be written (set XDG_CACHE_HOME); every run compiles anew"
    )


def _shipped():
    from jaxvid.pipeline import SHIPPED

    if not SHIPPED.is_dir():
        return f"missing: {SHIPPED} does not exist; reinstall, or give --checkpoint"
    return f"{SHIPPED} ({sum(f.stat().st_size for f in SHIPPED.rglob('*') if f.is_file()) / 1e6:.1f} MB)"


FACTS = {
    "jaxvid": lambda: f"{jaxvid.__version__} in {os.path.dirname(jaxvid.__file__)}",
    "python": lambda: f"{platform.python_version()} at {sys.executable}, {platform.platform()}",
    "packages": _packages,
    "devices": _devices,
    "memory": _memory,
    "pages": _pages,
    "reserved": _preallocation,
    "disk": lambda: f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free here",
    "codecs": _codecs,
    "cache": _cache,
    "model": _shipped,
}
