"""``evaluation.json``: an evaluation's numbers, and all that a comparison with another needs."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from cmap_jax.evaluation.evaluator import Result
from cmap_jax.evaluation.outcomes import Outcomes, bootstrap_intervals
from cmap_jax.files import read_json
from cmap_jax.protocols import Protocol

# Facts that tell the variables and the data of one evaluation from those of another.
_STAMPS = ("variables", "data", "prepared", "skipped_images")


@dataclasses.dataclass(frozen=True)
class StoredResult:
    """What a file of results holds of one protocol.

    Attributes:
        protocol: the rules, as they were.
        numbers: what was found.
        outcomes: what became of each query.
        conditions: digests of the gallery and the queries.
        skipped_images: ids of the images that could not be used.
    """

    protocol: Protocol
    numbers: Mapping[str, float]
    outcomes: Outcomes
    conditions: Mapping[str, Any]
    skipped_images: tuple[str, ...]


def results_to_dict(step: int, result: Result, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``evaluation.json``.

    Args:
        step: training steps of the variables that were evaluated.
        result: what they reach; recalls in percent.
        facts: what the numbers must be stamped with, such as the skipped images.

    Returns:
        "step"; by protocol "protocols" (the numbers), "intervals" (95%, by resampling annotations),
        "shortcuts", "definitions", "conditions" and "outcomes"; and "facts".
    """
    return {
        "step": step,
        "protocols": result.protocols,
        "intervals": {
            name: {key: list(pair) for key, pair in bootstrap_intervals(p, outcomes).items()}
            for (name, p), outcomes in zip(
                result.definitions.items(), result.outcomes.values(), strict=True
            )
        },
        "shortcuts": {name: halves for name, halves in result.shortcuts.items() if halves},
        "facts": dict(facts),
        "definitions": {name: p.to_dict() for name, p in result.definitions.items()},
        "conditions": result.conditions,
        "outcomes": {name: outcomes.to_dict() for name, outcomes in result.outcomes.items()},
    }


def keep_shortcuts(content: dict[str, Any], earlier: Mapping[str, Any]) -> None:
    """Take over shortcuts that an earlier evaluation found and this one was not asked for.

    Only where they are shortcuts of the same variables on the same data, which the stamps tell.

    Args:
        content: of `results_to_dict`; protocols without shortcuts are filled in.
        earlier: a file of results, of any version.
    """
    here, there = (
        json.dumps([c.get("step"), *(c.get("facts", {}).get(key) for key in _STAMPS)])
        for c in (content, earlier)
    )
    if here != there:
        return
    for name, halves in earlier.get("shortcuts", {}).items():
        same = content["conditions"].get(name) == earlier.get("conditions", {}).get(name)
        if same and name in content["protocols"]:
            content["shortcuts"].setdefault(name, halves)


def read_results(path: str | os.PathLike) -> dict[str, StoredResult]:
    """Read the results in an ``evaluation.json`` by protocol.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; names it.
    """
    content = read_json(path)
    try:
        return {
            name: StoredResult(
                Protocol.from_dict(content["definitions"][name]),
                numbers,
                Outcomes.from_dict(content["outcomes"][name]),
                content["conditions"][name],
                tuple(content["facts"].get("skipped_images", ())),
            )
            for name, numbers in content["protocols"].items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{os.fspath(path)} is no evaluation.json of this version: write it again with "
            "python main.py --mode=evaluate --workdir=..."
        ) from error
