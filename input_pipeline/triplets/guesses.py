"""The recalls of guesses that know a part of a query only (docs/method.md, section 12).

A model that learned colours alone does no better than the guess "any image of the right color".
Results show these guesses beside the model's recalls.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.triplets.pairing import Positions
from input_pipeline.triplets.products import Values

_TEXT, _REFERENCE = "any_image_that_fits_the_text", "any_image_as_near_the_reference"


class Query(NamedTuple):
    """A query as its attributes are.

    Attributes:
        reference: values of the reference.
        changed: positions of the attributes that change.
        target: values of the right images.
        weight: number of queries like this.
    """

    reference: Values
    changed: Positions
    target: Values
    weight: int


def guesses(
    queries: Iterable[Query],
    gallery: Mapping[Values, int],
    attributes: Sequence[str],
    change: int,
    cutoffs: Sequence[int],
) -> dict[str, dict[str, float]]:
    """Return the expected recalls of each guess, in percent.

    A guess puts the images that agree with what it knows first, in random order.

    Args:
        queries: of one evaluation.
        gallery: number of images by their values; the references are among them.
        attributes: names of the attributes.
        change: number of attributes that may change, the first ones.
        cutoffs: each K of "R@K".

    Returns:
        By guess, the numbers by the name of the metric.
    """
    codes = _Codes(gallery, len(attributes))
    known = _guesses(attributes, change)
    sums = {name: np.zeros(len(cutoffs)) for name in known}
    total = 0
    for query in queries:
        reference, target = codes.of(query.reference), codes.of(query.target)
        for name, fits in known.items():
            agree = fits(codes.table, reference, target, query.changed)
            right = int(codes.counts[(codes.table == target).all(1)].sum())
            among = int(codes.counts[agree].sum())
            # The reference itself is never ranked.
            among -= bool(agree[(codes.table == reference).all(1)].any())
            sums[name] += query.weight * np.array([_hit(among, right, k) for k in cutoffs])
        total += query.weight
    return {
        name: {f"R@{k}": round(100 * s / total, 2) for k, s in zip(cutoffs, values, strict=True)}
        for name, values in sums.items()
    }


class _Codes:
    """The values of a gallery as integers.

    Attributes:
        table: [G, A] int, one row for each combination of values.
        counts: number of images of each, [G] int.
    """

    def __init__(self, gallery: Mapping[Values, int], width: int):
        self._numbers: list[dict[str | None, int]] = [{} for _ in range(width)]
        self.table = np.array([self.of(values) for values in gallery]).reshape(-1, width)
        self.counts = np.array(list(gallery.values()))

    def of(self, values: Values) -> np.ndarray:
        """Return the integers of values, [A]."""
        numbers = zip(self._numbers, values, strict=True)
        return np.array([known.setdefault(value, len(known)) for known, value in numbers])


_Fits = Callable[[np.ndarray, np.ndarray, np.ndarray, Positions], np.ndarray]


def _guesses(attributes: Sequence[str], change: int) -> dict[str, _Fits]:
    """Return for each guess the function that says which combinations agree, [G] bool."""

    def by_text(table, reference, target, changed):
        return (table[:, list(changed)] == target[list(changed)]).all(1)

    def by_reference(table, reference, target, changed):
        differ = table != reference
        return (differ.sum(1) == len(changed)) & ~differ[:, change:].any(1)

    def by_attribute(position: int) -> _Fits:
        return lambda table, reference, target, changed: table[:, position] == target[position]

    known: dict[str, _Fits] = {_TEXT: by_text, _REFERENCE: by_reference}
    for position, name in enumerate(attributes):
        known[f"any_image_of_the_right_{name}"] = by_attribute(position)
    return known


def _hit(among: int, right: int, k: int) -> float:
    """Return the probability that one of the right images is among k of ``among`` drawn ones."""
    wrong = among - right
    if k > wrong:
        return 1.0
    return 1.0 - math.prod((wrong - i) / (among - i) for i in range(k))
