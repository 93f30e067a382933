"""Settings that all backends with a short list share, and the choices that they leave open."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cmap_jax.retrieval.backends.record import again
from cmap_jax.retrieval.index_files.reading import StoredIndex

_CHOICES = {"kind": ("auto", "flat", "ivf", "hnsw"), "dtype": ("auto", "float32", "int8")}
_LEAST = {"shortlist": 1, "nprobe": 0, "ef_search": 0}
_FLAT_UNTIL = 50_000  # images up to which comparing each of them takes milliseconds
_PROBED = 4  # one of so many clusters is searched


@dataclasses.dataclass(frozen=True)
class ShortlistSettings:
    """How an index is built, and how much of it is searched.

    Attributes:
        kind: "flat" compares every image; "ivf" those of the nearest clusters; "hnsw" walks a
            graph. "auto" builds flat for at most 50,000 images and ivf for more, and opens any.
        dtype: "float32", or "int8" for a quarter of the memory. "auto" builds float32 and opens
            any.
        shortlist: images a query whose exact scores are computed, 1 or more.
        nprobe: clusters that ivf searches; 0: a quarter of them.
        ef_search: nodes that hnsw keeps while it walks; 0: twice the short list.
    """

    kind: str = "auto"
    dtype: str = "auto"
    shortlist: int = 500
    nprobe: int = 0
    ef_search: int = 0

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")

    def form(self, count: int) -> dict[str, str]:
        """Return the kind and the dtype to build for a number of images; neither is "auto"."""
        kind = "flat" if count <= _FLAT_UNTIL else "ivf"
        return {
            "kind": kind if self.kind == "auto" else self.kind,
            "dtype": "float32" if self.dtype == "auto" else self.dtype,
        }

    def check_form(self, stored: StoredIndex, backend: str, record: Mapping[str, Any]) -> None:
        """Refuse an index that was built in another form than these settings name.

        Args:
            stored: the embeddings.
            backend: name of the backend.
            record: of the backend's files.
        """
        for name in _CHOICES:
            if (value := getattr(self, name)) not in ("auto", record[name]):
                raise ValueError(
                    f"{name}={value}, but the index was made with {name}={record[name]}; leave "
                    f"{name} out, or {again(stored, backend, f'{name}={value}')}"
                )

    def clusters_searched(self, clusters: int, allowed: np.ndarray | None) -> int:
        """Return the number of clusters to search of all; more where a mask lets few pass."""
        return min(math.ceil((self.nprobe or clusters / _PROBED) / _passed(allowed)), clusters)

    def nodes_kept(self, width: int, allowed: np.ndarray | None) -> int:
        """Return the number of a graph's nodes to keep, for a short list of ``width`` images."""
        return math.ceil((self.ef_search or 2 * width) / _passed(allowed))


def clusters_of(count: int) -> int:
    """Return the number of clusters of an ivf index of so many images."""
    return max(4 * math.isqrt(count), 1)


def _passed(allowed: np.ndarray | None) -> float:
    """Return the fraction of the images that a mask lets pass, which has at least one."""
    return 1.0 if allowed is None else float(allowed.mean())
