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


def results(content: Mapping[str, Any]) -> str:
    """Return an ``evaluation.json`` as tables, protocols of the same metrics side by side.

    Below each protocol: the 95% interval, its categories, what half of each query reaches
    (shortcuts), and the ceilings of its oracles where known.
    """
    shapes: dict[tuple[str, ...], list[str]] = {}
    for name, definition in content["definitions"].items():
        shapes.setdefault((*definition["metrics"], definition["headline_name"]), []).append(name)
    parts = []
    for columns, names in shapes.items():
        columns = tuple(dict.fromkeys(columns))  # a headline may be one of the metrics
        rows = [["protocol", *columns, "median rank", "mean rank", "queries", "gallery"]]
        for name in names:
            rows += _protocol_rows(content, name, columns)
        parts.append(table(rows))
    facts = content["facts"]
    notes = [
        f"{name}: {numbers['skipped']} queries have no image to find and do not count."
        for name, numbers in content["protocols"].items()
        if numbers["skipped"]
    ]
    notes += [
        f"{name}: {numbers['tied_queries']:.3g}% of the queries are tied, their right image with a "
        "wrong one of exactly its score; their rank is the mean over all orders."
        for name, numbers in content["protocols"].items()
        if "tied_queries" in numbers
    ]
    notes += _unread_texts(facts.get("unread_texts", {}))
    if facts.get("images_skipped"):
        notes.append(f"{facts['images_skipped']} images were unusable and left out of everything.")
    if facts.get("categories_missing"):
        notes.append(
            f"No {', '.join(facts['categories_missing'])}: means over the other categories cannot "
            "be compared with published ones."
        )
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _unread_texts(shares: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for every share of the queries' texts that the model cannot read, if any."""
    lines: dict[str, list[str]] = {}
    for name, share in shares.items():
        if share["unknown_words_percent"]:
            words = ", ".join(share["most_frequent_unknown"])
            part = f"{share['unknown_words_percent']:.2g}% of the words, such as {words}"
            line = f"the model does not know {part}: it reads each as <unk>."
            lines.setdefault(line, []).append(name)
        if share["wordless_captions_percent"]:
            part = f"{share['wordless_captions_percent']:.2g}% of the captions"
            lines.setdefault(
                f"no word is left of {part}: only letters a to z are read.", []
            ).append(name)
    return [f"{', '.join(names)}: {line}" for line, names in lines.items()]


def _protocol_rows(
    content: Mapping[str, Any], name: str, columns: Sequence[str]
) -> list[list[str]]:
    numbers, intervals = content["protocols"][name], content["intervals"][name]

    def cells(values: Mapping[str, Any], prefix: str = "") -> list[str]:
        found = [values.get(prefix + column) for column in columns]
        return ["" if value is None else f"{value:.2f}" for value in found]

    def ranks(values: Mapping[str, Any]) -> list[str]:
        return [str(values["median_rank"]), f"{values['mean_rank']:.1f}"]

    counts = [str(numbers["queries"]), str(numbers["gallery_images"])]
    rows = [[name, *cells(numbers), *ranks(numbers), *counts]]
    spans = [intervals[column] for column in (*columns, "median_rank", "mean_rank")]
    digits = [1] * len(columns) + [0, 1]
    rows.append(
        [
            "  95% interval",
            *(f"{low:.{d}f}-{high:.{d}f}" for (low, high), d in zip(spans, digits, strict=True)),
            *("", ""),
        ]
    )
    empty = [""] * 4
    for category in content["outcomes"][name]["groups"]:
        if f"{category}/{columns[0]}" in numbers:
            rows.append([f"  {category}", *cells(numbers, f"{category}/"), *empty])
    for half, found in content["shortcuts"].get(name, {}).items():
        if found is None:
            rows.append([f"  {half} alone", *(["-"] * len(columns)), *empty])
        else:
            rows.append([f"  {half} alone", *cells(found), *ranks(found), "", ""])
    for oracle, ceiling in content["facts"].get("oracles", {}).get(name, {}).items():
        rows.append([f"  ({oracle.replace('_', ' ')})", *cells(ceiling), *empty])
    return rows
