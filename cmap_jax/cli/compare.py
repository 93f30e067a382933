"""Compare evaluations with the first one by a paired bootstrap of every number.

cmap compare runs/a runs/b
cmap compare runs/a runs/b runs/c/evaluation-circo.json --json
cmap compare runs/garments-sweep     # a sweep's rows over all seeds; also several sweeps

See docs/method.md, section 6.
"""

import argparse
import dataclasses
import json
import os
import shlex
from collections.abc import Mapping, Sequence

from etils import epath

from cmap_jax.cli.arguments import path
from cmap_jax.cli.results_table import sweep_tables
from cmap_jax.cli.tables import table
from cmap_jax.evaluation.compare import Difference, compare
from cmap_jax.evaluation.results_file import EVALUATION, StoredResults, read_results
from cmap_jax.evaluation.results_rows import labelled
from cmap_jax.files import is_remote
from cmap_jax.sweeps import tables
from cmap_jax.sweeps.plan import is_sweep
from cmap_jax.sweeps.results import SweepResults, summarize
from cmap_jax.workdir.description import CONFIG

# The differences by protocol and number.
_Differences = dict[str, dict[str, Difference]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "first", metavar="A", type=path, help="a workdir, a file of results, or a sweep's folder"
    )
    parser.add_argument(
        "others",
        metavar="B",
        nargs="*",
        type=path,
        help="one or more results to compare with A; beside a sweep: none, or more sweeps",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON in place of tables: by protocol and number; for several B, by name first; "
        "for sweeps, the rows of their table.json",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare the results and print the differences."""
    given = [arguments.first, *arguments.others]
    if any(map(is_sweep, given)):
        return _compare_sweeps(given, as_json=arguments.json)
    if not arguments.others:
        raise ValueError(f"compare {arguments.first} with what? Give more results after it")
    paths = _files(given)
    results = dict(zip(_names(paths), map(read_results, paths), strict=True))
    (first, stored), *others = results.items()
    differences = {name: _compare(first, stored, name, other) for name, other in others}
    if arguments.json:
        plain = {name: _plain(by_protocol) for name, by_protocol in differences.items()}
        print(json.dumps(plain if len(plain) > 1 else plain[others[0][0]], indent=2))
        return 0
    for protocol in stored.result.protocols:
        columns = {
            labelled(name, results[name]): d[protocol]
            for name, d in differences.items()
            if protocol in d
        }
        if columns:
            print(_table(protocol, labelled(first, stored), columns), end="\n\n")
    print(
        f"Differences from {first} with their 95% intervals, annotations resampled; * where the "
        "interval excludes zero."
    )
    for line in _not_shared(results):
        print(line)
    return 0


def _compare_sweeps(folders: Sequence[str], *, as_json: bool) -> int:
    """Print the tables of sweeps, all rows compared with the first one's first.

    Raises:
        ValueError: one of several is no sweep, or no run is complete yet.
    """
    for folder in folders:
        if not is_sweep(folder):
            raise ValueError(
                f"{folder} is no sweep, as the others are; a sweep's runs are workdirs too, such "
                "as SWEEP/ROW/seed-0, and can be given one by one"
            )
    names = _names([os.path.normpath(folder) for folder in folders])
    rows = []
    for name, folder in zip(names, folders, strict=True):
        sweep = SweepResults(folder, prefix=f"{name}/" if len(folders) > 1 else "")
        sweep.read()
        rows += sweep.rows
    if not rows[0].results.stored:
        raise ValueError(
            f"no run of {rows[0].row.name}, the first row, is complete: continue the sweep with "
            "its cmap sweep command"
        )
    if as_json:
        print(json.dumps({"rows": tables.to_dict(summarize(rows))}, indent=2))
    else:
        print(sweep_tables(rows))
    return 0


def _files(paths: Sequence[str]) -> list[str]:
    """Return the file of results of each path, which is a workdir or such a file.

    Raises:
        FileNotFoundError: files are missing; has a line for each.
    """
    files, problems = [], []
    for given in map(epath.Path, paths):
        file = given / EVALUATION if given.is_dir() else given
        files.append(str(file))
        if file.exists():
            continue
        if not given.is_dir():
            problems.append(f"{given}: no such workdir or file of results")
        elif (given / CONFIG).exists():
            problems.append(
                f"{given} was not evaluated yet: cmap evaluate {shlex.quote(str(given))}"
            )
        else:
            problems.append(f"{given} is not a workdir: it has no {CONFIG} and no {EVALUATION}")
    if problems:
        raise FileNotFoundError("\n".join(problems))
    return files


def _names(files: Sequence[str]) -> list[str]:
    """Return the shortest end of each file's path that no other file's path has.

    The results in a workdir have the workdir's name.
    """
    whole = (file if is_remote(file) else os.path.abspath(file) for file in files)
    parts = [file.removesuffix(f"/{EVALUATION}").split("/") for file in whole]
    names = []
    for i, own in enumerate(parts):
        others = [p for j, p in enumerate(parts) if j != i and p != own]
        least = 2 if own[-1].startswith("evaluation-") else 1  # with the workdir's name
        lengths = range(least, len(own) + 1)
        length = next(n for n in lengths if all(p[-n:] != own[-n:] for p in others))
        again = parts[:i].count(own)  # the same file may be given more than once
        names.append("/".join(own[-length:]) + (f" ({again + 1})" if again else ""))
    return names


def _compare(first: str, one: StoredResults, second: str, other: StoredResults) -> _Differences:
    """Return the differences of two results; an error names both."""
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
    """Return a protocol's table: the first result's numbers, then each other's differences."""
    header = [protocol, first]
    for name in others:
        header += [name, "difference", "95% interval", ""]
    rows = [header]
    for number in dict.fromkeys(n for differences in others.values() for n in differences):
        one = next(d[number] for d in others.values() if number in d)
        row = [f"  {number}", f"{one.first:.2f}"]
        for differences in others.values():
            row += _cells(differences[number]) if number in differences else [""] * 4
        rows.append(row)
    return table(rows)


def _cells(d: Difference) -> list[str]:
    low, high = d.interval
    star = "*" if d.is_significant() else ""
    return [f"{d.second:.2f}", f"{d.second - d.first:+.2f}", f"{low:+.2f} {high:+.2f}", star]


def _not_shared(results: Mapping[str, StoredResults]) -> list[str]:
    """Return a line for each protocol that some of the results lack."""
    lines = []
    protocols = {name: stored.result.protocols for name, stored in results.items()}
    for protocol in dict.fromkeys(p for own in protocols.values() for p in own):
        having = [name for name, own in protocols.items() if protocol in own]
        if len(having) < len(results):
            verb = "has" if len(having) == 1 else "have"
            lines.append(f"Only {' and '.join(having)} {verb} {protocol}.")
    return lines
