"""Exact search: every image is scored."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring
from cmap_jax.retrieval.backends.entry import Backend, BackendEntry
from cmap_jax.retrieval.exact import ExactIndex, SearchResult
from cmap_jax.retrieval.index_files.reading import StoredIndex


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of exact search.

    Attributes:
        device_gb: most memory of a device that the gallery takes, in 10^9 bytes; a larger one is
            streamed from the index's files in every search. 0: as `ExactIndex` chooses.
    """

    device_gb: float = 0.0

    def __post_init__(self):
        if not self.device_gb >= 0:
            raise ValueError(f"device_gb must be 0 or more, not {self.device_gb}")


class ExactBackend(Backend):
    """A stored index that is searched exactly."""

    def __init__(self, index: ExactIndex):
        """Take an index of the gallery."""
        self._index = index

    def search(
        self, query: scoring.ComposedQuery, k: int, allowed: np.ndarray | None = None
    ) -> SearchResult:
        """Return the best images of each query; see `entry.Backend`."""
        return self._index.search(query, k, allowed=allowed)


def _open(stored: StoredIndex, settings: Settings, mesh: Mesh) -> ExactBackend:
    return ExactBackend(ExactIndex(stored.parts, mesh, device_gb=settings.device_gb))


ENTRY = BackendEntry(settings=Settings, open=_open)
