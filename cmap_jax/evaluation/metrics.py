"""From scores to ranks, first images and average precisions (SPEC 6)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cmap_jax.retrieval.positions import NO_TARGET, Positions, padded_positions


def ranks(
    scores: np.ndarray | jax.Array, targets: Positions, exclude: Positions | None = None
) -> np.ndarray:
    """Return the 0-based rank of each query's best-ranked correct image (SPEC 6).

    The rank is the number of images that score strictly higher; the gallery is not sorted.

    Args:
        scores: [B, N], on whatever device; they are read once and stay there.
        targets: correct positions in the gallery: one a row ([B]), several a row (a sequence of
            sequences, or [B, M] padded with -1), or a bool mask [B, N].
        exclude: positions whose score counts as -inf, in the same forms; the reference image.

    Returns:
        [B] int64. N - 1 where the only correct image is excluded; -1 where there is none at all.

    Raises:
        ValueError: shapes that do not fit, a position outside the gallery, or a NaN score.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be [B, N], not {scores.shape}")
    correct = padded_positions(targets, scores.shape)
    with jax.enable_x64(scores.dtype == np.float64):  # else such scores would be rounded
        found, broken = _count_higher(scores, correct, padded_positions(exclude, scores.shape))
    if broken:
        raise ValueError("a score is NaN: the model or its inputs are broken")
    return np.where((correct >= 0).any(axis=1), np.asarray(found, np.int64), NO_TARGET)


@jax.jit
def _count_higher(
    scores: jax.Array, correct: jax.Array, excluded: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return how many images score above the best correct one, [B], and whether a score is NaN."""
    if not scores.size:
        return jnp.zeros(scores.shape[0], jnp.int32), jnp.zeros((), bool)

    def at(positions: jax.Array) -> jax.Array:
        values = jnp.take_along_axis(scores, jnp.maximum(positions, 0), axis=1)
        return jnp.where(positions >= 0, values, -jnp.inf)

    taken_out = (correct[:, :, None] == excluded[:, None, :]).any(axis=2)
    best = jnp.max(jnp.where(taken_out, -jnp.inf, at(correct)), axis=1, keepdims=True)
    higher = jnp.sum(scores > best, axis=1, dtype=jnp.int32)
    # Those excluded count as -inf, which is above nothing.
    higher -= jnp.sum(at(excluded) > best, axis=1, dtype=jnp.int32)
    return higher, jnp.isnan(scores).any()


def top(scores: np.ndarray | jax.Array, count: int, exclude: Positions | None = None) -> np.ndarray:
    """Return the positions of the ``count`` best images of each row, best first.

    Args:
        scores: [B, N], on whatever device.
        count: images a row; all N where there are fewer.
        exclude: positions whose score counts as -inf, as in `ranks`; they come last.

    Returns:
        [B, min(count, N)] int32; ties go to the lower position.
    """
    excluded = padded_positions(exclude, scores.shape)
    with jax.enable_x64(scores.dtype == np.float64):
        return np.asarray(_top(scores, excluded, count=min(count, scores.shape[1])))


@functools.partial(jax.jit, static_argnames="count")
def _top(scores: jax.Array, excluded: jax.Array, *, count: int) -> jax.Array:
    rows = jnp.arange(len(scores))[:, None]
    # -1 pads: out of range at the other end, and dropped.
    columns = jnp.where(excluded >= 0, excluded, scores.shape[1])
    scores = scores.at[rows, columns].set(-jnp.inf, mode="drop")
    return jax.lax.top_k(scores, count)[1]


def average_precision(
    best: np.ndarray, targets: Sequence[Sequence[int]], cutoffs: Sequence[int]
) -> dict[int, np.ndarray]:
    """Return AP@K of each query, as CIRCO defines it (SPEC 5).

    The sum over the first K images of (precision up to there, where the image is correct), divided
    by min(correct images, K).

    Args:
        best: [B, M] positions, best first; M is at least the largest K, or the whole gallery.
        targets: the correct positions of each row, each once.
        cutoffs: the K.

    Returns:
        [B] float64 in 0..1 for each K; 0 for a query without a correct image.
    """
    correct = np.array([np.isin(row, places) for row, places in zip(best, targets, strict=True)])
    correct = correct.reshape(best.shape)
    precision = np.cumsum(correct, axis=1) / np.arange(1, best.shape[1] + 1)
    counts = np.array([len(places) for places in targets])
    return {
        k: (precision * correct)[:, :k].sum(axis=1) / np.maximum(np.minimum(counts, k), 1)
        for k in cutoffs
    }
