"""Compare two evaluations: a paired bootstrap of every number, under the protocols they share.

cmap compare runs/a/evaluation.json runs/b/evaluation.json
"""

import argparse
import dataclasses
import json

from cmap_jax.cli.arguments import path
from cmap_jax.cli.tables import table
from cmap_jax.evaluation.compare import Difference, compare
from cmap_jax.evaluation.results import read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("first", metavar="A.json", type=path, help="an evaluation.json")
    parser.add_argument("second", metavar="B.json", type=path, help="the one to compare it with")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; results that must not be compared are refused."""
    first, second = (read_results(file) for file in (arguments.first, arguments.second))
    found = compare(first, second)
    if arguments.json:
        plain = {
            protocol: {name: dataclasses.asdict(d) for name, d in differences.items()}
            for protocol, differences in found.items()
        }
        print(json.dumps(plain, indent=2))
        return 0
    for protocol, differences in found.items():
        print(_table(protocol, differences), end="\n\n")
    print("B - A with its 95% interval, annotations resampled; * where it leaves zero out.")
    for names, which in ((first, "A"), (second, "B")):
        alone = [name for name in names if name not in found]
        if alone:
            print(f"Only {which} has {', '.join(alone)}.")
    return 0


def _table(protocol: str, differences: dict[str, Difference]) -> str:
    rows = [[protocol, "A", "B", "B - A", "95% interval", ""]]
    for name, d in differences.items():
        low, high = d.interval
        rows.append(
            [
                f"  {name}",
                f"{d.first:.2f}",
                f"{d.second:.2f}",
                f"{d.second - d.first:+.2f}",
                f"{low:+.2f} {high:+.2f}",
                "*" if d.is_significant() else "",
            ]
        )
    return table(rows)
