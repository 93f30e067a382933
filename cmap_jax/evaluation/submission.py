"""Files for a data set's server: made from rankings, and checked before they are written.

    files = make_submission(rules, rankings)
    check_submission(rules, files["recall.json"], evaluation)
    write_submissions("cirr-test1", files)

The answers of some splits are known to a server alone (docs/method.md, section 5); the
`Submission` of the data set says what its server takes.
"""

import collections
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from cmap_jax import files
from cmap_jax.protocols import AnswerFile, Submission

_SHOWN = 5  # problems in a message
_ID = re.compile("[0-9]{1,12}")  # a whole number as a text, perhaps padded as in file names
_TYPES = {str: "a name", int: "a whole number"}


def make_submission(
    rules: Submission, rankings: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the content of each file, by name.

    Args:
        rules: form of the answers that the server takes.
        rankings: lists of images as `Evaluator.search` returns them: each has the ``query``, and
            the images under ``top`` and, where the queries have sets, ``subset_top``, best first.
    """
    rankings = list(rankings)
    return {
        file.name: {
            **file.header,
            **{
                ranking["query"]: [rules.image_type(i) for i in ranking[file.ranking][: file.count]]
                for ranking in rankings
            },
        }
        for file in rules.files
    }


def check_submission(
    rules: Submission, content: Any, evaluation: Any, gallery_is_known: bool = True
) -> tuple[str, ...]:
    """Refuse a file that the server would not take, or would take and misjudge.

    Args:
        rules: form of the answers that the server takes.
        content: content of a file; its header tells which of the submission's files it is. Images
            that are whole numbers may be texts: a server's script makes numbers of them.
        evaluation: the split, an `input_pipeline.records.Evaluation`.
        gallery_is_known: whether the evaluation has all images of the gallery; where it has not,
            no image can be told to be outside.

    Returns:
        Remarks for people about what is odd and right all the same.

    Raises:
        ValueError: lists the first problems, each with its query and the rule that it breaks.
    """
    if not isinstance(content, dict):
        raise ValueError(f"must be an object of queries and lists of images, not {_shown(content)}")
    file, problems = _recognize(rules, content)
    if file is None:
        raise ValueError(_message(problems))  # the rules for the lists are not known
    answers = {key: answer for key, answer in content.items() if key not in file.header}
    given = answers
    if rules.image_type is int:
        answers = {key: _to_numbers(answer) for key, answer in given.items()}
    check = _list_checker(rules, file, evaluation, gallery_is_known)
    problems += _problems(answers, rules.query, evaluation, check)
    if not problems and (size := len(_encode(content))) > rules.max_bytes:
        problems = [_too_large(size, rules.max_bytes)]
    if problems:
        raise ValueError(_message(problems))
    texts = answers != given
    return ("its ids are texts, of which the server's script makes numbers",) if texts else ()


def read_submission(path: str | os.PathLike, max_bytes: int) -> Any:
    """Return a file's content, to be checked.

    Args:
        path: the file.
        max_bytes: size of the largest file that is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, not JSON, or an object with a key twice; names the file.
    """
    size = epath.Path(path).stat().length
    if size > max_bytes:
        raise ValueError(f"{os.fspath(path)}: {_too_large(size, max_bytes)}")
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


def _recognize(
    rules: Submission, content: Mapping[Any, Any]
) -> tuple[AnswerFile | None, list[str]]:
    """Return which of a submission's files a content is, and what is wrong with its header."""
    candidates = list(rules.files)
    problems = []
    for key in rules.files[0].header:
        value = content.get(key)
        allowed = list(dict.fromkeys(file.header[key] for file in rules.files))
        if value not in allowed:
            options = " or ".join(f'"{option}"' for option in allowed)
            problems.append(f"{key}: must be {options}, not {_shown(value)}")
        if len(allowed) > 1:  # this key tells the files apart
            candidates = [file for file in candidates if file.header[key] == value]
    return (candidates[0] if candidates else None), problems


def _list_checker(
    rules: Submission, file: AnswerFile, evaluation: Any, gallery_is_known: bool
) -> Callable[[Any, Any], Iterator[str]]:
    """Return a function from a query's list and the query to what is wrong with the list."""
    kind = rules.image_type
    galleries = {name: frozenset(map(kind, ids)) for name, ids in evaluation.galleries.items()}

    def check(answer: Any, query: Any) -> Iterator[str]:
        if file.ranking == "subset_top":
            images = frozenset(map(kind, query.subset))
        else:
            images = galleries[query.category] if gallery_is_known else None
        excluded = evaluation.protocol.reference == "excluded"
        return _list_problems(
            answer,
            kind=kind,
            count=file.count,
            images=images,
            candidates=file.candidates,
            excluded=kind(query.reference) if excluded else None,
        )

    return check


def _to_numbers(answer: Any) -> Any:
    """Return a list of ids with those that are texts as whole numbers; anything else as it is."""
    if not isinstance(answer, list):
        return answer
    return [int(i) if isinstance(i, str) and _ID.fullmatch(i) else i for i in answer]


def _encode(content: Any) -> str:
    # Indented, a large submission would exceed its server's limit.
    return json.dumps(content)


def _problems(
    answers: Mapping[Any, Any],
    noun: str,
    evaluation: Any,
    check: Callable[[Any, Any], Iterator[str]],
) -> Iterator[str]:
    """Yield what is wrong with the keys, and with each query's list by ``check(answer, query)``."""
    queries = {query.id: query for query in evaluation.queries}
    for key in answers:
        if key not in queries:
            yield f"{noun} {_shown(key)}: not one of the split's {len(queries)} queries"
    for key, query in queries.items():
        if key not in answers:
            yield f"{noun} {key}: missing"
            continue
        for problem in check(answers[key], query):
            yield f"{noun} {key}: {problem}"


def _list_problems(
    answer: Any,
    *,
    kind: type,
    count: int,
    images: Collection[Any] | None,
    candidates: str,
    excluded: Any,
) -> Iterator[str]:
    """Yield what is wrong with one query's list of images, once a rule.

    Args:
        answer: the list.
        kind: type of an image in it.
        count: images wanted; fewer where there are not so many.
        images: the images that may be listed; None where they are not known.
        candidates: noun phrase for these images.
        excluded: the reference, where the rules forbid it; otherwise None.
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
            yield f"has {_shown(image)}, which is not among the {len(images)} {candidates}"
            break


def _message(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    lines = [f"{len(problems)} problems", *problems[:_SHOWN]]
    return "\n  ".join(lines if len(problems) <= _SHOWN else [*lines, "..."])


def _too_large(size: int, most: int) -> str:
    return f"{size:,} bytes are more than the {most:,} that a server takes"


def _shown(value: Any) -> str:
    """Return a value as an error shows it: never longer than a line, never unprintable."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
