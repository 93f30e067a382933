"""Conditions on metadata as a command line has them: ``color=red``, ``size=s,m``, ``price=10..50``.

A field of words takes a word, or several with commas between them; a field of numbers takes a
number, several, or a range, of which one end may be left out: ``price=..50``.
"""

from collections.abc import Sequence
from typing import Any

from cmap_jax.retrieval.filters import Fields, Numbers, Words

_FLAG = "--where"
_RANGE = ".."


def parse_where(conditions: Sequence[str], fields: Fields) -> dict[str, Any]:
    """Return the filter that conditions on different fields make together.

    Args:
        conditions: texts such as ``"color=red"``.
        fields: of the index.

    Raises:
        ValueError: no condition on a field of the index; names the fields, or shows the form.
    """
    where: dict[str, Any] = {}
    for text in conditions:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(
                f"{_FLAG} {text}: a condition is a field and a value, such as color=red, size=s,m "
                "or price=10..50"
            )
        if name in where:
            raise ValueError(f"{_FLAG} {text}: {name} is given twice; join its values: {name}=a,b")
        field = fields.field(name)
        where[name] = _words(field, value) if isinstance(field, Words) else _numbers(field, text)
    fields.mask(where)  # refuses a range without a number in it
    return where


def _words(field: Words, value: str) -> str | list[str]:
    """Return a word, which may have commas in it if the index knows it, or several."""
    if value in field.counts or "," not in value:
        return value
    return [word.strip() for word in value.split(",")]


def _numbers(field: Numbers, text: str) -> list[int | float] | dict[str, int | float]:
    """Return numbers or a range."""
    name, _, value = text.partition("=")
    low, is_range, high = value.partition(_RANGE)
    try:
        if is_range:
            ends = {"min": low, "max": high}
            return {end: _number(number) for end, number in ends.items() if number}
        return [_number(number) for number in value.split(",")]
    except ValueError as error:
        least, most = field.span or ("10", "50")
        raise ValueError(
            f"{_FLAG} {text}: {name} holds numbers, such as {name}={least}, or "
            f"{name}={least}..{most} for a range"
        ) from error


def _number(text: str) -> int | float:
    """Return an integer as such, since a float holds only those up to 2^53."""
    try:
        return int(text)
    except ValueError:
        return float(text)
