"""The effect of rounding embeddings, measured on an index (docs/method.md, section 11).

Queries are made of pictures of the index and short texts. The best images of each by the stored
numbers are embedded once more, and ranked by the numbers before rounding.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from cmap_jax import scoring
from cmap_jax.files import is_remote
from cmap_jax.processing.images import Preprocessed
from cmap_jax.progress import track
from cmap_jax.retrieval.index_files import quantization
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.retrieval.pictures import Entry, read_ahead
from cmap_jax.trained import Trained

_QUERIES = 32
_BEST = 10  # images of a query that are compared
_CANDIDATES = 2 * _BEST  # images of a query that are embedded once more
_TEXTS = (
    "is red",
    "is darker",
    "has longer sleeves",
    "is blue and shorter",
    "is in black and white",
    "has a pattern",
    "is plain",
    "is smaller",
)
_ROWS = 8192  # images that are scored at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """The effect of rounding.

    Attributes:
        images: number of pictures that were embedded once more.
        error: mean length of the difference from the embedding before rounding, whose own length
            is 1.
        worst: greatest length of a difference.
        queries: number of queries.
        best: number of the best images that are compared, K.
        kept: mean share of the K best by the stored numbers that are among the K best, or tied with
            the last of them, by the numbers before rounding.
        score_error: greatest difference of a score.
    """

    images: int
    error: float
    worst: float
    queries: int
    best: int
    kept: float
    score_error: float

    def __str__(self) -> str:
        """Return a sentence for people."""
        return (
            f"rounded embeddings are off by {self.error:.2%} on average and {self.worst:.2%} at "
            f"most ({self.images:,} pictures embedded twice); of the best {self.best} images of "
            f"{self.queries} self-made queries {self.kept:.1%} stay among the best {self.best}; "
            f"scores differ by up to {self.score_error:.1e}"
        )


def measure(trained: Trained, stored: StoredIndex) -> Loss | None:
    """Measure what an index lost by rounding.

    Args:
        trained: the model of the index.
        stored: the index.

    Returns:
        The loss; None if no picture of the sample can be read any more.

    Raises:
        OSError: a bucket cannot be reached.
    """
    sample = np.unique(np.linspace(0, len(stored) - 1, _QUERIES).astype(np.int64))
    references = _read(trained, stored, sample)
    if not references:
        return None
    query = _compose(trained, list(references.values()))
    best = _search(stored, query, min(_CANDIDATES, len(stored)))
    candidates = _read(trained, stored, np.unique(best))
    if not candidates:
        return None
    positions = np.array(list(candidates))
    exact = trained.encode_images(list(candidates.values()))
    rounded = stored.rows(positions)
    lengths = np.maximum(np.linalg.norm(exact, axis=2), np.finfo(np.float32).tiny)
    errors = np.linalg.norm(rounded - exact, axis=2) / lengths
    scores = [np.asarray(scoring.score(query, rows)) for rows in (exact, rounded)]
    count = min(_BEST, len(positions))
    return Loss(
        images=len(positions),
        error=float(errors.mean()),
        worst=float(errors.max()),
        queries=len(query),
        best=count,
        kept=_kept(*scores, count),
        score_error=float(np.abs(scores[0] - scores[1]).max()),
    )


def _read(trained: Trained, stored: StoredIndex, positions: np.ndarray) -> dict[int, Preprocessed]:
    """Return the pictures at some positions; those that cannot be read any more are left out."""
    entries = [Entry(stored.item_at(position)) for position in positions.tolist()]
    remote = any(is_remote(entry.item.image) for entry in entries)
    pictures = read_ahead(entries, trained.preprocessing, remote)
    pictures = track(pictures, len(entries), "measuring the loss", "pictures")
    return {
        position: Preprocessed(picture.pixels)
        for position, picture in zip(positions.tolist(), pictures, strict=True)
        if picture.pixels is not None
    }


def _compose(trained: Trained, references: Sequence[Preprocessed]) -> scoring.ComposedQuery:
    """Return a query for each reference, with texts whose words the model knows, if there are any.

    Words that it does not know are one to it, and which text they are in makes no difference.
    """
    known = [text for text in _TEXTS if not trained.tokenizer.unknown(text)] or _TEXTS[:1]
    texts = [known[n % len(known)] for n in range(len(references))]
    return trained.compose(references, texts)


def _search(stored: StoredIndex, query: scoring.ComposedQuery, k: int) -> np.ndarray:
    """Return the positions of each query's k best images by the stored numbers, [B, k]."""
    best = np.full((len(query), k), -np.inf, np.float32)
    positions = np.zeros((len(query), k), np.int64)
    score = jax.jit(scoring.score)
    padded = min(_ROWS, len(stored))  # one size for all blocks: one program is compiled
    start = 0
    for part in stored.parts:
        for first in range(0, part.shape[1], padded):
            rows = quantization.rows_of(part, slice(first, first + padded))
            count = rows.shape[1]
            rows = np.pad(rows, ((0, 0), (0, padded - count), (0, 0)))
            scores = np.concatenate([best, np.asarray(score(query, rows))[:, :count]], axis=1)
            here = np.broadcast_to(start + np.arange(count), (len(query), count))
            everywhere = np.concatenate([positions, here], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            best, positions = (np.take_along_axis(a, order, 1) for a in (scores, everywhere))
            start += count
    return positions


def _kept(exact: np.ndarray, rounded: np.ndarray, count: int) -> float:
    """Return the share of the best ``count`` by rounded scores that exact scores have there too."""
    chosen = np.argsort(-rounded, axis=1, kind="stable")[:, :count]
    least = -np.sort(-exact, axis=1)[:, count - 1 : count]
    return float((np.take_along_axis(exact, chosen, 1) >= least).mean())
