"""Oracles: the best recalls that half of a query allows, for a model that judges images singly.

A model that scores above both oracles has put picture and text together; a model below them may
have found a shortcut only. An oracle ranks the gallery by the exact probability that a garment is
the target, given one picture of the gallery at a time, as the models here see it.

- The text oracle knows the changes that the captions name, and not the reference. Wording, order
  and division in two captions are drawn independently of the garments, so the changes are all that
  there is to know. Every target consistent with them is equally probable: the number of references
  that lead to it, over the whole grid, is the same for each.
- The reference oracle knows the reference's attributes, and not the text. The probability of a
  target depends only on the number of attributes in which it differs.

Probabilities are averages over the whole grid and not over the gallery: garments are assigned to
splits at random, so one picture says nothing about the others. An oracle that also knows which
garments the gallery holds does better, since a target that few of them lead to is less probable:
with the test split as the gallery it reaches 27 to 29% at 10 from the text, and 18 to 19% from the
reference.

Ties count by expectation: with b garments above the target and m level with it, the target
included, it is among the first k with probability (k - b) / m, limited to 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from input_pipeline.garments.attributes import ATTRIBUTES, NAMES, SIZES, grid
from input_pipeline.garments.captions import Change, GarmentTriplet

CUTOFFS = (1, 10, 50)


def ceilings(
    queries: Sequence[GarmentTriplet], gallery: np.ndarray, *, three_changes: float
) -> dict[str, dict[str, float]]:
    """The expected recalls of both oracles.

    Args:
        queries: triplets whose targets are in the gallery; a query's reference is not ranked.
        gallery: indices of the garments, [N] integers.
        three_changes: the fraction of triplets with three changes, 0 to 1.

    Returns:
        `{"text_oracle": {"R@1": ..., "R@10": ..., "R@50": ...}, "reference_oracle": {...}}`, in
        percent.

    Raises:
        ValueError: a target is not in the gallery.
    """
    gallery = np.asarray(gallery)
    codes = grid()[gallery]
    chance = _chance_by_distance(three_changes)
    text_hits, reference_hits = [], []
    for query in queries:
        reference = query.reference.index
        is_target = gallery == query.target.index
        if not is_target.any():
            raise ValueError(f"the target {query.target.id} is not in the gallery")
        others = gallery != reference

        consistent = others.copy()
        for change in query.changes:
            consistent &= _possible(change)[codes[:, NAMES.index(change.attribute)]]
        text_hits.append(_hits(consistent.astype(float), is_target))

        distance = (codes != grid()[reference]).sum(axis=1)
        reference_hits.append(_hits(np.where(others, chance[distance], -1.0), is_target))
    return {"text_oracle": _percent(text_hits), "reference_oracle": _percent(reference_hits)}


def _possible(change: Change) -> np.ndarray:
    """The values of the attribute that a target may have, given this change alone: [size] bool."""
    values = ATTRIBUTES[change.attribute]
    if change.value is not None:
        return np.array([value == change.value for value in values])
    before = np.arange(len(values)) - change.steps
    return (before >= 0) & (before < len(values))


def _chance_by_distance(three_changes: float) -> np.ndarray:
    """P(a certain garment is the target | it differs in d attributes), d = 0 to 6: [7] float."""
    # The number of garments at each distance: the coefficients of prod(1 + (size - 1) x).
    neighbors = np.array([1.0])
    for size in SIZES:
        neighbors = np.convolve(neighbors, [1.0, size - 1.0])
    probability = np.zeros(len(SIZES) + 1)  # by distance
    probability[2], probability[3] = 1 - three_changes, three_changes
    return probability / neighbors


def _hits(weight: np.ndarray, is_target: np.ndarray) -> list[float]:
    """The probability that the target is among the first k, for each cutoff k.

    Args:
        weight: value by which garments are ranked, highest first, [N] float.
        is_target: True for the target alone, [N] bool.
    """
    own = weight[is_target][0]
    above, level = np.count_nonzero(weight > own), np.count_nonzero(weight == own)
    return [min(max((k - above) / level, 0.0), 1.0) for k in CUTOFFS]


def _percent(hits: list[list[float]]) -> dict[str, float]:
    means = 100 * np.mean(hits, axis=0)
    return {f"R@{k}": round(float(mean), 2) for k, mean in zip(CUTOFFS, means, strict=True)}
