"""Compare evaluations with the first one: a paired bootstrap of every number, by protocol.

cmap compare runs/a runs/b
cmap compare runs/a runs/b runs/c/evaluation-circo.json --json
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence

from etils import epath

from cmap_jax.cli.arguments import path
from cmap_jax.cli.tables import table
from cmap_jax.evaluation.compare import Difference, compare
from cmap_jax.evaluation.results import StoredResult, read_results
from cmap_jax.files import is_remote
from cmap_jax.workdir.description import CONFIG, EVALUATION

# By protocol and number.
_Differences = dict[str, dict[str, Difference]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("first", metavar="A", type=path, help="a workdir, or a file of results")
    parser.add_argument(
        "others", metavar="B", nargs="+", type=path, help="one or more to compare with it"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON in place of tables: protocols, numbers; of three or more, by name of each",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; results that must not be compared are refused."""
    paths = _files([arguments.first, *arguments.others])
    results = dict(zip(_names(paths), map(read_results, paths), strict=True))
    (first, stored), *others = results.items()
    found = {name: _compare(first, stored, name, other) for name, other in others}
    if arguments.json:
        plain = {name: _plain(differences) for name, differences in found.items()}
        print(json.dumps(plain if len(plain) > 1 else plain[others[0][0]], indent=2))
        return 0
    for protocol in stored:
        columns = {name: d[protocol] for name, d in found.items() if protocol in d}
        if columns:
            print(_table(protocol, first, columns), end="\n\n")
    print(
        f"Differences from {first} with their 95% intervals, annotations resampled; * where zero "
        "is left out."
    )
    for line in _not_shared(results):
        print(line)
    return 0


def _files(paths: Sequence[str]) -> list[str]:
    """Return the files of results in workdirs, or given as they are.

    Raises:
        FileNotFoundError: some are missing, a line for each.
    """
    files, problems = [], []
    for place in map(epath.Path, paths):
        file = place / EVALUATION if place.is_dir() else place
        files.append(str(file))
        if file.exists():
            continue
        if not place.is_dir():
            problems.append(f"{place}: no such workdir or file of results")
        elif (place / CONFIG).exists():
            problems.append(f"{place} was not evaluated yet: cmap evaluate {place}")
        else:
            problems.append(f"{place} is not a workdir: it has no {CONFIG} and no {EVALUATION}")
    if problems:
        raise FileNotFoundError("\n".join(problems))
    return files


def _names(files: Sequence[str]) -> list[str]:
    """Return a short name for each file: as much of the end of its path as tells it from others.

    A workdir's own results are called as the workdir is.
    """
    whole = (file if is_remote(file) else os.path.abspath(file) for file in files)
    parts = [file.removesuffix(f"/{EVALUATION}").split("/") for file in whole]
    names = []
    for i, own in enumerate(parts):
        others = [p for j, p in enumerate(parts) if j != i and p != own]
        least = 2 if own[-1].startswith("evaluation-") else 1  # which workdir's?
        lengths = range(least, len(own) + 1)
        length = next(n for n in lengths if all(p[-n:] != own[-n:] for p in others))
        again = parts[:i].count(own)  # the same file once more
        names.append("/".join(own[-length:]) + (f" ({again + 1})" if again else ""))
    return names


def _compare(
    first: str,
    one: Mapping[str, StoredResult],
    second: str,
    other: Mapping[str, StoredResult],
) -> _Differences:
    try:
        return compare(one, other)
    except ValueError as error:
        raise ValueError(f"{first} and {second}: {error}") from error


def _plain(differences: _Differences) -> dict:
    return {
        protocol: {name: dataclasses.asdict(d) for name, d in numbers.items()}
        for protocol, numbers in differences.items()
    }


def _table(protocol: str, first: str, others: Mapping[str, Mapping[str, Difference]]) -> str:
    """Return a protocol's table: the first one's numbers, and each other's with the difference."""
    header = [protocol, first]
    for name in others:
        header += [name, "difference", "95% interval", ""]
    rows = [header]
    for number in dict.fromkeys(n for found in others.values() for n in found):
        one = next(found[number] for found in others.values() if number in found)
        row = [f"  {number}", f"{one.first:.2f}"]
        for found in others.values():
            row += _cells(found[number]) if number in found else [""] * 4
        rows.append(row)
    return table(rows)


def _cells(d: Difference) -> list[str]:
    low, high = d.interval
    star = "*" if d.is_significant() else ""
    return [f"{d.second:.2f}", f"{d.second - d.first:+.2f}", f"{low:+.2f} {high:+.2f}", star]


def _not_shared(results: Mapping[str, Mapping[str, StoredResult]]) -> list[str]:
    """Return a line for each protocol that not all have."""
    lines = []
    for protocol in dict.fromkeys(p for stored in results.values() for p in stored):
        having = [name for name, stored in results.items() if protocol in stored]
        if len(having) < len(results):
            verb = "has" if len(having) == 1 else "have"
            lines.append(f"Only {' and '.join(having)} {verb} {protocol}.")
    return lines
