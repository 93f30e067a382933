"""Pairs of products that differ in one or two attributes and agree in all others.

groups = Groups(table.products, change=2)
groups.changes(("red", "long", "dress"))
# {(0,): [("blue", "long", "dress")], (0, 1): [("blue", "short", "dress")]}
"""

import collections
import functools
import itertools
from collections.abc import Sequence

from input_pipeline.triplets.products import Product, Values

Positions = tuple[int, ...]  # the one or two attributes that change
_MOST = 2  # attributes that change at once


def order(values: Values) -> tuple[str, ...]:
    """Return a key to sort values by; unknown ones come first."""
    return tuple(value or "" for value in values)


class Groups:
    """Products by their values.

    Attributes:
        members: the products by their values, in order.
    """

    def __init__(self, products: Sequence[Product], change: int):
        """Group products.

        Args:
            products: the products of one split.
            change: number of attributes that may change, the first ones.
        """
        members: dict[Values, list[Product]] = collections.defaultdict(list)
        for product in products:
            members[product.values].append(product)
        self.members = {values: members[values] for values in sorted(members, key=order)}
        self._positions = [
            positions
            for count in range(1, _MOST + 1)
            for positions in itertools.combinations(range(change), count)
        ]

    @functools.cached_property
    def _alike(self) -> dict[tuple[Positions, Values], list[Values]]:
        """The values that agree everywhere but at some positions, by these and what they share."""
        alike: dict[tuple[Positions, Values], list[Values]] = collections.defaultdict(list)
        for values in self.members:
            for positions in self._positions:
                if all(values[i] is not None for i in positions):
                    alike[positions, _without(values, positions)].append(values)
        return dict(alike)

    def changes(self, values: Values) -> dict[Positions, list[Values]]:
        """Return the values of possible targets, by the attributes that differ.

        Values that are not known agree with each other, and none changes to or from them.
        """
        targets = {}
        for positions in self._positions:
            others = self._alike.get((positions, _without(values, positions)), ())
            if any(values[i] is None for i in positions):
                continue
            if different := [v for v in others if all(v[i] != values[i] for i in positions)]:
                targets[positions] = different
        return targets


def _without(values: Values, positions: Positions) -> Values:
    return tuple(value for i, value in enumerate(values) if i not in positions)
