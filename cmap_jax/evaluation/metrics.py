"""Ranks, best images and average precisions of a matrix of scores (docs/method.md, section 6)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cmap_jax.retrieval.placement import BROKEN, Placement, Thresholds
from cmap_jax.retrieval.positions import Positions, padded_positions


def ranks(
    scores: np.ndarray | jax.Array, targets: Positions, exclude: Positions | None = None
) -> np.ndarray:
    """Return the expected 0-based rank of each query's best-ranked correct image.

    See docs/method.md, section 6.

    The rank is the number of wrong images with a strictly higher score, plus the expected number of
    wrong images before the correct one among those of equal score: e / (c + 1) for e wrong and c
    correct images. Ranks are therefore real numbers. The gallery is not sorted.

    Args:
        scores: [B, N] on any device; they are read once and stay there.
        targets: positions of the correct images in the gallery: one a row ([B]), several a row (a
            sequence of sequences, or [B, M] padded with -1), or a bool mask [B, N].
        exclude: positions whose score counts as -inf, such as the reference's, in the same forms.

    Returns:
        [B] float64: N - 1 where the only correct image is excluded and all other scores are
        finite, and -1 where there is no correct image at all.

    Raises:
        ValueError: the shapes do not fit, a position is outside the gallery, or a score is NaN.
    """
    return place(scores, targets, exclude).ranks()


def place(
    scores: np.ndarray | jax.Array, targets: Positions, exclude: Positions | None = None
) -> Placement:
    """Return the placement of each query's best-ranked correct image, [B]; arguments as `ranks`."""
    if scores.ndim != 2:
        raise ValueError(f"scores must be [B, N], not {scores.shape}")
    correct, excluded = (padded_positions(p, scores.shape) for p in (targets, exclude))
    if not scores.size:
        return Placement(*np.zeros((3, len(scores)), np.int64))
    with jax.enable_x64(scores.dtype == np.float64):  # without it, float64 would be rounded
        picked, *counts, broken = map(np.asarray, _count(scores, correct, excluded))
    if broken:
        raise ValueError(BROKEN)
    thresholds = Thresholds.build(picked, correct, excluded, every=False)
    return thresholds.place(*(count[:, None] for count in counts)).best()


@jax.jit
def _count(
    scores: jax.Array, correct: jax.Array, excluded: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Count the wrong images above and at the best correct image's score; excluded ones not.

    Args:
        scores: [B, N].
        correct: positions of the correct images, [B, M], padded with -1.
        excluded: positions of the excluded images, [B, E], padded with -1.

    Returns:
        The correct images' scores, [B, M], with -inf for excluded ones and padding; the two counts,
        [B] each; and whether any score is NaN.
    """

    def at(positions: jax.Array) -> jax.Array:
        values = jnp.take_along_axis(scores, jnp.maximum(positions, 0), axis=1)
        return jnp.where(positions >= 0, values, jnp.nan)  # NaN equals nothing and exceeds nothing

    is_excluded = (correct[:, :, None] == excluded[:, None, :]).any(axis=2)
    picked = jnp.where(is_excluded, jnp.nan, at(correct))
    scored = jnp.where(jnp.isnan(picked), -jnp.inf, picked)
    best = jnp.max(scored, axis=1, keepdims=True)
    uncounted = jnp.concatenate([picked, at(excluded)], axis=1)
    higher = jnp.sum(scores > best, axis=1, dtype=jnp.int32)
    tied = jnp.sum(scores == best, axis=1, dtype=jnp.int32)
    higher -= jnp.sum(uncounted > best, axis=1, dtype=jnp.int32)
    tied -= jnp.sum(uncounted == best, axis=1, dtype=jnp.int32)
    return scored, higher, tied, jnp.isnan(scores).any()


def top(scores: np.ndarray | jax.Array, count: int, exclude: Positions | None = None) -> np.ndarray:
    """Return the positions of the ``count`` best images of each row, best first.

    Args:
        scores: [B, N] on any device.
        count: number of images a row; all N where there are fewer.
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
    # The padding, -1, would count from the end; N is out of range and dropped.
    columns = jnp.where(excluded >= 0, excluded, scores.shape[1])
    scores = scores.at[rows, columns].set(-jnp.inf, mode="drop")
    return jax.lax.top_k(scores, count)[1]


def wrong_share(
    placement: Placement, ranked: np.ndarray, cutoffs: Sequence[int]
) -> dict[int, np.ndarray]:
    """Return the expected share of explicit wrong images among each query's first K images.

    See docs/method.md, section 6, several right and explicit wrong images. An image that shares
    its score with others is among the first K with the share of the orders of these equals that put
    it there: with g images above and m at its score, itself included, this is (K - g) / m, limited
    to 0 to 1. (A threshold on the expected rank, as recall has it, would praise a model that scores
    everything alike, whose wrong images all have a rank in the middle of the gallery.)

    Args:
        placement: the placements of every explicit wrong image, [B, M], among all others, as if the
            explicit wrong images were the correct ones of a search.
        ranked: [B] int, number of images that take part in a query's ranking.
        cutoffs: one or more values of K.

    Returns:
        [B] float64 in 0..1 for each K, the divisor being min(K, ranked); NaN for a query without an
        explicit wrong image in the gallery.
    """
    exists, higher, tied = placement.correct > 0, placement.higher, placement.tied
    # Explicit wrong images of different scores with no other image between them look alike, and are
    # counted together as one level: their expected number among the first K is the same.
    same = (higher[:, :, None] == higher[:, None, :]) & (tied[:, :, None] == tied[:, None, :])
    fewer = (higher[:, :, None] == higher[:, None, :]) & (tied[:, None, :] < tied[:, :, None])
    fewer |= higher[:, None, :] < higher[:, :, None]
    before = higher + (fewer & exists[:, None, :]).sum(axis=2)
    level = np.maximum(tied + (same & exists[:, None, :]).sum(axis=2), 1)
    shares = {}
    for k in cutoffs:
        expected = np.where(exists, np.clip((k - before) / level, 0, 1), 0.0).sum(axis=1)
        share = expected / np.maximum(np.minimum(ranked, k), 1)
        shares[k] = np.where(exists.any(axis=1), share, np.nan)
    return shares


def average_precision(placement: Placement, cutoffs: Sequence[int]) -> dict[int, np.ndarray]:
    """Return AP@K of each query, as CIRCO defines it (docs/method.md, section 5).

    It is the sum of the precisions at the ranks of the correct images among the first K, divided by
    min(correct images, K). Tied images have expected ranks: with c correct and e wrong images of
    the same score, the j-th correct one has j e / (c + 1) of the wrong ones before it
    (docs/method.md, section 6).

    Args:
        placement: the placements of every correct image, [B, M].
        cutoffs: one or more values of K.

    Returns:
        [B] float64 in 0..1 for each K; 0 for a query without a correct image.
    """
    exists = placement.correct > 0
    # The best come first, the padding last.
    order = np.lexsort((placement.tied, placement.higher, ~exists), axis=1)
    exists, higher, tied, correct = (
        np.take_along_axis(x, order, axis=1)
        for x in (exists, placement.higher, placement.tied, placement.correct)
    )
    number = np.arange(1, exists.shape[1] + 1)  # correct images so far, this one included
    same = (higher[:, :, None] == higher[:, None, :]) & (tied[:, :, None] == tied[:, None, :])
    before = np.tri(exists.shape[1], k=0, dtype=bool)
    among_equals = (same & before & exists[:, None, :]).sum(axis=2)
    wrong = higher + among_equals * tied / (correct + 1)  # their expected number before this image
    rank = wrong + number - 1  # 0-based
    precision = np.where(exists, number / (rank + 1), 0.0)
    counts = exists.sum(axis=1)
    return {
        k: (precision * (rank < k)).sum(axis=1) / np.maximum(np.minimum(counts, k), 1)
        for k in cutoffs
    }
