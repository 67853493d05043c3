# SPDX-License-Identifier: Apache-2.0
"""A load into registers of a given layout, as every supported jax spells it; shared by the kernels for Hopper."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

INDEX = ((),) if jax.version.__version_info__ < (0, 11) else ()  # jax 0.10 wants an index, even an empty one


def load(ref: Any, *, layout: Any, optimized: bool = True) -> Any:
    """All of ``ref`` in ``layout``; ``optimized=False`` where it is no buffer in shared memory that suits it."""
    return plgpu.load(ref, *INDEX, layout=layout, optimized=optimized)
