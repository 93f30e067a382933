"""Tables of results for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def results(protocols: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]) -> str:
    """Return the recalls of each protocol, and the ceilings of its oracles where known."""
    parts = []
    for protocol, numbers in protocols.items():
        groups = sorted({key.split("/")[0] for key in numbers if "/" in key})
        recalls = [key for key in numbers if key.startswith("R@")]
        rows = [[protocol, *recalls, "mR", "median rank", "queries"]]
        for group in groups:
            cells = [f"{numbers[f'{group}/{key}']:.2f}" for key in recalls]
            rows.append([f"  {group}", *cells, "", "", ""])
        rows.append(
            [
                "  mean" if groups else "  all",
                *(f"{numbers[key]:.2f}" for key in recalls),
                f"{numbers['mR']:.2f}",
                str(numbers["median_rank"]),
                str(numbers["queries"]),
            ]
        )
        for name, ceiling in facts.get("oracles", {}).get(protocol, {}).items():
            cells = [f"{ceiling[key]:.2f}" if key in ceiling else "" for key in recalls]
            rows.append([f"  ({name.replace('_', ' ')})", *cells, "", "", ""])
        parts.append(table(rows))
        if numbers["skipped"]:
            parts.append(f"  {numbers['skipped']} queries were skipped")
    if facts.get("images_skipped"):
        parts.append(f"{facts['images_skipped']} images were missing and left out of everything.")
    return "\n\n".join(parts)
