"""The memory of a device that a gallery may take, where nobody has said."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cmap_jax import sharding

# The share of the free memory; scores and the encoders of queries need the rest.
_SHARE = 0.6
UNKNOWN = 4e9  # bytes, where a device does not tell its memory


def bytes_for_gallery(mesh: Mesh) -> float:
    """Return the bytes of each device that a gallery may take, the same in all processes.

    All processes of the mesh call this at the same time.
    """
    room = min(_bytes_of(device.memory_stats() or {}) for device in mesh.local_devices)
    if sharding.replicated(mesh).is_fully_addressable:
        return room
    return float(multihost_utils.process_allgather(np.float32(room)).min())


def _bytes_of(statistics: Mapping[str, Any]) -> float:
    if "bytes_limit" not in statistics:
        return UNKNOWN
    return _SHARE * (statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))
