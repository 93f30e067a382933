"""The form of an entry in the table of search backends.

A backend is one file in this package and a line in `cmap_jax.retrieval.backends.BACKENDS`:

    @dataclasses.dataclass(frozen=True)
    class Settings:
        shortlist: int = 500

    ENTRY = BackendEntry(settings=Settings, build=build, open=open_backend, extra="faiss")

Its module imports optional packages inside functions alone, so that the table can be read without
them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring
from cmap_jax.retrieval.exact import SearchResult
from cmap_jax.retrieval.index_files.reading import StoredIndex


class Backend(Protocol):
    """An index that is open for searches; several threads do not search it at the same time.

    A class that has nothing to warm up or to close inherits those two.
    """

    def search(
        self, query: scoring.ComposedQuery, k: int, allowed: np.ndarray | None = None
    ) -> SearchResult:
        """Return the best images of each query.

        Args:
            query: B queries, on the host.
            k: number of images a query, 1 or more.
            allowed: mask of the images that may be returned, [N] bool, the same for all queries;
                None: all of them.

        Returns:
            Scores [B, k] float32, those of `scoring.score`, best first, and positions [B, k]
            int32; a lower position wins a tie. Fewer columns where the index has fewer images.
            Behind the last image that may be returned the scores are -inf and the positions -1.
            There are no placements.

        Raises:
            ValueError: the query has other levels than the index, or a score is NaN.
            OSError: a server or a file of the index cannot be reached.
        """

    def warm_up(self, query: scoring.ComposedQuery, k: int) -> None:
        """Compile what few searches need, which one search after another would not.

        Args:
            query: queries of any number and content.
            k: largest number of images that searches ask for.
        """

    def close(self) -> None:
        """Let go of connections and files; nothing is searched afterwards."""


def _nothing_to_build(stored: StoredIndex, settings: Any, folder: str) -> None:
    """Write nothing: the embeddings alone are searched."""


def _nothing_to_damage(stored: StoredIndex, settings: Any) -> bool:
    """Find nothing missing: there are no files."""
    return True


def _nothing_to_check(settings: Any, folder: str) -> None:
    """Refuse nothing: there is nothing to build."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackendEntry:
    """Everything that others must know of a backend.

    Attributes:
        settings: a frozen dataclass whose fields all have defaults, of the types bool, int, float
            or str; it refuses impossible values when it is made, with a `ValueError` that begins
            with the field's name.
        open: opens a stored index for searches, given the index, the settings, and the mesh of
            devices that exact scores are computed on.
        build: writes what the backend keeps beside the embeddings, given the stored index, the
            settings and the index's folder.
        check: refuses, before anything is embedded, an index that ``build`` could not serve, given
            the settings and the index's folder: a package that is missing, or a bucket.
        intact: tells whether a search could open what ``build`` wrote, given the stored index and
            the settings. An update builds again what is not intact. It raises an `OSError` where a
            server that would know does not answer.
        extra: the extra of the package that installs what the backend needs; None: it needs
            nothing more.
    """

    settings: type
    open: Callable[[StoredIndex, Any, Mesh], Backend]
    build: Callable[[StoredIndex, Any, str], None] = _nothing_to_build
    check: Callable[[Any, str], None] = _nothing_to_check
    intact: Callable[[StoredIndex, Any], bool] = _nothing_to_damage
    extra: str | None = None
