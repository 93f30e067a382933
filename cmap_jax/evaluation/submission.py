"""What the servers of CIRR and CIRCO are sent: made of rankings, and checked before it is written.

Their test splits have no public answers (SPEC 5). The rules come from the data sets' own pages:

CIRR   two files, {"version": "rc2", "metric": "recall", pairid: [the 50 best names]} and the same
       with "recall_subset" and the 3 best among the other five members of the query's set; the
       reference is in neither
CIRCO  one file, {"0": [the 50 best ids], ...}, ids as whole numbers; it may hold the reference
"""

import collections
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from cmap_jax import files

# What CIRR's server takes at most; real files have 4.2 and 0.3 MB. CIRCO's states no limit and its
# real files have 0.3 MB: more than this is no submission.
MAX_BYTES = 5_000_000
TOP, SUBSET_TOP = 50, 3  # images a query

_VERSION = "rc2"
_RECALL, _SUBSET = "recall", "recall_subset"
_HEADER = ("version", "metric")
_SHOWN = 5  # problems in a message
_ID = re.compile("[0-9]{1,12}")  # an id of CIRCO's as a text, perhaps padded as in file names
_TYPES = {str: "a name", int: "a whole number"}


def cirr_submissions(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return CIRR's two files by name.

    Args:
        records: rankings as `Evaluator.search` returns them: of each the ``query``, and the
            images ``top`` and ``subset_top``, best first and without the reference.
    """
    records = list(records)

    def submission(metric: str, images: str, count: int) -> dict[str, Any]:
        answers = {record["query"]: list(record[images][:count]) for record in records}
        return {"version": _VERSION, "metric": metric, **answers}

    return {
        f"{_RECALL}.json": submission(_RECALL, "top", TOP),
        f"{_SUBSET}.json": submission(_SUBSET, "subset_top", SUBSET_TOP),
    }


def circo_submissions(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return CIRCO's one file by name.

    Args:
        records: rankings as `Evaluator.search` returns them: of each the ``query``, and the
            images ``top``, best first.
    """
    answers = {record["query"]: [int(image) for image in record["top"][:TOP]] for record in records}
    return {"submission.json": answers}


def check_cirr(content: Any, evaluation: Any) -> tuple[str, ...]:
    """Refuse what CIRR's server would not take, or would take and misjudge.

    Args:
        content: one of the two files; its ``metric`` tells which.
        evaluation: the split, an `input_pipeline.records.Evaluation`.

    Returns:
        Remarks for people about what is odd and right all the same; here none.

    Raises:
        ValueError: lists the first problems, each with its pair and the rule that it breaks.
    """
    _check_object(content)
    version, metric = (content.get(name) for name in _HEADER)
    problems = []
    if version != _VERSION:
        problems.append(f'version: must be "{_VERSION}", not {_shown(version)}')
    if metric not in (_RECALL, _SUBSET):
        problems.append(f'metric: must be "{_RECALL}" or "{_SUBSET}", not {_shown(metric)}')
        raise ValueError(_message(problems))  # what the lists must be is not known
    galleries = {name: frozenset(ids) for name, ids in evaluation.galleries.items()}

    def check(answer: Any, query: Any) -> Iterator[str]:
        if metric == _RECALL:
            count, images, whose = TOP, galleries[query.category], "images of the split"
        else:
            count, images, whose = SUBSET_TOP, frozenset(query.subset), "members of its set"
        yield from _list_problems(answer, str, count, images, whose, query.reference)

    answers = {key: answer for key, answer in content.items() if key not in _HEADER}
    problems += _problems(answers, "pair", evaluation, check)
    _finish(content, problems)
    return ()


def check_circo(content: Any, evaluation: Any, gallery_is_known: bool = True) -> tuple[str, ...]:
    """Refuse what CIRCO's server would not take, or would take and misjudge.

    Args:
        content: the file. Ids may be texts: the server's script makes numbers of them.
        evaluation: the split, an `input_pipeline.records.Evaluation`.
        gallery_is_known: whether its gallery is all of CIRCO's; where it is not, an id cannot be
            told to be outside.

    Returns:
        Remarks for people about what is odd and right all the same.

    Raises:
        ValueError: lists the first problems, each with its query and the rule that it breaks.
    """
    _check_object(content)
    galleries = {name: frozenset(map(int, ids)) for name, ids in evaluation.galleries.items()}

    def check(answer: Any, query: Any) -> Iterator[str]:
        images = galleries[query.category] if gallery_is_known else None
        yield from _list_problems(answer, int, TOP, images, "images of the gallery")

    numbers = {query: _to_numbers(answer) for query, answer in content.items()}
    _finish(content, list(_problems(numbers, "query", evaluation, check)))
    texts = numbers != content
    return ("its ids are texts, of which the server's script makes numbers",) if texts else ()


def read_submission(path: str | os.PathLike) -> Any:
    """Return a file's content, to be checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, not JSON, or an object with a key twice; names the file.
    """
    size = epath.Path(path).stat().length
    if size > MAX_BYTES:
        raise ValueError(f"{os.fspath(path)}: {_too_large(size)}")
    text = files.read_text(path)
    content = files.parse_json(text, path)
    if isinstance(content, dict):
        # Python keeps the last of two, another reader the first.
        keys = collections.Counter(key for key, _ in json.loads(text, object_pairs_hook=list))
        repeated = [key for key, count in keys.items() if count > 1]
        if repeated:
            raise ValueError(f"{os.fspath(path)}: the key {_shown(repeated[0])} is there twice")
    return content


def write_submissions(folder: str | os.PathLike, submissions: Mapping[str, Any]) -> None:
    """Write files by name into a folder, which appears when it is complete.

    Raises:
        OSError: the folder is there already and not empty, or cannot be written.
    """
    with files.complete_folder(folder) as scratch:
        for name, content in submissions.items():
            files.write_text(scratch / name, _encode(content))


def _to_numbers(answer: Any) -> Any:
    """Return a list of ids with those that are texts as whole numbers; anything else as it is."""
    if not isinstance(answer, list):
        return answer
    return [int(i) if isinstance(i, str) and _ID.fullmatch(i) else i for i in answer]


def _encode(content: Any) -> str:
    # Indented, CIRR's file would be larger than its server allows.
    return json.dumps(content)


def _check_object(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"must be an object of queries and lists of images, not {_shown(content)}")


def _problems(answers: Mapping[Any, Any], what: str, evaluation: Any, check: Any) -> Iterator[str]:
    """Yield what is wrong with the keys, and with each query's list by ``check(answer, query)``."""
    queries = {query.id: query for query in evaluation.queries}
    for key in answers:
        if key not in queries:
            yield f"{what} {_shown(key)}: not one of the split's {len(queries)} queries"
    for key, query in queries.items():
        if key not in answers:
            yield f"{what} {key}: missing"
            continue
        for problem in check(answers[key], query):
            yield f"{what} {key}: {problem}"


def _list_problems(
    answer: Any,
    kind: type,
    count: int,
    images: Collection[Any] | None,
    whose: str,
    excluded: str | None = None,
) -> Iterator[str]:
    """Yield what is wrong with one query's list of images, once a rule.

    Args:
        answer: the list.
        kind: type of an image's name.
        count: images wanted; fewer where there are not so many.
        images: those that may be named; None where they are not known.
        whose: what these are, for people.
        excluded: the reference, where the rules forbid it.
    """
    if not isinstance(answer, list):
        yield f"must be a list of images, not {_shown(answer)}"
        return
    for image in answer:
        if type(image) is not kind:  # True is an int too
            yield f"{_shown(image)} is not {_TYPES[kind]}"
            return
    if images is not None:
        count = min(count, len(images) - (excluded in images))
    if len(answer) != count:
        yield f"must have {count} images, not {len(answer)}"
    for image, times in collections.Counter(answer).items():
        if times > 1:
            yield f"has {_shown(image)} {times} times"
            break
    if excluded in answer:
        yield f"has its own reference {_shown(excluded)}"
    for image in answer:
        if images is not None and image not in images and image != excluded:
            yield f"has {_shown(image)}, which is not among the {len(images)} {whose}"
            break


def _finish(content: Any, problems: list[str]) -> None:
    """Raise if there are problems, or if the file would be too large."""
    if not problems:
        size = len(_encode(content))
        if size <= MAX_BYTES:
            return
        problems = [_too_large(size)]
    raise ValueError(_message(problems))


def _message(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    lines = [f"{len(problems)} problems", *problems[:_SHOWN]]
    return "\n  ".join(lines if len(problems) <= _SHOWN else [*lines, "..."])


def _too_large(size: int) -> str:
    return f"{size:,} bytes are more than the {MAX_BYTES:,} that a server takes"


def _shown(value: Any) -> str:
    """Return a value as an error shows it: never longer than a line, never unprintable."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
