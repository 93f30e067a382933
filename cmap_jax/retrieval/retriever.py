"""Search in an index on disk: a reference, a text and conditions in, named images out.

    retriever = Retriever.build(cmap_jax.load("runs/shop"), "photos", "INDEX")
    retriever = Retriever.load("INDEX")                                 # at any later time
    hits = retriever.search("dress.jpg", "in red", k=10, where={"price": {"max": 50}})
    hits[0].id, hits[0].score, hits[0].parts, hits[0].metadata

An index belongs to the model that it was made with: another one's is refused.
"""

import dataclasses
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from cmap_jax import scoring, sharding
from cmap_jax.encoding import BATCH, pad_rows
from cmap_jax.retrieval.backends import Backend, find_backend, settings_of
from cmap_jax.retrieval.batch_sizes import BatchSizes
from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.exact import SearchResult
from cmap_jax.retrieval.filters import Fields, Where
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.retrieval.indexing import build_index
from cmap_jax.retrieval.positions import NO_TARGET, round_to_power
from cmap_jax.retrieval.queries import Query, QueryComposer
from cmap_jax.trained import Trained, load

# Queries searched at once and queries whose hits' parts are computed at once, before `warm_up`.
_SIZES = tuple(1 << power for power in range(11))
_PART_SIZES = (1, 8, BATCH)
# Columns of the programs for hits' parts: one serves most k, and none needs much memory.
_LEAST_HITS, _MOST_HITS = 64, 1024


@dataclasses.dataclass(frozen=True)
class Hit:
    """An image that a search returns.

    Attributes:
        id: the image's id in the index.
        score: the query's score against it.
        parts: the score's terms by branch and level, such as "modified/high"; they sum to it.
        metadata: what the catalogue says of the image.
        image: path or URL of the picture.
        position: the image's number in the index.
    """

    id: str
    score: float
    parts: Mapping[str, float]
    metadata: Mapping[str, Any]
    image: str
    position: int


class Retriever:
    """An index that is open for searches, with its model.

    One thread searches at a time.

    Attributes:
        trained: the model.
        index: the `StoredIndex`.
        backend: the search backend, open on the index.
        fields: the fields that ``where`` may name.
    """

    def __init__(self, trained: Trained, index: StoredIndex, backend: Backend):
        """Take what `load` opens."""
        self.trained, self.index, self.backend = trained, index, backend
        self.fields = Fields(index.manifest.fields, index.column, len(index))
        self._composer = QueryComposer(trained, index)
        self._sizes, self._part_sizes = BatchSizes(_SIZES), BatchSizes(_PART_SIZES)
        self._most = 0  # largest k that `warm_up` compiled for

    @classmethod
    def build(
        cls,
        trained: Trained,
        images: str | os.PathLike | Sequence[Item],
        folder: str | os.PathLike,
        *,
        dtype: str | None = None,
        update: bool = False,
        backend: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> "Retriever":
        """Embed pictures, write them to an index, and open it.

        Args:
            trained: the model.
            images: a folder of pictures, a list of them in a file, or a sequence of items; see
                `cmap_jax.retrieval.catalogue`.
            folder: of the index; a new one, or one whose making was interrupted.
            dtype: float32, bfloat16 or int8, in which the embeddings are stored; None: that of the
                index before, or else float32.
            update: whether an index in the folder is brought up to date.
            backend: key of `cmap_jax.retrieval.backends.BACKENDS`; None: that of the index before,
                or else exact search.
            settings: values of the backend's settings, by name; the others are those of the index
                before, if it has the same backend, or else the defaults.

        Raises:
            OSError, ValueError: as `cmap_jax.retrieval.indexing.build_index`.
        """
        build_index(
            trained,
            images,
            folder,
            dtype=dtype,
            update=update,
            backend=backend,
            settings=settings,
        )
        return cls.load(folder, model=trained)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike | StoredIndex,
        *,
        model: str | os.PathLike | Trained | None = None,
        backend: str | None = None,
        settings: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
    ) -> "Retriever":
        """Open an index for searches.

        Args:
            folder: of the index; or the index, open.
            model: workdir of the index's model, or the model; None: the workdir that the index
                names.
            backend: a backend other than the index's own.
            settings: values of the backend's settings, by name, in place of the index's own.
            mesh: the devices that scores are computed on; None: all.

        Raises:
            FileNotFoundError: there is no index, or its model is no longer where it was.
            ValueError: the index is damaged or another model's, or a setting is impossible.
        """
        index = folder if isinstance(folder, StoredIndex) else StoredIndex(folder)
        about = index.manifest
        name = backend or about.backend
        own = about.settings if name == about.backend else {}
        chosen = settings_of(name, {**own, **(settings or {})})
        trained = model if isinstance(model, Trained) else _load_model(index, model)
        index.check_model(trained.fingerprint, trained.workdir or "the given model")
        mesh = sharding.make_mesh() if mesh is None else mesh
        return cls(trained, index, find_backend(name).open(index, chosen, mesh))

    def __repr__(self) -> str:
        """Return the index and the model."""
        return f"Retriever({self.index!r}, {self.trained!r})"

    def search(
        self,
        image: Any = None,
        text: str | tuple[str, ...] | None = None,
        k: int = 10,
        where: Where | None = None,
        *,
        item: str | Sequence[str] | None = None,
    ) -> list[Hit]:
        """Return the best images for one query, a `Query` of these parts, best first.

            retriever.search("dress.jpg", "in red")
            retriever.search(item="dresses/1.jpg", text="longer", where={"size": ["s", "m"]})

        Args:
            image: a reference picture, or a list of several.
            text: one caption, or two. Most methods need both an image and a text; `Trained.takes`
                says what the model's method takes.
            k: number of images, 1 or more; fewer where fewer may be returned.
            where: conditions on the metadata that all images fulfil; see
                `cmap_jax.retrieval.filters`.
            item: the id of an image of the index as reference, or several.

        Raises:
            ImageReadError: a picture cannot be read.
            TypeError, ValueError: a query that the method does not take, an unknown id, or a
                condition that does not fit the metadata; says which.
        """
        return self.search_batch([Query(image, item, text)], k, where)[0]

    def search_batch(
        self, queries: Sequence[Query], k: int = 10, where: Where | None = None
    ) -> list[list[Hit]]:
        """Return the best images for each of B queries; arguments and errors as `search`."""
        k, allowed = _as_count(k), self.fields.mask(where)  # refused before any work
        return self._search(self.compose(queries), k, allowed)

    def compose(self, queries: Sequence[Query]) -> scoring.ComposedQuery:
        """Compose B queries, for `search_composed`; errors as `search`."""
        return self._composer.compose(queries)

    def search_composed(
        self, query: scoring.ComposedQuery, k: int = 10, where: Where | None = None
    ) -> list[list[Hit]]:
        """Return the best images for each of B composed queries; the rest as `search`."""
        return self._search(query, _as_count(k), self.fields.mask(where))

    def close(self) -> None:
        """Let go of the backend's connections and files; nothing is searched afterwards."""
        self.backend.close()

    def warm_up(self, batch_sizes: Sequence[int] = (1,), k: int = 10) -> None:
        """Compile all that searches need, which takes seconds or minutes.

        No later search compiles anything if it asks for at most ``k`` images, or 64 where that is
        more. Batches of other numbers of queries are padded or cut to these sizes.

        Args:
            batch_sizes: numbers of queries in a batch.
            k: largest number of images that searches ask for.

        Raises:
            ValueError: a size below 1, or a ``k`` below 1.
        """
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch sizes are 1 or more, not {batch_sizes}")
        self._most = _as_count(k)
        self._sizes = BatchSizes(batch_sizes)
        self._part_sizes = BatchSizes(min(size, BATCH) for size in batch_sizes)
        query = self._composer.warm_up(batch_sizes)
        for count in sorted({min(_LEAST_HITS, self._most), self._most}):
            self.backend.warm_up(query, min(count, len(self.index)))
            for size in self._sizes:
                for allowed in (None, np.ones(len(self.index), bool)):
                    self._search(_padded(query, size), count, allowed)

    def _search(
        self, query: scoring.ComposedQuery, k: int, allowed: np.ndarray | None
    ) -> list[list[Hit]]:
        """Return the best images that the mask ``allowed``, [N] bool, has for B queries."""
        if allowed is not None and not allowed.any():
            return [[] for _ in range(len(query))]
        # Larger k have programs of their own, hence all that were warmed up share the largest one.
        searched = k if k <= _LEAST_HITS else max(k, self._most)
        hits = []
        for rows, size in self._sizes.parts(len(query)):
            part = scoring.take(query, rows)
            padded, most = _padded(part, size), min(searched, len(self.index))
            result = self.backend.search(padded, most, allowed)
            is_wanted = np.arange(result.positions.shape[1]) < k
            positions = np.where(is_wanted, result.positions, NO_TARGET)
            hits += self._hits(part, dataclasses.replace(result, positions=positions))
        return hits

    def _hits(self, query: scoring.ComposedQuery, result: SearchResult) -> list[list[Hit]]:
        """Return the images of a search's first B rows, for B queries."""
        names = [f"{branch}/{level}" for branch in query.branch_names for level in query.levels]
        parts = self._hit_parts(query, result.positions[: len(query)])
        hits = []
        for row in range(len(query)):
            columns = np.flatnonzero(result.positions[row] >= 0)
            hits.append(
                [
                    self._hit(
                        int(result.positions[row, column]),
                        float(result.scores[row, column]),
                        dict(zip(names, parts[row, :, column].tolist(), strict=True)),
                    )
                    for column in columns
                ]
            )
        return hits

    def _hit(self, position: int, score: float, parts: Mapping[str, float]) -> Hit:
        item = self.index.item_at(position)
        return Hit(
            id=item.id,
            score=score,
            parts=parts,
            metadata=item.metadata,
            image=item.image,
            position=position,
        )

    def _hit_parts(self, query: scoring.ComposedQuery, positions: np.ndarray) -> np.ndarray:
        """Return the terms of the hits' scores, [B, branches x levels, k]; zeros at position -1."""
        width = min(round_to_power(max(positions.shape[1], _LEAST_HITS)), _MOST_HITS)
        batches = []
        for rows, size in self._part_sizes.parts(len(query)):
            part = _padded(scoring.take(query, rows), size)
            blocks = [
                self._block_parts(part, positions[rows, start : start + width], width)
                for start in range(0, positions.shape[1], width)
            ]
            batches.append(np.concatenate(blocks, axis=2)[:, :, : positions.shape[1]])
        return np.concatenate(batches)

    def _block_parts(
        self, query: scoring.ComposedQuery, positions: np.ndarray, width: int
    ) -> np.ndarray:
        """Return `_hit_parts` of at most ``width`` hits of the first queries of a padded batch."""
        wanted = np.full((len(query), width), NO_TARGET)
        wanted[: len(positions), : positions.shape[1]] = positions
        is_hit = wanted >= 0
        embeddings = self.index.rows(wanted[is_hit])
        targets = np.zeros((len(embeddings), *wanted.shape, embeddings.shape[-1]), np.float32)
        targets[:, is_hit] = embeddings
        return np.asarray(_score_parts(query, targets))[: len(positions)]


def _as_count(k: Any) -> int:
    """Return a number of images, which may be one of NumPy's integers.

    Raises:
        ValueError: no whole number of 1 or more.
    """
    try:
        count = 0 if isinstance(k, bool) else operator.index(k)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"k, the number of images, must be 1 or more, not {k!r}")
    return count


@jax.jit
def _score_parts(
    query: scoring.ComposedQuery, targets: Float[Array, "L B k D"]
) -> Float[Array, "B T k"]:
    """Score each query against images of its own; T is branches times levels, in that order."""

    def score(query: scoring.ComposedQuery, targets: jax.Array) -> jax.Array:
        query = jax.tree.map(lambda x: x[:, None], query)
        terms = scoring.score_branches(query, targets)  # [K, L, 1, k]
        return terms.reshape(-1, terms.shape[-1])

    return jax.vmap(score, in_axes=1)(query, targets)


def _load_model(index: StoredIndex, model: str | os.PathLike | None) -> Trained:
    """Return the model in a workdir, or in that which an index names."""
    workdir = model or index.manifest.model
    if workdir is None:
        raise ValueError(f"{index.folder} does not say where its model is: name the model's folder")
    try:
        return load(workdir)
    except FileNotFoundError as error:
        if model:
            raise
        raise FileNotFoundError(
            f"{index.folder} was made with the model {workdir}, which cannot be read ({error}); "
            "name the folder where the model is now"
        ) from error


def _padded(query: scoring.ComposedQuery, size: int) -> scoring.ComposedQuery:
    """Return a batch of ``size`` queries; those that are added are zero."""
    return jax.tree.map(lambda x: pad_rows(np.asarray(x), size, axis=1), query)
