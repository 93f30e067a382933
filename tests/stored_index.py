"""Small stored indexes and queries, and their scores by the definition in float64."""

import pathlib

import numpy as np

from cmap_jax import scoring
from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.retrieval.index_files.writing import write_index

LEVELS, WIDTH = 2, 16


def random_pyramid(images: int, seed: int = 0, kinds: int | None = None) -> np.ndarray:
    """Return unit vectors, [L, N, D]; with ``kinds``, so many different images."""
    rng = np.random.default_rng(seed)
    pyramid = rng.normal(size=(LEVELS, kinds or images, WIDTH)).astype(np.float32)
    pyramid /= np.linalg.norm(pyramid, axis=-1, keepdims=True)
    return pyramid[:, rng.integers(kinds, size=images)] if kinds else pyramid


def random_query(queries: int, seed: int = 1) -> scoring.ComposedQuery:
    """Return queries of three branches: weighted alike at all levels, weighted, not weighted."""
    rng = np.random.default_rng(seed)
    n, w, plain = rng.normal(size=(3, LEVELS, queries, WIDTH)).astype(np.float32)
    branches = scoring.Branch(n[:1], np.exp(w[:1])), scoring.Branch(n, np.exp(w))
    return scoring.ComposedQuery((*branches, scoring.Branch(plain)), None, "abc", ("high", "low"))


def scores_by_definition(query: scoring.ComposedQuery, pyramid: np.ndarray) -> np.ndarray:
    """Return docs/method.md, section 1, term by term in float64, [B, N]."""
    total = np.zeros((len(query), pyramid.shape[1]))
    for level, targets in enumerate(pyramid.astype(np.float64)):
        for branch in query.branches:
            n, w = (
                None if x is None else x[level % len(x)].astype(np.float64)[:, None]
                for x in (branch.numerator, branch.weight)
            )
            norm = 1 if w is None else np.sqrt((w * w * targets * targets).sum(axis=-1))
            total += (n * targets).sum(axis=-1) / norm
    return total


def write(folder: pathlib.Path, pyramid: np.ndarray) -> StoredIndex:
    """Write an index of embeddings and open it."""
    items = [Item(f"{i}.jpg", f"/photos/{i}.jpg", {}) for i in range(pyramid.shape[1])]
    write_index(folder, items, pyramid, fingerprint="f", variant="cmap")
    return StoredIndex(folder)
