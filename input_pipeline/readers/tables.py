"""Tables of reference, text and target: the rows of a CSV or a JSONL file, checked.

`input_pipeline.readers.folder` describes both forms.
"""

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from input_pipeline import storage
from input_pipeline.readers.annotations import check_caption, check_keys, check_path, shown
from input_pipeline.records import DataError

_COLUMNS = ("reference", "text", "target")
# Fields of JSONL by which a person judges; what training reads has none of them.
_WRONG, _PARAPHRASES = "wrong", "paraphrases"
_JUDGED = (_WRONG, _PARAPHRASES)


class _Line(NamedTuple):
    """A line of a table before its images and texts are checked.

    Attributes:
        number: of the line in its file.
        references, texts, targets, wrong: lists of what was written there.
        paraphrases: lists of one text or two.
        judged: whether the line has one of the fields `_JUDGED`.
    """

    number: int
    references: list[Any]
    texts: list[Any]
    targets: list[Any]
    wrong: Sequence[Any] = ()
    paraphrases: Sequence[list[Any]] = ()
    judged: bool = False


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        references: ids of one image or several.
        texts: the captions of the text, and then those of each paraphrase.
        targets: ids of the right images.
        wrong: ids of the explicit wrong images.
        judged: whether the row has one of the fields `_JUDGED`.
    """

    references: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    targets: tuple[str, ...]
    wrong: tuple[str, ...]
    judged: bool

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions of the text, without the paraphrases."""
        return self.texts[0]


def read_table(file: str, named: dict[str, str]) -> Iterator[Row]:
    """Yield every row of a table.

    Args:
        file: path of the table; that of "train" may hold no judgments and no second reference.
        named: by image, the file and line that name it first; the table's images are added.

    Raises:
        DataError: names the file and the line.
    """
    is_train = posixpath.basename(file).startswith("train.")
    lines = _read_csv(file) if file.endswith(".csv") else _read_jsonl(file)
    for line in lines:
        where = f"{file}, line {line.number}"
        if is_train:
            _check_trains(line, where)
        for images, kind in ((line.references, "reference"), (line.targets, "target")):
            if not images:
                raise DataError(f"{where}: no {kind}")
        for image in (*line.references, *line.targets, *line.wrong):
            if not isinstance(image, str) or image not in named:  # a name is checked once
                named[check_path(image, where)] = where
        texts = tuple([_check_text(text, where) for text in (line.texts, *line.paraphrases)])
        if both := [i for i in line.wrong if i in line.targets]:
            raise DataError(
                f"{where}: {shown(both[0])} is both a target and wrong; take it out of one of them"
            )
        references, targets, wrong = (
            tuple(dict.fromkeys(images)) for images in (line.references, line.targets, line.wrong)
        )
        yield Row(
            references=references, texts=texts, targets=targets, wrong=wrong, judged=line.judged
        )


def _check_trains(line: _Line, where: str) -> None:
    """Refuse a line of the training table that only an evaluation can read."""
    if line.judged:
        raise DataError(
            f"{where}: {_WRONG!r} and {_PARAPHRASES!r} are for val.jsonl and test.jsonl; to train "
            "on a paraphrase, give it a line of its own"
        )
    if len(line.references) > 1:
        raise DataError(
            f"{where}: {len(line.references)} references; training reads one, several are for "
            "val.jsonl and test.jsonl: give each a line of its own"
        )


def _check_text(captions: Sequence[Any], where: str) -> tuple[str, ...]:
    """Return the captions of a text or a paraphrase."""
    if not 1 <= len(captions) <= 2:
        raise DataError(f"{where}: a text is one caption or a list of two, not {len(captions)}")
    return tuple([check_caption(caption, where) for caption in captions])


def _read_csv(file: str) -> Iterator[_Line]:
    text = io.StringIO(storage.read_text(file), newline="")
    reader = csv.reader(text, strict=True, skipinitialspace=True)  # people type "a.jpg, is red"
    line = 1  # first line of a row, which may span several lines
    try:
        header = [column.strip() for column in next(reader, [])]
        for column in _COLUMNS:
            if header.count(column) != 1:
                raise DataError(
                    f"{file}, line 1: must have one column {column!r}; the header is "
                    f"{', '.join(map(shown, header))[:200] or 'empty'}"
                )
        if judged := [column for column in _JUDGED if column in header]:
            raise DataError(
                f"{file}, line 1: a column {judged[0]!r} is a list, which JSONL alone can hold: "
                f"write {file.removesuffix('.csv')}.jsonl in place of it"
            )
        reference, text1, target = map(header.index, _COLUMNS)
        text2 = len(header) - 1 - header[::-1].index("text2") if "text2" in header else None
        line = reader.line_num + 1
        for fields in reader:
            number, line = line, reader.line_num + 1
            if len(fields) == len(header):
                second = [fields[text2]] if text2 is not None and fields[text2] else []
                yield _Line(number, [fields[reference]], [fields[text1], *second], [fields[target]])
            elif any(fields) or len(fields) > 1:  # no empty line
                raise DataError(
                    f"{file}, line {number}: {len(fields)} fields; the header has {len(header)}"
                )
    except csv.Error as error:
        raise DataError(f"{file}, line {line}: not CSV: {error}") from error


def _read_jsonl(file: str) -> Iterator[_Line]:
    for number, line in enumerate(storage.read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {str(error)[:100]}") from error
        judged = [key for key in _JUDGED if key in row] if isinstance(row, dict) else []
        check_keys(row, dict.fromkeys((*_COLUMNS, *judged), (str, list)), where)
        references, texts, targets, wrong, paraphrases = (
            _as_list(row.get(key, [])) for key in (*_COLUMNS, *_JUDGED)
        )
        yield _Line(
            number=number,
            references=references,
            texts=texts,
            targets=targets,
            wrong=wrong,
            paraphrases=[_as_list(text) for text in paraphrases],
            judged=bool(judged),
        )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
