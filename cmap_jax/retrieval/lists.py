"""Lists of pictures with metadata: CSV, JSON Lines and Parquet files."""

import csv
import datetime
import decimal
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cmap_jax.files import read_bytes, read_text

SUFFIXES = (".csv", ".jsonl", ".parquet")

LARGEST = 10**15 - 1  # the largest integer of a field: filters and browsers compute in float64

Value = str | int | float | bool | list[str] | None

_IMAGE = "image"  # the column that every list has
_DELIMITERS = (",", ";", "\t")  # spreadsheets of some countries write semicolons
# Leading zeros are part of an article number, and so is whatever is longer than `LARGEST`.
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,14})")
_NUMBER = re.compile(rf"{_INTEGER.pattern}(?:\.\d+)?(?:[eE][+-]?\d{{1,3}})?")
_BOOLEANS = {"true": True, "false": False}


class Row(NamedTuple):
    """A row of a list.

    Attributes:
        where: the file and the line, for messages.
        values: the row's values by column.
    """

    where: str
    values: Mapping[str, Any]


def read_rows(path: str) -> list[Row]:
    """Return the rows of a list, with values that are JSON's.

    A column of integers, some of which exceed `LARGEST`, has texts: its numbers are names.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: a Parquet file, and no pyarrow; names the package to install.
        ValueError: another suffix, or a damaged file; names the line.
    """
    readers = dict(zip(SUFFIXES, (_read_csv, _read_jsonl, _read_parquet), strict=True))
    for suffix, read in readers.items():
        if path.casefold().endswith(suffix):
            return _name_by_texts(list(read(path)))
    raise ValueError(f"{path}: a list of pictures ends in {', '.join(SUFFIXES)}")


def _read_csv(path: str) -> Iterator[Row]:
    """Yield the rows of a CSV file, after all of them are read, with typed values."""
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    numbers, rows, line = [], [], 1  # first line of a row, which may span several
    try:
        header = _check_header([column.strip() for column in next(reader, [])], path)
        line = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(header):
                raise ValueError(
                    f"{path}, line {line}: {len(fields)} fields; the header has {len(header)}"
                )
            if fields:
                numbers.append(line)
                rows.append([field.strip() for field in fields])
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: not CSV: {error}") from error
    names_item = [column in ("id", _IMAGE) for column in header]
    columns = []
    for position, named in enumerate(names_item):
        column = [row[position] for row in rows]
        columns.append([value or None for value in column] if named else _typed(column))
    for number, values in zip(numbers, zip(*columns, strict=True), strict=True):
        yield Row(f"{path}, line {number}", dict(zip(header, values, strict=True)))


def _delimiter(text: str) -> str:
    """Return the delimiter with which the header has a column for the picture; else a comma."""
    first = text.partition("\n")[0]
    for delimiter in _DELIMITERS:
        if _IMAGE in (column.strip(' "\r') for column in first.split(delimiter)):
            return delimiter
    return _DELIMITERS[0]


def _check_header(header: list[str], where: str) -> list[str]:
    """Return a header that names each column once, and that of the picture among them."""
    if _IMAGE not in header:
        shown = ", ".join(map(repr, header))[:200] or "empty"
        raise ValueError(f"{where}: needs a column {_IMAGE!r}; the header is {shown}")
    for column in header:
        if header.count(column) > 1 or not column:
            problem = f"two columns {column!r}" if column else "a column without a name"
            raise ValueError(f"{where}: the header has {problem}")
    return header


def _typed(texts: Sequence[str]) -> list[Value]:
    """Return a CSV column in the narrowest type that all its values can be read in."""
    known = [text for text in texts if text]
    if known and all(_INTEGER.fullmatch(text) for text in known):
        return [int(text) if text else None for text in texts]
    if known and all(map(_NUMBER.fullmatch, known)) and all(math.isfinite(float(t)) for t in known):
        return [float(text) if text else None for text in texts]
    if known and all(text.casefold() in _BOOLEANS for text in known):
        return [_BOOLEANS[text.casefold()] if text else None for text in texts]
    return [text or None for text in texts]


def _read_jsonl(path: str) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON: {str(error)[:100]}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: must be a JSON object with the key {_IMAGE!r}")
        yield Row(where, {key: _plain(value) for key, value in row.items()})


def _read_parquet(path: str) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: reading Parquet needs the package pyarrow, which is not installed: pip "
            "install 'cmap_jax[parquet]'"
        ) from error
    source = io.BytesIO(read_bytes(path))
    try:
        file = pyarrow.parquet.ParquetFile(source)
        _check_header(file.schema_arrow.names, path)
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield Row(f"{path}, row {number}", {key: _plain(v) for key, v in row.items()})
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a Parquet file: {' '.join(str(error).split())}") from error


def _name_by_texts(rows: list[Row]) -> list[Row]:
    """Return rows in which the columns of integers that float64 does not hold are texts."""
    names = {c for row in rows for c, v in row.values.items() if _is_long(v)}
    for row in rows if names else ():
        names -= {c for c, v in row.values.items() if v is not None and type(v) is not int}
    if not names:
        return rows

    def text(column: str, value: Any) -> Any:
        return str(value) if column in names and value is not None else value

    return [Row(where, {c: text(c, v) for c, v in values.items()}) for where, values in rows]


def _is_long(value: Any) -> bool:
    return type(value) is int and abs(value) > LARGEST


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; a number that is none is not known."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return _plain(float(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value
