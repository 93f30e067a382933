"""How far one gets with half of a query: ceilings, exact for one who judges each image by itself.

A model that scores above both oracles has put picture and text together; one below has perhaps
only found a shortcut. Each ranks the gallery by the exact probability that a garment is the
target, for one who judges every picture of the gallery by itself, as the models here do.

- The text oracle knows what the captions tell, not the reference. Wording, order and division in
  two captions are drawn independently of the garments, so the set of changes is all there is to
  know. Every target consistent with it is equally probable: the number of references that it
  could have been reached from, over the whole grid, is the same for each.
- The reference oracle knows the reference's attributes, not the text. A target is as probable as
  the number of attributes in which it differs makes it.

"By itself" is what averages over the whole grid instead of the split that was dealt: garments are
dealt to splits at random, so one picture tells nothing of the others. An oracle that also knows
which garments the gallery holds can tell more, since a target that few of them lead to is less
probable: with the test split as the gallery it reaches 27 to 29% at 10 from the text, and 18 to 19%
from the reference.

Ties count by expectation: with b garments above the target and m level with it, itself included,
it is among the first k with probability (k - b) / m, within 0 and 1.
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
        queries: every target is in the gallery; the reference is left out of the ranking.
        gallery: indices of the garments, [N] integers.
        three_changes: as given to `captions.triplets`.

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
    """Which values of the attribute a target may have, told this change alone: [size] bool."""
    values = ATTRIBUTES[change.attribute]
    if change.value is not None:
        return np.array([value == change.value for value in values])
    before = np.arange(len(values)) - change.steps
    return (before >= 0) & (before < len(values))


def _chance_by_distance(three_changes: float) -> np.ndarray:
    """P(a certain garment is the target | it differs in d attributes), d = 0 to 6: [7] float."""
    # The number of garments at each distance: the coefficients of prod(1 + (size - 1) x).
    neighbours = np.array([1.0])
    for size in SIZES:
        neighbours = np.convolve(neighbours, [1.0, size - 1.0])
    share = np.zeros(len(SIZES) + 1)
    share[2], share[3] = 1 - three_changes, three_changes
    return share / neighbours


def _hits(weight: np.ndarray, is_target: np.ndarray) -> list[float]:
    """The probability that the target is within each cutoff, ranking by weight: both [N]."""
    mine = weight[is_target][0]
    above, level = np.count_nonzero(weight > mine), np.count_nonzero(weight == mine)
    return [min(max((k - above) / level, 0.0), 1.0) for k in CUTOFFS]


def _percent(hits: list[list[float]]) -> dict[str, float]:
    means = 100 * np.mean(hits, axis=0)
    return {f"R@{k}": round(float(mean), 2) for k, mean in zip(CUTOFFS, means, strict=True)}
