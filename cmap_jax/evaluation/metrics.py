"""Ranks, and what is reported of them (SPEC 6)."""

from collections.abc import Mapping, Sequence, Set

import jax
import jax.numpy as jnp
import numpy as np

from cmap_jax.protocols import Protocol

Positions = Sequence[int] | Sequence[Sequence[int]] | np.ndarray

NO_TARGET = -1  # the rank of a query without a correct image in the gallery


def _positions(positions: Positions | None, shape: tuple[int, int]) -> np.ndarray:
    """Return [B, M] int32 positions, padded with -1, from any form that they may come in."""
    if hasattr(positions, "dtype"):
        positions = np.asarray(positions)  # a JAX array too
    if isinstance(positions, np.ndarray) and positions.dtype == bool:
        if positions.shape != shape:
            raise ValueError(f"a mask must be shaped like the scores {shape}: {positions.shape}")
        positions = [np.flatnonzero(row) for row in positions]
    if positions is None:
        return np.full((shape[0], 1), NO_TARGET, np.int32)
    if len(positions) != shape[0]:
        raise ValueError(f"{shape[0]} rows of scores, but positions for {len(positions)}")
    rows = []
    for row, places in enumerate(positions):
        if isinstance(places, Set):
            places = sorted(places)
        places = np.atleast_1d(np.asarray(NO_TARGET if places is None else places))
        if places.dtype == bool:
            raise ValueError("give a mask as one bool array [B, N], not as a list of rows")
        places = places.astype(np.int64)
        if (places >= shape[1]).any():
            raise ValueError(f"row {row}: position {places.max()} in a gallery of {shape[1]}")
        # Each once: they are counted.
        rows.append(np.unique(places[places >= 0]))
    # A power of two, so that few programs serve all widths.
    width = 1 << max(max(map(len, rows), default=1) - 1, 0).bit_length()
    found = np.full((shape[0], width), NO_TARGET, np.int32)
    for row, places in zip(found, rows, strict=True):
        row[: len(places)] = places
    return found


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
    correct = _positions(targets, scores.shape)
    with jax.enable_x64(scores.dtype == np.float64):  # else such scores would be rounded
        found, broken = _count_higher(scores, correct, _positions(exclude, scores.shape))
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


def top(scores: np.ndarray, count: int, exclude: Positions | None = None) -> np.ndarray:
    """Return the positions of the ``count`` best images of each row, best first, [B, count].

    Ties go to the lower position. Excluded images come last.
    """
    scores = np.array(scores)
    for row, places in zip(scores, _positions(exclude, scores.shape), strict=True):
        row[places[places >= 0]] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def summarize(
    protocol: Protocol, ranks_by_category: Mapping[str, np.ndarray]
) -> dict[str, float | int]:
    """Return what a protocol reports, recalls in percent (SPEC 6).

    Args:
        protocol: gives the K and the averaging.
        ranks_by_category: ranks of each category's queries; -1 is counted as skipped and left out.

    Returns:
        ``mR`` (mean over the R@K), each ``R@K``, ``median_rank`` (floor(median) + 1) and
        ``mean_rank`` (mean + 1); with categories also ``<category>/R@K``; ``queries`` that count
        and ``skipped`` ones.

    Raises:
        ValueError: no query counts.
    """
    kept = {c: np.asarray(r)[np.asarray(r) != NO_TARGET] for c, r in ranks_by_category.items()}
    kept = {c: r for c, r in kept.items() if len(r)}
    if not kept:
        raise ValueError(f"{protocol.name}: no query has a correct image in its gallery")
    total = sum(len(r) for r in ranks_by_category.values())
    pooled = np.concatenate(list(kept.values()))
    by_category = protocol.averaging == "categories"
    groups = kept if by_category else {"all": pooled}
    recalls = {
        c: {f"R@{k}": 100 * float(np.mean(r < k)) for k in protocol.recall_at}
        for c, r in groups.items()
    }
    means = {
        name: float(np.mean([recall[name] for recall in recalls.values()]))
        for name in next(iter(recalls.values()))
    }
    return {
        "mR": float(np.mean(list(means.values()))),
        **means,
        **(
            {f"{c}/{name}": value for c, r in recalls.items() for name, value in r.items()}
            if by_category
            else {}
        ),
        "median_rank": int(np.floor(np.median(pooled))) + 1,
        "mean_rank": float(np.mean(pooled)) + 1,
        "queries": len(pooled),
        "skipped": total - len(pooled),
    }
