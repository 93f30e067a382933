"""A sweep's results as tables of text, as Markdown and as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cmap_jax.evaluation.compare import Difference
from cmap_jax.evaluation.over_seeds import OverSeeds
from cmap_jax.evaluation.results import Numbers
from cmap_jax.evaluation.results_rows import columns_of
from cmap_jax.protocols import Protocol
from cmap_jax.sweeps.results import RowSummary

_NOTE = (
    "Means over the seeds, ± half of their range, in percent. Differences from {first} over the "
    "seeds that both have, with their 95% intervals by a paired bootstrap over annotations and "
    "seeds; * where the interval excludes zero."
)
_FEW = 3  # seeds below which an interval says little of other seeds


def protocols_of(rows: Sequence[RowSummary]) -> dict[str, Protocol]:
    """Return the protocols of all rows by name, in the order of the evaluations."""
    return {
        name: result.protocol
        for row in rows
        for stored in row.runs.results.stored.values()
        for name, result in stored.result.protocols.items()
    }


def tables(rows: Sequence[RowSummary]) -> list[list[list[str]]]:
    """Return two tables for each protocol, as rows of cells: means, and differences.

    The ceilings of a data set's oracles are rows in brackets.
    """
    parts = []
    for name, protocol in protocols_of(rows).items():
        columns = columns_of(protocol)
        having = [row for row in rows if name in row.numbers]
        means = [[name, *columns, "seeds", "minutes"]]
        means += [_means(row, name, columns) for row in having]
        parts.append(means + _ceilings(having, name, columns))
        if compared := [row for row in having if name in row.differences]:
            head = [f"{name}, minus {rows[0].runs.row.name}", *columns]
            parts.append([head, *(_differences(row, name, columns) for row in compared)])
    return parts


def notes(rows: Sequence[RowSummary], missing: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the sentences below the tables.

    Args:
        rows: those with results.
        missing: by row, the seeds whose runs are not complete.
    """
    lines = []
    if any(row.differences for row in rows):
        lines.append(_NOTE.format(first=rows[0].runs.row.name))
        least = min(len(row.runs.results.stored) for row in rows)
        if least < _FEW:
            lines.append(
                f"A row has {least} seed{'s' if least > 1 else ''}: its interval says little of "
                "other seeds."
            )
    lines += [f"Not compared: {row.why_not}" for row in rows if row.why_not]
    lines += [
        f"Not complete: {name}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."
        for name, seeds in missing.items()
        if seeds
    ]
    return lines


def markdown(parts: Sequence[Sequence[Sequence[str]]], lines: Sequence[str]) -> str:
    """Return tables and the sentences below them as Markdown."""
    blocks = []
    for head, *body in parts:
        cells = [head, ["---"] * len(head), *body]
        blocks.append("\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in cells))
    return "\n\n".join([*blocks, *lines]) + "\n"


def to_dict(rows: Sequence[RowSummary]) -> list[dict[str, Any]]:
    """Return the rows for JSON: every number by seed with mean and spread, and the differences."""
    return [
        {
            "name": row.runs.row.name,
            "overrides": list(row.runs.row.overrides),
            "seeds": sorted(row.runs.results.stored),
            "missing_seeds": row.runs.missing,
            "seconds": {str(seed): value for seed, value in row.runs.seconds.items()},
            "made_by": {str(seed): dict(value) for seed, value in row.runs.made_by.items()},
            "numbers": {
                protocol: {name: _number(value) for name, value in numbers.items()}
                for protocol, numbers in row.numbers.items()
            },
            "differences": {
                protocol: {name: _difference(value) for name, value in differences.items()}
                for protocol, differences in row.differences.items()
            },
            "not_compared": row.why_not,
        }
        for row in rows
    ]


def spread(value: OverSeeds, digits: int = 1) -> str:
    """Return a mean with half of the range over the seeds, where there are several."""
    half = value.spread
    return f"{value.mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def _means(row: RowSummary, protocol: str, columns: Sequence[str]) -> list[str]:
    numbers = row.numbers[protocol]
    known = {seed: s / 60 for seed, s in row.runs.seconds.items() if s is not None}
    known = known if len(known) == len(row.runs.seconds) else {}
    cells = [spread(numbers[column]) if column in numbers else "" for column in columns]
    minutes = spread(OverSeeds(known)) if known else "unknown"
    return [row.runs.row.name, *cells, str(len(row.runs.results.stored)), minutes]


def _differences(row: RowSummary, protocol: str, columns: Sequence[str]) -> list[str]:
    differences = row.differences[protocol]
    return [row.runs.row.name, *(_signed(differences.get(column)) for column in columns)]


def _signed(difference: Difference | None) -> str:
    if difference is None:  # no query counts
        return ""
    low, high = difference.interval
    star = " *" if difference.is_significant() else ""
    return f"{difference.second - difference.first:+.1f} ({low:+.1f} to {high:+.1f}){star}"


def _ceilings(rows: Sequence[RowSummary], protocol: str, columns: Sequence[str]) -> list[list[str]]:
    """Return a row for each oracle of the data set, if all runs have the same ones."""
    known = [
        (stored.facts.data_set.oracles or {}).get(protocol, {})
        for row in rows
        for stored in row.runs.results.stored.values()
    ]
    if not known or any(oracles != known[0] for oracles in known):
        return []
    return [
        [f"({oracle.replace('_', ' ')})", *(_ceiling(numbers, c) for c in columns), "", ""]
        for oracle, numbers in known[0].items()
    ]


def _ceiling(numbers: Numbers, column: str) -> str:
    return f"{numbers[column]:.1f}" if column in numbers else ""


def _number(value: OverSeeds) -> dict[str, Any]:
    values = {str(seed): number for seed, number in value.values.items()}
    return {"mean": value.mean, "spread": value.spread, "values": values}


def _difference(value: Difference) -> dict[str, Any]:
    return {
        **dataclasses.asdict(value),
        "difference": value.second - value.first,
        "excludes_zero": value.is_significant(),
    }


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
