"""``evaluation.json``: the numbers of an evaluation, and all that a comparison with another needs.

This module alone knows the form of the file:

    "step"         training steps of the variables
    "protocols"    the numbers by protocol: {"fashioniq/original": {"mR": 41.6, "R@10": ...}}
    "intervals"    the 95% interval of each number by protocol, by resampling annotations
    "shortcuts"    by protocol and half of the query, the numbers or null; where asked for
    "overlap"      by protocol, the numbers of `overlap.OverlapMeasure`; where asked for
    "facts"        facts of the data and the variables; see `results.EvaluationFacts`
    "definitions"  the rules by protocol; see `cmap_jax.protocols.Protocol`
    "conditions"   version of the rules and digests of galleries and queries, by protocol
    "outcomes"     the rank of each query by protocol; see `outcomes.Outcomes`

Results on the data set that the model was trained on are ``WORKDIR/evaluation.json``, those on
another one ``WORKDIR/evaluation-<name>.json``; the caption policies of a data set share a file, in
which each has its own protocols. Rankings are ``WORKDIR/rankings/<protocol>.jsonl``,
with "-" in place of "/" and a JSON object a line.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from cmap_jax.evaluation.outcomes import Outcomes, bootstrap_intervals
from cmap_jax.evaluation.results import EvaluationFacts, ProtocolResult, Result
from cmap_jax.files import (
    check_can_write,
    parse_json,
    read_json,
    read_text,
    write_json,
    write_text,
)
from cmap_jax.protocols import Protocol, with_concept
from cmap_jax.workdir.description import read_config

EVALUATION, RANKINGS = "evaluation.json", "rankings"
_LONGEST = 200  # characters of a reason in an error


@dataclasses.dataclass(frozen=True)
class StoredResults:
    """The content of a file of results.

    Attributes:
        step: training steps of the variables that were evaluated.
        result: the results by protocol; in a file they have no rankings and no examples.
        facts: facts of the data and the variables.
    """

    step: int
    result: Result
    facts: EvaluationFacts

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        results = self.result.protocols
        overlap = {name: dict(r.overlap) for name, r in results.items() if r.overlap}
        return {
            "step": self.step,
            "protocols": {name: dict(r.numbers) for name, r in results.items()},
            "intervals": {
                name: {number: list(pair) for number, pair in r.intervals.items()}
                for name, r in results.items()
            },
            "shortcuts": {name: dict(r.shortcuts) for name, r in results.items() if r.shortcuts},
            **({"overlap": overlap} if overlap else {}),
            "facts": self.facts.to_dict(),
            "definitions": {name: r.protocol.to_dict() for name, r in results.items()},
            "conditions": {name: dict(r.conditions) for name, r in results.items()},
            "outcomes": {name: r.outcomes.to_dict() for name, r in results.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "StoredResults":
        """Build from the result of `to_dict`.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: the content has another form.
        """
        results = {
            name: ProtocolResult(
                protocol=Protocol.from_dict(content["definitions"][name]),
                numbers=numbers,
                outcomes=Outcomes.from_dict(content["outcomes"][name]),
                conditions=content["conditions"][name],
                shortcuts=content.get("shortcuts", {}).get(name, {}),
                overlap=content.get("overlap", {}).get(name, {}),
                intervals={
                    number: (low, high)
                    for number, (low, high) in content.get("intervals", {}).get(name, {}).items()
                },
            )
            for name, numbers in content["protocols"].items()
        }
        for name, result in results.items():
            _check_numbers(name, result)
        facts = EvaluationFacts.from_dict(content["facts"])
        return cls(content["step"], Result(results), facts)


def results_path(workdir: str | os.PathLike, data_name: str) -> epath.Path:
    """Return the path of the results on a data set, whether they exist or not."""
    workdir = epath.Path(workdir)
    is_own = read_config(workdir).data.name == data_name
    return workdir / (EVALUATION if is_own else f"evaluation-{data_name}.json")


def write_results(
    workdir: str | os.PathLike, step: int, result: Result, facts: EvaluationFacts
) -> None:
    """Write an evaluation's results and, where there are any, its rankings.

    Results under another caption policy, shortcuts and overlaps that were measured before with the
    same variables on the same data, and not this time, are kept.

    Args:
        workdir: the workdir of the model.
        step: training steps of the variables that were evaluated.
        result: the results of all splits.
        facts: facts of the data and the variables; they name the data set.
    """
    for name, results in result.protocols.items():
        if results.rankings:
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in results.rankings]
            write_text(rankings_path(workdir, name), "".join(lines))
    stored = StoredResults(step, with_intervals(result), facts)
    path = results_path(workdir, facts.data.name)
    # Without an earlier file, or with one that cannot be read, there is nothing to keep.
    with contextlib.suppress(OSError, ValueError):
        earlier = read_results(path)
        stored = keep_other_captions(keep_shortcuts(stored, earlier), earlier)
    write_json(path, stored.to_dict())


def read_results(path: str | os.PathLike) -> StoredResults:
    """Read a file of results.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; names it.
    """
    content = read_json(path)
    try:
        return StoredResults.from_dict(content)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{os.fspath(path)} is no evaluation.json of this version ({reason[:_LONGEST]}): write "
            "it again with python main.py --mode=evaluate --workdir=..."
        ) from error


def read_rankings(
    workdir: str | os.PathLike, result: ProtocolResult
) -> list[dict[str, Any]] | None:
    """Return the records of a workdir's rankings that belong to a stored result.

    Args:
        workdir: a workdir with results.
        result: its result under one protocol.

    Returns:
        A record a query, see `ranking.Ranking`; None where there are none, or where they are those
        of another evaluation, whose ranks differ.

    Raises:
        ValueError: the file of the rankings is broken; names it.
    """
    path = rankings_path(workdir, result.protocol.name)
    if not path.exists():
        return None
    records = [parse_json(line, path) for line in read_text(path).split("\n") if line]
    try:
        ranks = [record["rank"] for record in records if record["rank"] is not None]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: a line is no record of a query; evaluate again") from error
    return records if ranks == result.outcomes.rank.tolist() else None


def rankings_path(workdir: str | os.PathLike, protocol: str) -> epath.Path:
    """Return the path of the rankings under a protocol, whether they exist or not."""
    return epath.Path(workdir) / RANKINGS / f"{protocol.replace('/', '-')}.jsonl"


def _check_numbers(name: str, result: ProtocolResult) -> None:
    """Refuse numbers that are not finite, and conditions that no comparison can be made under.

    Raises:
        KeyError, TypeError, ValueError: names the protocol and the number.
    """
    for number, value in [*result.numbers.items(), *result.overlap.items()]:
        if not math.isfinite(value):
            raise ValueError(f"{name} has {number} = {value}")
    for part in ("gallery", "queries"):
        result.conditions[part]


def check_can_write_results(workdir: str | os.PathLike, data_name: str, *, rankings: bool) -> None:
    """Refuse a workdir into which `write_results` could not write, before the evaluation.

    Args:
        workdir: must be a workdir.
        data_name: name of the data set.
        rankings: whether rankings are written too.

    Raises:
        OSError: a file, a folder or a missing permission is in the way; names it.
    """
    check_can_write(workdir)
    if rankings:
        check_can_write(epath.Path(workdir) / RANKINGS)
    path = results_path(workdir, data_name)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, where the results belong; move it away")


def with_intervals(result: Result) -> Result:
    """Return the results with the 95% interval of every number."""
    return Result(
        {
            name: dataclasses.replace(r, intervals=bootstrap_intervals(r.protocol, r.outcomes))
            for name, r in result.protocols.items()
        }
    )


def keep_shortcuts(stored: StoredResults, earlier: StoredResults) -> StoredResults:
    """Return results with shortcuts and overlaps of an earlier evaluation where they have none.

    Only those of the same variables on the same data, under the same conditions, are kept.
    """
    if not _are_alike(stored, earlier):
        return stored
    results = dict(stored.result.protocols)
    for name, old in earlier.result.protocols.items():
        now = results.get(name)
        if now and now.conditions == old.conditions:
            results[name] = dataclasses.replace(
                now,
                shortcuts=now.shortcuts or old.shortcuts,
                overlap=now.overlap or old.overlap,
            )
    return dataclasses.replace(stored, result=Result(results))


def keep_other_captions(stored: StoredResults, earlier: StoredResults) -> StoredResults:
    """Return results with those of an earlier evaluation under another caption policy.

    Only results of the same variables on the same data are kept; see
    `cmap_jax.protocols.with_concept`.
    """
    now = stored.result.protocols
    others = {
        name: old
        for name, old in earlier.result.protocols.items()
        if name not in now and (with_concept(name) in now or name in map(with_concept, now))
    }
    if not others or not _are_alike(stored, earlier):
        return stored
    unread = {n: texts for n, texts in earlier.facts.unread_texts.items() if n in others}
    facts = dataclasses.replace(stored.facts, unread_texts={**stored.facts.unread_texts, **unread})
    return dataclasses.replace(stored, result=Result({**now, **others}), facts=facts)


def _are_alike(stored: StoredResults, earlier: StoredResults) -> bool:
    """Tell whether two evaluations are of the same variables on the same data.

    The results of an exported model name no folder of data, and are alike those on any folder.
    """
    folders, stamps = [], []
    for results in (stored, earlier):
        facts, data = results.facts.data_set, dataclasses.asdict(results.facts.data)
        folders.append([data.pop(name) for name in ("directory", "image_directory")])
        # Through JSON, tuples of a new evaluation equal lists of a file.
        read = [facts.prepared, facts.features, facts.skipped_images]
        stamps.append(json.dumps([results.step, results.facts.variables, data, read]))
    return stamps[0] == stamps[1] and all(
        one == other or None in (one, other) for one, other in zip(*folders, strict=True)
    )
