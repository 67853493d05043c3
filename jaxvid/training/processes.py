# SPDX-License-Identifier: Apache-2.0
"""What the processes of a run do together, and what only the first of them does.

Every process runs the same program and has its part of a batch. Files that are the run's are written by the first. What
a clock or a signal says is agreed on: a process that stopped alone would leave the others waiting in a sum. With one
process nothing here does anything.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

WAIT = (
    6 * 3600.0
)  # seconds: one process may make videos, or encode clips, while the others have nothing to do

_meetings = itertools.count()


def first() -> bool:
    """Whether this process writes what is the run's."""
    return jax.process_index() == 0


def together(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax._src import distributed  # a barrier of hosts: one of devices gives up after minutes

        meeting = f"jaxvid/{next(_meetings)}/{what}"
        distributed.global_state.client.wait_at_barrier(meeting, int(1000 * WAIT))


def agreed(*said: bool) -> tuple[bool, ...]:
    """For every question whether some process says yes."""
    if jax.process_count() == 1:
        return said
    return tuple(bool(x) for x in multihost_utils.process_allgather(np.asarray(said)).any(0))


def whole(tree: Any) -> Any:
    """Arrays on the host, of arrays that may be cut over processes; every process has to ask."""

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)


def on_host(state: Any) -> Any:
    """A `TrainState` whose average, and what is not trained, are on this host, where there are several."""
    if jax.process_count() == 1:
        return state
    return state.replace(ema=whole(state.ema), rest=whole(state.rest))
