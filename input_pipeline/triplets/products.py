"""The products of a catalogue as points of a grid of attributes.

table = tabulate(rows, Choice(keep=("type",)))
table.attributes           # ("color", "sleeves", "type"): those that change, then those kept
table.products[0].values   # ("red", "long", "dress")
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from input_pipeline.readers.annotations import check_path, shown
from input_pipeline.records import DataError

# A column with more words, or with longer ones, describes pictures; it is no attribute by default.
_MOST_VALUES, _LONGEST = 200, 40
_LEAST_REPEATS = 2  # mean number of pictures with one value
_YES_OR_NO = frozenset(("yes", "no"))

Values = tuple[str | None, ...]


class Row(NamedTuple):
    """A row of a catalogue.

    Attributes:
        id: names it in messages.
        image: path of the picture relative to the folder of the images.
        metadata: values by column.
    """

    id: str
    image: str
    metadata: Mapping[str, Any]


class Product(NamedTuple):
    """A picture with its attributes.

    Attributes:
        image: path relative to the folder of the images.
        values: one an attribute; None where it is not known or does not apply.
        group: pictures of one group are in one split.
    """

    image: str
    values: Values
    group: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The columns that matter.

    Attributes:
        change: attributes that may change; empty: all columns that look like attributes.
        keep: attributes that reference and target share, and that never change.
        product: column that pictures of one product share; empty: each picture is a product.
    """

    change: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    product: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The products, and what became of the columns.

    Attributes:
        products: one a picture, in the catalogue's order.
        attributes: names; those that may change come first.
        change: number of attributes that may change.
        flags: attributes whose values are true and false, or yes and no.
        unused: the reason by column of each that is no attribute.
    """

    products: tuple[Product, ...]
    attributes: tuple[str, ...]
    change: int
    flags: frozenset[str]
    unused: Mapping[str, str]


def tabulate(rows: Sequence[Row], choice: Choice) -> Table:
    """Return the products of a catalogue.

    Raises:
        DataError: a column that does not exist or is named twice, values that are lists, a path
            that is none, or two rows that disagree on one picture; names it.
    """
    columns = dict.fromkeys(name for row in rows for name in row.metadata)
    _check_columns(choice, columns)
    unused = {c: why for c in columns if (why := _why_no_attribute(rows, c))}
    others = (*choice.keep, choice.product)
    change = choice.change or tuple(c for c in columns if c not in unused and c not in others)
    if not change:
        reasons = "; ".join(f"{name} {why}" for name, why in unused.items())[:300]
        raise DataError(
            "no column of the catalogue looks like an attribute that may change "
            f"({reasons or 'it has none'}); name one with --change"
        )
    attributes = (*change, *choice.keep)
    products: dict[str, Product] = {}
    spellings: dict[str, dict[str, str]] = {name: {} for name in attributes}
    for row in rows:
        values = tuple(_value(row, name, spellings[name]) for name in attributes)
        image = check_path(row.image, f"the catalogue's item {shown(row.id)}")
        group = _key(row.metadata.get(choice.product)) if choice.product else None
        known = products.setdefault(image, Product(image, values, group or image))
        if known.values != values:
            raise DataError(
                f"the catalogue has {shown(image)} twice, with other attributes: keep one row"
            )
    return Table(
        products=tuple(products.values()),
        attributes=attributes,
        change=len(change),
        flags=frozenset(name for name in attributes if _is_flag(rows, name)),
        unused={name: why for name, why in unused.items() if name not in (*attributes, *others)},
    )


def split(products: Sequence[Product], val: float, seed: int) -> Iterator[bool]:
    """Yield for each product whether it is for validation.

    It depends on the product's group and the seed alone, so that a catalogue that grows keeps its
    split.

    Args:
        products: those of a catalogue, in any order.
        val: fraction of the groups that are for validation, 0 to 1.
        seed: of the draw.
    """
    for product in products:
        digest = hashlib.blake2b(f"{seed}/{product.group}".encode(), digest_size=8).digest()
        yield int.from_bytes(digest, "big") < val * 2**64


def _check_columns(choice: Choice, columns: Mapping[str, Any]) -> None:
    named = [*choice.change, *choice.keep, *filter(None, [choice.product])]
    if unknown := [name for name in named if name not in columns]:
        raise DataError(
            f"the catalogue has no column {unknown[0]!r}; its columns are "
            f"{', '.join(columns)[:300] or 'the picture alone'}"
        )
    if twice := [name for name, count in collections.Counter(named).items() if count > 1]:
        raise DataError(
            f"the column {twice[0]!r} is named twice: it changes, is kept, or names the product"
        )


def _why_no_attribute(rows: Sequence[Row], column: str) -> str:
    """Return why a column is not taken for an attribute by default; empty: it is."""
    values = [v for row in rows if (v := row.metadata.get(column)) is not None]
    if any(isinstance(value, list | tuple) for value in values):
        return "has lists of values"
    if any(not isinstance(value, str | bool) for value in values):
        return "has numbers"
    texts = list(map(_key, values))
    different = len(set(texts))
    if different < 2:
        return "has one value" if different else "is empty"
    if max(map(len, texts)) > _LONGEST:
        return "has long texts"
    if different > min(_MOST_VALUES, len(texts) / _LEAST_REPEATS):
        return f"has {different:,} different values"
    return ""


def _is_flag(rows: Sequence[Row], column: str) -> bool:
    """Tell whether a column says no more than true or false, or yes or no."""
    values = [v for row in rows if (v := row.metadata.get(column)) is not None]
    are_bools = all(isinstance(value, bool) for value in values)
    return bool(values) and (are_bools or all(_key(value) in _YES_OR_NO for value in values))


def _value(row: Row, column: str, spellings: dict[str, str]) -> str | None:
    """Return a row's value in the first spelling of the column; add a new one to ``spellings``."""
    value = row.metadata.get(column)
    if isinstance(value, list | tuple):
        raise DataError(
            f"the catalogue's column {column!r} has lists of values, such as {shown(list(value))} "
            f"of {shown(row.id)}: an attribute has one value"
        )
    if value is None:
        return None
    # Small letters and single spaces suit a caption; folding would write "weiss" for "weiß".
    return spellings.setdefault(_key(value), " ".join(str(value).lower().split()))


def _key(value: Any) -> str:
    """Return a text that equal values share, in whatever letter case and spaces."""
    return "" if value is None else " ".join(str(value).casefold().split())
