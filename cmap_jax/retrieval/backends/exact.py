"""Exact search: every image is scored."""

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring
from cmap_jax.retrieval.backends.entry import BackendEntry
from cmap_jax.retrieval.exact import ExactIndex, SearchResult
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.retrieval.positions import NO_TARGET


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of exact search.

    Attributes:
        device_gb: most memory of a device that the gallery takes, in 10^9 bytes; a larger one is
            streamed from the index's files in every search.
    """

    device_gb: float = 4.0

    def __post_init__(self):
        if not self.device_gb > 0:
            raise ValueError(f"device_gb must be above 0, not {self.device_gb}")


class ExactBackend:
    """A stored index that is searched exactly."""

    def __init__(self, index: ExactIndex):
        """Take an index of the gallery."""
        self._index = index

    def search(
        self, query: scoring.ComposedQuery, k: int, allowed: np.ndarray | None = None
    ) -> SearchResult:
        """Return the best images of each query; see `entry.Backend`."""
        count = len(self._index) if allowed is None else int(allowed.sum())
        exclude = None
        if allowed is not None:
            exclude = np.broadcast_to(~allowed, (len(query), len(allowed)))
        result = self._index.search(query, k, exclude=exclude)
        beyond = np.arange(result.scores.shape[1]) >= count
        return SearchResult(
            np.where(beyond, np.float32(-np.inf), result.scores),
            np.where(beyond, np.int32(NO_TARGET), result.positions),
            None,
        )


def _open(stored: StoredIndex, settings: Settings, mesh: Mesh) -> ExactBackend:
    pyramid = np.concatenate([_values(part) for part in stored.parts], axis=1)
    return ExactBackend(ExactIndex(pyramid, mesh, device_gb=settings.device_gb))


def _values(part: Any) -> np.ndarray:
    """Return a part's embeddings as floating point, [L, n, D]."""
    return part if isinstance(part, np.ndarray) else part.rows(slice(None))


ENTRY = BackendEntry(settings=Settings, open=_open)
