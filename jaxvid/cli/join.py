# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run meet: every one of them gives the same command, and finds the others by its environment.

SLURM, Open MPI, GKE and TPU pods are recognised by jax. Elsewhere three variables say it, and they win over a cluster:

    JAX_COORDINATOR_ADDRESS=10.0.0.1:1234    where process 0 listens
    JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0     how many processes there are, and which of them this is

``JAX_NUM_PROCESSES=1`` alone means that there is nobody to wait for, whatever the cluster says.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping

from jaxvid.cli.roll_call import roll_call
from jaxvid.types import InputError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
LIMIT = 300.0  # seconds: machines of a cluster do not start at once


def join_if_many(limit: float = LIMIT) -> bool:
    """Joins the other processes where the environment speaks of some; says whether it did. Before jax has devices.

    Raises InputError for variables that do not go together, and when not everybody came in time.
    """
    named = from_environment(os.environ)
    if named is None and _of_cluster() == 1 or named is not None and named[1] == 1:
        return False
    join(*(named or (None, None, None)), limit)
    return True


def from_environment(environ: Mapping[str, str]) -> tuple[str | None, int, int] | None:
    """(address, processes, this process) as the variables say, None where they say nothing."""
    address, *numbers = (environ.get(name) or None for name in VARIABLES)
    said = " ".join(f"{name}={environ[name]}" for name in VARIABLES if environ.get(name))
    if address is None and not any(numbers):
        return None
    try:
        count, process = (None if text is None else int(text) for text in numbers)
    except ValueError:
        raise InputError(f"{said}: processes are counted, from 0; give numbers") from None
    if count == 1:
        return address, 1, 0
    if address is None or count is None or process is None:
        raise InputError(f"{said}: {', '.join(VARIABLES)} go together; give all three or none")
    if not 0 <= process < count:
        raise InputError(f"{said}: there is no process {process} among {count}; count from 0")
    return address, count, process


def join(coordinator: str | None, processes: int | None, process: int | None, limit: float = LIMIT) -> None:
    """`jax.distributed.initialize`, by what is given or else by what jax recognises.

    Raises InputError where nothing is recognised, and when not everybody came in time, by number if an address is given.
    """
    import jax

    if coordinator is not None and processes is not None and process is not None:
        roll_call(coordinator, processes, process, limit)
    said = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
    try:
        jax.distributed.initialize(
            **(said if coordinator is not None else {}), initialization_timeout=max(1, int(limit))
        )
    except ValueError as error:
        if coordinator is not None:
            raise
        names = ("SLURM_JOB_ID", "TPU_WORKER_HOSTNAMES", "KUBERNETES_SERVICE_HOST")
        cluster = [name for name in names if name in os.environ]
        raise InputError(
            f"no cluster was recognised ({', '.join(cluster) or 'neither SLURM nor GKE nor a TPU pod'}): {error}; "
            f"give --coordinator HOST:PORT --processes N --process I, or set {' '.join(VARIABLES)}"
        ) from None
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(
            f"not all of {processes or 'the'} processes came within {limit:g} s ({line}); start them all"
        ) from None


def _of_cluster() -> int:
    """How many processes the cluster started, as jax sees it; 1 without a cluster, or where it cannot be asked."""
    try:
        from jax._src import clusters  # the only list of what `jax.distributed.initialize` recognises

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kinds = clusters.ClusterEnv._cluster_types
            found = next((k for k in kinds if not k.opt_in_only_method and k.is_env_present()), None)
            return 1 if found is None else found.get_process_count()
    except Exception:  # noqa: BLE001 a pod may have a cluster's variables and no right to ask it
        return 1
