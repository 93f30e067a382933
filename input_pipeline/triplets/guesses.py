"""The recalls of guesses that know a part of a query only (docs/method.md, section 12).

A model that learned colours alone does no better than the guess "any image of the right color".
Results show these guesses beside the model's recalls.
"""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cmap_jax.progress import track
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
    queries: Sequence[Query],
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
    counts = _Counts(gallery)
    known = _guesses(attributes, change)
    sums = {name: np.zeros(len(cutoffs)) for name in known}
    for query in track(queries, len(queries), "guessing", "queries"):
        right = gallery.get(query.target, 0)
        for name, among in known.items():
            hits = [_hit(among(counts, query), right, k) for k in cutoffs]
            sums[name] += query.weight * np.array(hits)
    total = sum(query.weight for query in queries)
    return {
        name: {f"R@{k}": round(100 * s / total, 2) for k, s in zip(cutoffs, values, strict=True)}
        for name, values in sums.items()
    }


class _Counts:
    """The numbers of a gallery's images by the values that they have at some positions."""

    def __init__(self, gallery: Mapping[Values, int]):
        self._gallery = gallery
        self._by_positions: dict[Positions, collections.Counter[Values]] = {}

    def agreeing(self, values: Values, positions: Positions) -> int:
        """Return the number of images that have these values at these positions."""
        if positions not in self._by_positions:
            counter = collections.Counter()
            for own, count in self._gallery.items():
                counter[_at(own, positions)] += count
            self._by_positions[positions] = counter
        return self._by_positions[positions][_at(values, positions)]


# From the counts and a query to the number of images that a guess puts first.
_Among = Callable[[_Counts, Query], int]


def _guesses(attributes: Sequence[str], change: int) -> dict[str, _Among]:
    """Return each guess's number of images that agree with what it knows of a query."""

    def by_text(counts: _Counts, query: Query) -> int:
        return _ranked(counts, query, query.changed)

    def by_reference(counts: _Counts, query: Query) -> int:
        terms = _terms(len(attributes), change, len(query.changed))
        return sum(sign * counts.agreeing(query.reference, kept) for kept, sign in terms.items())

    def by_attribute(counts: _Counts, query: Query, position: int) -> int:
        return _ranked(counts, query, (position,))

    known: dict[str, _Among] = {_TEXT: by_text, _REFERENCE: by_reference}
    for position, name in enumerate(attributes):
        known[f"any_image_of_the_right_{name}"] = functools.partial(by_attribute, position=position)
    return known


@functools.cache
def _terms(width: int, change: int, size: int) -> dict[Positions, int]:
    """Return the counts whose sum is the number of images that differ in exactly ``size`` values.

    Args:
        width: number of attributes.
        change: number of those that may differ, the first ones.
        size: number of those that do, 1 or 2.

    Returns:
        By the positions that agree, the factor of their count: inclusion and exclusion.
    """
    terms = collections.Counter()
    for differ in itertools.combinations(range(change), size):
        for count in range(size + 1):
            for same in itertools.combinations(differ, count):
                kept = tuple(i for i in range(width) if i not in differ or i in same)
                terms[kept] += (-1) ** count
    return dict(terms)


def _ranked(counts: _Counts, query: Query, positions: Positions) -> int:
    """Return the number of images with the target's values, less the reference if it has them."""
    among = counts.agreeing(query.target, positions)
    # The reference itself is never ranked.
    return among - (_at(query.reference, positions) == _at(query.target, positions))


def _at(values: Values, positions: Positions) -> Values:
    return tuple(values[i] for i in positions)


@functools.lru_cache(1 << 16)
def _hit(among: int, right: int, k: int) -> float:
    """Return the probability that one of the right images is among k of ``among`` drawn ones."""
    wrong = among - right
    if k > wrong:
        return 1.0
    return 1.0 - math.prod((wrong - i) / (among - i) for i in range(k))
