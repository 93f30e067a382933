"""Triplets: a reference, a target, and two captions that lead from one to the other.

The two differ in two attributes or in three, and each is named once. A value is named outright
("is a coat", "is red") or, for sleeves and length, by steps of the scale ("is longer", "is much
longer"), which tells the target only to one who has seen the reference. Reference and captions
together leave one garment of the whole grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from input_pipeline.garments.attributes import ATTRIBUTES, NAMES, ORDINAL, Garment, garment, grid

# Steps of a scale beyond this are named outright.
MOST_STEPS = 2
# The probability that a change which can be named by steps is named so.
RELATIVE = 0.5

# Phrases that complete a caption; "is", "has" or "with" is part of them.
ABSOLUTE: dict[str, dict[str, tuple[str, ...]]] = {
    "type": {
        "dress": ("is a dress", "is a dress instead"),
        "shirt": ("is a shirt", "is a button up shirt"),
        "coat": ("is a coat", "is an open coat"),
        "jumpsuit": ("is a jumpsuit", "is a jumpsuit with legs"),
    },
    "color": {
        value: (f"is {value}", f"is {value} in color", f"is a {value} one")
        for value in ATTRIBUTES["color"]
    },
    "pattern": {
        "solid": ("is solid", "has no pattern", "is plain"),
        "striped": ("is striped", "has stripes", "has a striped pattern"),
        "dotted": ("is dotted", "has polka dots", "has dots all over"),
        "checked": ("is checked", "has a checked pattern", "has a plaid print"),
        "floral": ("is floral", "has flowers on it", "has a floral print"),
    },
    "sleeves": {
        "sleeveless": ("is sleeveless", "has no sleeves"),
        "short": ("has short sleeves", "is short sleeved"),
        "elbow": ("has elbow length sleeves", "has sleeves to the elbow"),
        "long": ("has long sleeves", "is long sleeved"),
    },
    "neckline": {
        "round": ("has a round neck", "has a round neckline", "has a scoop neck"),
        "v": ("has a v neck", "has a v neckline"),
        "square": ("has a square neck", "has a square neckline"),
        "high": ("has a high neck", "has a turtleneck", "has a high collar"),
    },
    "length": {
        "short": ("is short", "is short in length"),
        "medium": ("is of medium length", "is mid length"),
        "long": ("is long", "is long in length"),
    },
}
# Steps up the scale -> phrases that complete a caption.
RELATIVE_PHRASES: dict[str, dict[int, tuple[str, ...]]] = {
    "sleeves": {
        -2: ("has much shorter sleeves", "has far less sleeve"),
        -1: ("has shorter sleeves", "has less sleeve"),
        1: ("has longer sleeves", "has more sleeve"),
        2: ("has much longer sleeves", "has far more sleeve"),
    },
    "length": {
        -2: ("is much shorter", "is a lot shorter"),
        -1: ("is shorter", "is shorter in length"),
        1: ("is longer", "is longer in length"),
        2: ("is much longer", "is a lot longer"),
    },
}
_OPENINGS = ("", "", "", "the garment ", "it ", "this one ")


@dataclasses.dataclass(frozen=True)
class Change:
    """One change as a caption names it: by its `value` or by `steps` up the scale, never both.

    Attributes:
        attribute: one of `attributes.NAMES`.
        value: the target's value, or None.
        steps: -2 to 2 and not 0 where `value` is None, else 0.
    """

    attribute: str
    value: str | None = None
    steps: int = 0

    def apply(self, item: Garment) -> Garment:
        """The garment after this change.

        Raises:
            ValueError: the steps lead off the scale.
        """
        value = self.value
        if value is None:
            values = ATTRIBUTES[self.attribute]
            position = values.index(getattr(item, self.attribute)) + self.steps
            if not 0 <= position < len(values):
                raise ValueError(f"{self} leads off the scale from {item.id}")
            value = values[position]
        return dataclasses.replace(item, **{self.attribute: value})


@dataclasses.dataclass(frozen=True)
class GarmentTriplet:
    """A query and its answer.

    Attributes:
        reference, target: garments of one split, different in as many attributes as `changes`.
        changes: all changes that the captions name, in any order.
        captions: two texts of lower-case ASCII letters and spaces.
    """

    reference: Garment
    target: Garment
    changes: tuple[Change, ...]
    captions: tuple[str, str]


def triplets(
    members: np.ndarray, count: int, *, three_changes: float, rng: np.random.Generator
) -> Iterator[GarmentTriplet]:
    """Draws triplets within one split.

    The targets are the members in shuffled rounds, so that the uses of two garments differ by one
    at most. The number of changes is drawn, then the reference uniformly among the members that
    differ from the target in exactly that many attributes. (Attributes with more values therefore
    change more often. If the attributes were drawn first, the few garments that differ in small
    attributes would each be far likelier than the rest, and guessing from the reference alone would
    pay: see `oracles`.)

    Args:
        members: indices of the split's garments, [N] integers.
        count: number of triplets to draw.
        three_changes: the fraction of triplets with three changes, 0 to 1; the others have two.
        rng: generator from which all choices are drawn, in a fixed order.

    Raises:
        ValueError: `members` is so small that a target has no reference.
    """
    codes = grid()[members]
    order = np.concatenate(
        [rng.permutation(len(members)) for _ in range(-(-count // len(members)))]
    )[:count]
    for row in order:
        changed = 3 if rng.random() < three_changes else 2
        distance = (codes != codes[row]).sum(axis=1)
        candidates = np.flatnonzero(distance == changed)
        if not len(candidates):
            raise ValueError(
                f"no garment of the {len(members)} differs from {garment(members[row]).id} in "
                f"{changed} attributes: the split is too small"
            )
        reference, target = garment(members[rng.choice(candidates)]), garment(members[row])
        changes = _name_changes(reference, target, rng)
        yield GarmentTriplet(reference, target, changes, write(changes, rng))


def _name_changes(
    reference: Garment, target: Garment, rng: np.random.Generator
) -> tuple[Change, ...]:
    """Chooses how to name each difference."""
    changes = []
    for name in NAMES:
        before, after = getattr(reference, name), getattr(target, name)
        if before == after:
            continue
        steps = ATTRIBUTES[name].index(after) - ATTRIBUTES[name].index(before)
        if name in ORDINAL and abs(steps) <= MOST_STEPS and rng.random() < RELATIVE:
            changes.append(Change(name, steps=steps))
        else:
            changes.append(Change(name, value=after))
    return tuple(changes)


def write(changes: tuple[Change, ...], rng: np.random.Generator) -> tuple[str, str]:
    """Words two or more changes in two captions, as two people would.

    In seven of ten triplets each caption has its own changes; in the others one caption names all
    of them and the other repeats one.
    """
    shuffled = [changes[i] for i in rng.permutation(len(changes))]
    if rng.random() < 0.3:
        parts = [shuffled, [shuffled[rng.integers(len(shuffled))]]]
    else:
        cut = rng.integers(1, len(shuffled))
        parts = [shuffled[:cut], shuffled[cut:]]
    if rng.random() < 0.5:
        parts.reverse()
    first, second = (_sentence(part, rng) for part in parts)
    return first, second


def _sentence(changes: list[Change], rng: np.random.Generator) -> str:
    phrases = []
    for change in changes:
        if change.value is None:
            choices = RELATIVE_PHRASES[change.attribute][change.steps]
        else:
            choices = ABSOLUTE[change.attribute][change.value]
        phrases.append(choices[rng.integers(len(choices))])
    return _OPENINGS[rng.integers(len(_OPENINGS))] + " and ".join(phrases)
