# SPDX-License-Identifier: Apache-2.0
"""Do the processes of a run find each other, are they alike, and do their devices add up? Each step has a time limit.

Every process of the run gives the same command. SLURM, GKE and TPU pods are recognised by jax; elsewhere every process
says where process 0 listens, how many there are, and which one it is, in variables (`join`) or so:

    jaxvid doctor --distributed --coordinator 10.0.0.1:1234 --processes 2 --process 0
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from typing import Any

from jaxvid.cli.join import from_environment, join
from jaxvid.types import InputError

LIMIT = 60.0  # seconds
VERSIONS = ("jaxvid", "jax", "jaxlib", "flax", "optax", "python")


def arguments(parser) -> None:
    parser.add_argument("--distributed", action="store_true", help="check the processes of a multi-host run")
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 listens (default: the cluster's)"
    )
    parser.add_argument("--processes", type=int, help="how many processes there are")
    parser.add_argument("--process", type=int, help="which of them this is")
    parser.add_argument("--config", metavar="FILE", help="a config that all processes must read alike")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help=f"seconds each step may take (default {LIMIT:g})"
    )


def run(options) -> None:
    """Prints a line per step. Raises InputError that names who is missing or differs, or what took too long."""
    import jax

    given = (options.coordinator, options.processes, options.process)
    if any(v is not None for v in given) and None in given:
        raise InputError("--coordinator, --processes and --process go together; give all three or none")
    if options.processes is not None and not 0 <= options.process < options.processes:
        raise InputError(f"--process {options.process} is not among {options.processes}; count from 0")
    if options.limit <= 0:
        raise InputError(f"--limit {options.limit:g} is no time; give seconds")
    begun = time.monotonic()
    join(*(given if options.coordinator else from_environment(os.environ) or given), options.limit)
    me, count = jax.process_index(), jax.process_count()
    print(f"found      process {me} of {count} after {time.monotonic() - begun:.1f} s", flush=True)
    board = Board(options.limit)
    alike(board, me, count, facts(options.config))
    print(
        f"alike      {count} processes have the same versions{' and config' if options.config else ''}",
        flush=True,
    )
    total, wanted, seconds = within(options.limit, "the sum over all devices", add_up)
    if total != wanted:
        raise InputError(f"the devices add up to {total:g} and not {wanted:g}; a link or a device is broken")
    print(
        f"sum        over {len(jax.devices())} devices is {total:g}, as it should be, after {seconds:.2f} s",
        flush=True,
    )
    jax.distributed.shutdown()


def facts(config: str | None) -> dict[str, str]:
    """What has to be the same in every process."""
    import importlib.metadata
    import platform

    found = {"python": platform.python_version()}
    for name in VERSIONS[:-1]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    if config:
        from jaxvid.config import load_config, to_json

        found["config"] = hashlib.blake2b(to_json(load_config(config)).encode(), digest_size=8).hexdigest()
    return found


def alike(board: Any, me: int, count: int, mine: dict[str, str]) -> None:
    """Holds every process's facts against those of process 0. Raises InputError for the missing and the different."""
    board.put(f"jaxvid/doctor/{me}", json.dumps(mine))
    theirs, missing = {}, []
    for process in range(count):
        said = board.get(f"jaxvid/doctor/{process}")
        if said is None:
            missing.append(process)
        else:
            theirs[process] = json.loads(said)
    if missing:
        raise InputError(
            f"processes {', '.join(map(str, missing))} of {count} said nothing; look at their logs and hosts"
        )
    apart = [
        f"{name} is {facts.get(name, 'absent')} in process {process} and {theirs[0].get(name, 'absent')} in process 0"
        for process, facts in theirs.items()
        for name in sorted({*facts, *theirs[0]})
        if facts.get(name) != theirs[0].get(name)
    ]
    if apart:
        raise InputError(f"{'; '.join(apart[:4])}; install and copy the same everywhere")


class Board:
    """Where processes leave notes for each other: the coordinator's key-value store."""

    def __init__(self, limit: float):
        from jax._src import distributed  # the only way to the store; jax's own multihost_utils takes it too

        self.client, self.limit = distributed.global_state.client, limit

    def put(self, key: str, value: str) -> None:
        self.client.key_value_set(key, value)

    def get(self, key: str) -> str | None:
        """None when nothing came in time."""
        try:
            return self.client.blocking_key_value_get(key, int(1000 * self.limit))
        except Exception as error:
            if "DEADLINE" in str(error).upper() or "timed out" in str(error):
                return None
            raise


def add_up() -> tuple[float, float, float]:
    """(sum over the devices, what it should be, seconds): every device brings its place, counted from 1."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    devices = np.asarray(jax.devices())
    place = NamedSharding(Mesh(devices, ("all",), axis_types=(AxisType.Auto,)), PartitionSpec("all"))
    values = np.arange(1, len(devices) + 1, dtype=np.float32)
    x = jax.make_array_from_callback(values.shape, place, lambda index: values[index])
    begun = time.monotonic()
    total = float(jax.jit(jnp.sum, out_shardings=NamedSharding(place.mesh, PartitionSpec()))(x))
    return total, float(values.sum()), time.monotonic() - begun


def within(limit: float, what: str, do) -> Any:
    """``do()``, or InputError after so many seconds: a collective that waits for the dead never returns."""
    result: dict[str, Any] = {}

    def work():
        try:
            result["value"] = do()
        except Exception as error:  # noqa: BLE001 handed on
            result["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        raise InputError(f"{what} took more than {limit:g} s; a process died or a link is closed")
    if "error" in result:
        raise result["error"]
    return result["value"]
