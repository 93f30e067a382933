"""Conditions on the metadata of a gallery's images, as a mask of the images that fulfil them all.

    fields = Fields({"color": "text", "size": "text", "price": "number"}, index.column, len(index))
    allowed = fields.mask({"color": "red", "size": ["s", "m"], "price": {"min": 10, "max": 50}})

A condition is a value, a list of values any of which will do, or a range with both ends included.
An image without a value for a field fulfils no condition on it.
"""

import difflib
import functools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cmap_jax.retrieval.catalogue import BOOLEAN, INTEGER, NUMBER

Where = Mapping[str, Any]

_LEAST_INTEGER, _MOST_INTEGER = -(1 << 63), (1 << 63) - 1
_NAMED = 12  # fields in a message
_SHOWN = 80  # characters of a value in a message


class Words:
    """A field of words: strings, lists of strings, or bools, which are spelt "true" and "false".

    Attributes:
        counts: number of images by word, in alphabetical order.
    """

    def __init__(self, values: Iterable[Any], count: int, *, boolean: bool = False):
        """Number the words of ``count`` images; None is an image without a word."""
        self._choices = ("true", "false") if boolean else ()
        numbers: dict[str, int] = {}
        codes, rows = [], []
        for row, value in enumerate(values):
            words = value if isinstance(value, list | tuple) else [value]
            for word in dict.fromkeys(_spell(w) for w in words if w is not None):
                codes.append(numbers.setdefault(word, len(numbers)))
                rows.append(row)
        self._count, self._numbers = count, numbers
        self._codes, self._rows = np.array(codes, np.int64), np.array(rows, np.int64)
        totals = np.bincount(self._codes, minlength=len(numbers)).tolist()
        self.counts = dict(sorted(zip(numbers, totals, strict=True)))

    def mask(self, condition: Any) -> np.ndarray:
        """Return which images have the word, or any of the words, [N] bool.

        Raises:
            ValueError: the condition is of another kind.
        """
        wanted = condition if isinstance(condition, list | tuple) else [condition]
        if not wanted or not all(map(self._is_word, wanted)):
            raise ValueError(self._explain())
        is_wanted = np.zeros(len(self._numbers), bool)
        is_wanted[[self._numbers[w] for w in map(_spell, wanted) if w in self._numbers]] = True
        mask = np.zeros(self._count, bool)
        mask[self._rows[is_wanted[self._codes]]] = True
        return mask

    def describe(self) -> dict[str, Any]:
        """Return the words and their counts, ready for JSON."""
        return {"kind": "choice", "values": self.counts}

    def _is_word(self, value: Any) -> bool:
        """Return whether a value is of the field's type, though perhaps no image has it."""
        return _spell(value) in self._choices if self._choices else isinstance(value, str)

    def _explain(self) -> str:
        if self._choices:
            return "holds true and false: give one of them"
        first = [repr(word) for word in list(self.counts)[:2]]
        examples = f", such as {' or '.join(first)}" if first else ""
        return f"holds words{examples}: give a word or a list of words"


class Numbers:
    """A field of numbers.

    Attributes:
        least: the smallest one; None where no image has a number.
        most: the largest one; None where no image has a number.
    """

    def __init__(self, values: Sequence[Any] | np.ndarray, *, integer: bool = False):
        """Take the number of each image; None or NaN is an image without one.

        Args:
            values: [N] numbers.
            integer: whether all are integers of 64 bits, which are compared as such: a float64
                holds only those up to 2^53.
        """
        self._integer = integer
        if integer:
            self._is_known = np.array([v is not None for v in values], bool)
            self._values = np.array([0 if v is None else v for v in values], np.int64)
        else:
            self._values = np.asarray(values, np.float64)
            self._is_known = ~np.isnan(self._values)
        known = self._values[self._is_known]
        self.least = known.min().item() if len(known) else None
        self.most = known.max().item() if len(known) else None

    @property
    def span(self) -> tuple[str, str] | None:
        """The smallest and the largest number as a message shows them; None without a number."""
        if self.least is None:
            return None
        form = "d" if self._integer else "g"
        return format(self.least, form), format(self.most, form)

    def mask(self, condition: Any) -> np.ndarray:
        """Return which images have the number, any of the numbers, or one in a range, [N] bool.

        Raises:
            ValueError: the condition is of another kind, or no number can fulfil it.
        """
        if isinstance(condition, Mapping):
            low, high = self._bounds(condition)
            if self._integer:
                # Python compares integers of any length exactly; an infinity cannot be rounded.
                low = max(_LEAST_INTEGER, low if math.isinf(low) else math.ceil(low))
                high = min(_MOST_INTEGER, high if math.isinf(high) else math.floor(high))
                if low > high:
                    return np.zeros(len(self._values), bool)
            return self._is_known & (self._values >= low) & (self._values <= high)
        wanted = condition if isinstance(condition, list | tuple) else [condition]
        if not wanted or not all(map(_is_number, wanted)):
            raise ValueError(self._explain())
        if self._integer:
            wanted = [
                int(v) for v in wanted if _LEAST_INTEGER <= v <= _MOST_INTEGER and v == int(v)
            ]
        return self._is_known & np.isin(self._values, np.array(wanted, self._values.dtype))

    def describe(self) -> dict[str, Any]:
        """Return the range of the numbers, ready for JSON."""
        return {"kind": "range", "min": self.least, "max": self.most}

    def _bounds(self, condition: Mapping[str, Any]) -> tuple[float, float]:
        bounds = {key: bound for key, bound in condition.items() if bound is not None}
        is_range = bounds and bounds.keys() <= {"min", "max"}
        if not is_range or not all(map(_is_number, bounds.values())):
            raise ValueError(self._explain())
        low, high = bounds.get("min", -math.inf), bounds.get("max", math.inf)
        if low > high:
            raise ValueError(f'has no number between "min": {low} and "max": {high}')
        return low, high

    def _explain(self) -> str:
        numbers = f"numbers from {' to '.join(self.span)}" if self.span else "numbers"
        return (
            f"holds {numbers}: give a number, a list of numbers, or a range, "
            '{"min": ..., "max": ...}, of which one end may be left out'
        )


class Fields:
    """The fields of a gallery's metadata, each prepared for filters at its first use."""

    def __init__(self, kinds: Mapping[str, str], column: Callable[[str], Any], count: int):
        """Read nothing yet.

        Args:
            kinds: the fields and the kinds of their values: text, texts (a list of them), boolean,
                integer or number.
            column: from a field's name to its value for each image; None for one without it.
            count: number of images, N.
        """
        self.kinds = dict(kinds)
        self._column, self._count = column, count
        self._prepared: dict[str, Words | Numbers] = {}

    def mask(self, where: Where | None) -> np.ndarray | None:
        """Return which images fulfil every condition, [N] bool; None for no condition.

        Raises:
            ValueError: an unknown field, or a condition of the wrong type; names the fields.
        """
        if where is not None and not isinstance(where, Mapping):
            raise ValueError(
                f'a filter is a mapping such as {{"color": "red"}}, not {_shorten(where)}'
            )
        masks = []
        for name, condition in (where or {}).items():
            field = self.field(name)
            try:
                masks.append(field.mask(condition))
            except ValueError as error:
                raise ValueError(
                    f"filter: {name} {error}, not {_shorten(condition)}; {self._names()}"
                ) from error
        return functools.reduce(np.logical_and, masks) if masks else None

    def field(self, name: str) -> Words | Numbers:
        """Return a field, prepared.

        Raises:
            ValueError: there is none of this name; names those that there are.
        """
        if name not in self.kinds:
            near = difflib.get_close_matches(str(name), self.kinds, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"filter: there is no field {_shorten(name)}; {self._names()}{hint}")
        if name not in self._prepared:
            values = self._column(name)
            if self.kinds[name] in (INTEGER, NUMBER):
                field = Numbers(values, integer=self.kinds[name] == INTEGER)
            else:
                field = Words(values, self._count, boolean=self.kinds[name] == BOOLEAN)
            self._prepared[name] = field
        return self._prepared[name]

    def describe(self, most_words: int = 100) -> dict[str, dict[str, Any]]:
        """Return the fields that a person can choose values of, ready for JSON.

        Those without any value are left out.

        Args:
            most_words: fields of more different words are left out too, such as titles.
        """
        fields = {name: self.field(name) for name in self.kinds}
        return {
            name: field.describe()
            for name, field in fields.items()
            if (field.span if isinstance(field, Numbers) else 0 < len(field.counts) <= most_words)
        }

    def _names(self) -> str:
        if not self.kinds:
            return "the images have no metadata"
        named = [f"{name} ({kind})" for name, kind in self.kinds.items()]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        return f"the fields are {', '.join(named[:_NAMED])}{more}"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return not math.isnan(float(value))
    except OverflowError:  # an integer of hundreds of digits
        return False


def _shorten(value: Any) -> str:
    """Return a value of the caller as a message shows it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _spell(value: Any) -> str:
    """Return a value as a word."""
    return str(value).lower() if isinstance(value, bool) else str(value)
