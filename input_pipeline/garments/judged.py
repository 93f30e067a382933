"""Garment queries with several right images, explicit wrong ones, paraphrases and references.

    write_folder("data/garments", "data/judged")

writes them as `input_pipeline.readers.folder` reads them, beside the rendered garments, whose test
split is the gallery. Training texts mean one garment; here a text is taken at its word, and all
garments that it describes are right.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator

import numpy as np

from cmap_jax.files import complete_folder, write_text
from input_pipeline import storage
from input_pipeline.garments.attributes import (
    ATTRIBUTES,
    COUNT,
    NAMES,
    ORDINAL,
    SIZES,
    Garment,
    garment,
    grid,
)
from input_pipeline.garments.captions import MOST_STEPS, Change, write
from input_pipeline.garments.folder import STAMP
from input_pipeline.readers.annotations import read_image_list
from input_pipeline.records import DataError

LEAST_RIGHT = 2  # right garments of each query
MOST_WRONG = 5  # explicit wrong garments of each query
TEXTS = 6  # texts of each query, paraphrases included, as PinPoint has them
SEVERAL = 0.25  # the fraction of queries with two references
_TRIES = 10_000  # draws for one query before the gallery counts as too small
_STREAM = 11  # part of the key of the random draws, which other streams of the same seed lack


@dataclasses.dataclass(frozen=True)
class JudgedQuery:
    """A query with judgments; all garments are members of one split.

    Attributes:
        references: one garment, or two that differ in one attribute which no text names.
        changes: the changes that each text names.
        texts: pairs of captions that name the same changes in different words.
        right: all members that the references and the changes describe.
        wrong: members that miss this by one attribute.
    """

    references: tuple[Garment, ...]
    changes: tuple[Change, ...]
    texts: tuple[tuple[str, str], ...]
    right: tuple[Garment, ...]
    wrong: tuple[Garment, ...]


def admitted(
    references: tuple[Garment, ...], changes: tuple[Change, ...]
) -> tuple[np.ndarray, ...]:
    """Return the values that a query admits, for each of `attributes.NAMES` a mask [size] bool.

    An attribute named by its value has that value. One named by steps of a scale, as in "is
    longer", has any value at least so many steps up or down from the references' value. Each other
    attribute has the value of one of the references.

    Args:
        references: garments that agree in the attributes that are named by steps.
        changes: one of each attribute at most.
    """
    named = {change.attribute: change for change in changes}
    masks = []
    for name, values in ATTRIBUTES.items():
        own = [values.index(getattr(reference, name)) for reference in references]
        if change := named.get(name):
            masks.append(_admitted(change, own[0]))
        else:
            masks.append(np.array([number in own for number in range(len(values))]))
    return tuple(masks)


def _admitted(change: Change, before: int) -> np.ndarray:
    """Return the values of an attribute that a change admits, [size] bool."""
    values = ATTRIBUTES[change.attribute]
    if change.value is not None:
        return np.array([value == change.value for value in values])
    up = np.sign(change.steps) * (np.arange(len(values)) - before)
    return up >= abs(change.steps)


def draw(members: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[JudgedQuery]:
    """Draw queries whose references, right and wrong garments are all members.

    Each names one attribute by its value and another one by steps of its scale. Queries with fewer
    right garments than `LEAST_RIGHT` or without a wrong one are drawn anew.

    Args:
        members: indices of the split's garments, [N] integers.
        count: number of queries.
        rng: generator from which all choices are drawn, in a fixed order.

    Raises:
        ValueError: `members` is so small that no query can be drawn.
    """
    members = np.asarray(members)
    is_member = np.isin(np.arange(COUNT), members).reshape(SIZES)
    for _ in range(count):
        several = rng.random() < SEVERAL
        for _ in range(_TRIES):
            if query := _draw_once(members, is_member, several, rng):
                yield query
                break
        else:
            raise ValueError(
                f"{len(members)} garments have no query with {LEAST_RIGHT} right ones: the split "
                "is too small"
            )


def _draw_once(
    members: np.ndarray, is_member: np.ndarray, several: bool, rng: np.random.Generator
) -> JudgedQuery | None:
    """Draw a query, or None where the members do not answer it; `is_member` is their grid."""
    reference = garment(rng.choice(members))
    changes = _draw_changes(reference, rng)
    references = (reference,)
    if several:
        differing = (grid()[members] != grid()[reference.index]).astype(int)
        free = [column for column, n in enumerate(NAMES) if n not in {c.attribute for c in changes}]
        alike = (differing.sum(axis=1) == 1) & (differing[:, free].sum(axis=1) == 1)
        if not alike.any():
            return None
        references += (garment(rng.choice(members[alike])),)
    masks = admitted(references, changes)
    if is_member[np.ix_(*masks)].sum() < LEAST_RIGHT:
        return None
    codes = grid()[members]
    misses = sum(~mask[codes[:, column]] for column, mask in enumerate(masks))
    given = np.isin(members, [r.index for r in references])
    right, near = members[misses == 0], members[(misses == 1) & ~given]
    if not len(near):
        return None
    wrong = rng.choice(near, size=min(MOST_WRONG, len(near)), replace=False)
    return JudgedQuery(
        references=references,
        changes=changes,
        texts=_paraphrases(changes, rng),
        right=tuple(map(garment, right)),
        wrong=tuple(map(garment, wrong)),
    )


def _draw_changes(reference: Garment, rng: np.random.Generator) -> tuple[Change, ...]:
    """Draw a change by steps that the scale has room for, and another attribute's new value."""
    scales = []
    for name in sorted(ORDINAL):
        values = ATTRIBUTES[name]
        at = values.index(getattr(reference, name))
        scales += [
            Change(name, steps=steps)
            for steps in range(-MOST_STEPS, MOST_STEPS + 1)
            if steps and 0 <= at + steps < len(values)
        ]
    scale = scales[rng.integers(len(scales))]
    name = [n for n in NAMES if n != scale.attribute][rng.integers(len(NAMES) - 1)]
    values = [v for v in ATTRIBUTES[name] if v != getattr(reference, name)]
    return scale, Change(name, value=values[rng.integers(len(values))])


def _paraphrases(
    changes: tuple[Change, ...], rng: np.random.Generator
) -> tuple[tuple[str, str], ...]:
    """Return `TEXTS` different wordings; there are far more of any two changes."""
    texts: dict[tuple[str, str], None] = {}
    while len(texts) < TEXTS:
        texts[write(changes, rng)] = None
    return tuple(texts)


def write_folder(garments: str, out: str | os.PathLike[str], *, count: int, seed: int = 0) -> None:
    """Write queries on the test split of rendered garments, in the layout of a folder.

    Args:
        garments: the folder of rendered garments; its pictures stay there.
        out: a new folder for ``val.jsonl`` and ``gallery.txt``.
        count: number of queries, each with `TEXTS` texts; 1 or more.
        seed: of all choices; not negative.

    Raises:
        FileNotFoundError: there are no garments.
        DataError: the list of the test split is broken.
        OSError: ``out`` is there already and not empty, or nothing can be written there.
    """
    if not storage.exists(storage.join(garments, STAMP)):
        raise FileNotFoundError(
            f"{garments}: no {STAMP}, so no garments are rendered there; python main.py "
            "--config=configs/garments.py renders them into data/garments"
        )
    ids = read_image_list(storage.join(garments, "image_splits", "split.garments.test.json"))
    try:
        members = np.array([Garment(*i.split("-")).index for i in ids])
    except (TypeError, ValueError) as error:
        raise DataError(f"{garments}: the test split names no garments: {error}") from error
    queries = list(draw(members, count, np.random.default_rng([seed, _STREAM])))
    lines = [json.dumps(_row(query)) + "\n" for query in queries]
    with complete_folder(out) as folder:
        write_text(folder / "val.jsonl", "".join(lines))
        write_text(folder / "gallery.txt", "".join(f"{i}\n" for i in ids))


def _row(query: JudgedQuery) -> dict[str, object]:
    """Return a line of the table, as `input_pipeline.readers.folder` reads it."""
    first, *paraphrases = map(list, query.texts)
    references, right, wrong = (
        [g.id for g in garments] for garments in (query.references, query.right, query.wrong)
    )
    return {
        "reference": references,
        "text": first,
        "target": right,
        "wrong": wrong,
        "paraphrases": paraphrases,
    }
