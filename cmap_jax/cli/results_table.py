"""The content of a file of results as tables for the terminal."""

from collections.abc import Mapping, Sequence

from cmap_jax.cli.tables import table
from cmap_jax.evaluation.results import Numbers, ProtocolResult
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.facts import UnreadTexts
from cmap_jax.protocols import LOWER_IS_BETTER


def results_table(stored: StoredResults) -> str:
    """Return a file of results as tables, protocols with the same metrics in one table.

    Below each protocol: the 95% interval, the protocol's categories, the numbers of each half of
    the queries alone (shortcuts), and the ceilings of the data set's oracles where known.
    """
    shapes: dict[tuple[str, ...], list[str]] = {}
    for name, result in stored.result.protocols.items():
        protocol = result.protocol
        shapes.setdefault((*protocol.metrics, protocol.headline_name), []).append(name)
    facts = stored.facts.data_set
    parts = []
    for columns, names in shapes.items():
        columns = tuple(dict.fromkeys(columns))  # a headline may be one of the metrics
        rows = [["protocol", *columns, "median rank", "mean rank", "queries", "gallery"]]
        for name in names:
            ceilings = (facts.oracles or {}).get(name, {})
            label = labelled(name, stored)
            rows += _protocol_rows(label, stored.result.protocols[name], columns, ceilings)
        parts.append(table(rows))
    notes = [
        f"{name}: {result.numbers['skipped']} queries have no image to find and do not count."
        for name, result in stored.result.protocols.items()
        if result.numbers["skipped"]
    ]
    notes += [
        f"{name}: {result.numbers['tied_queries']:.3g}% of the queries are tied, their right image "
        "with a wrong one of exactly its score; their rank is the mean over all orders."
        for name, result in stored.result.protocols.items()
        if "tied_queries" in result.numbers
    ]
    for name, result in stored.result.protocols.items():
        notes += _unbeaten(result, (facts.oracles or {}).get(name, {}))
    faults = [n for columns in shapes for n in columns if n.startswith(LOWER_IS_BETTER)]
    if faults:
        notes.append(f"{' and '.join(dict.fromkeys(faults))}: the lower, the better.")
    if stored.facts.zero_shot:
        notes.append("zero-shot: the model was trained on no data set's triplets.")
    notes += _unread_texts(stored.facts.unread_texts)
    if facts.images_skipped:
        notes.append(f"{facts.images_skipped} images were unusable and left out of everything.")
    if facts.categories_missing:
        notes.append(
            f"No {', '.join(facts.categories_missing)}: means over the other categories cannot "
            "be compared with published ones."
        )
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _unbeaten(result: ProtocolResult, ceilings: Mapping[str, Numbers]) -> list[str]:
    """Return a line if a half of each query, or a guess that knows a part of it, does as well."""
    protocol, alone = result.protocol, result.shortcuts
    parts = {f"the {half} alone": numbers for half, numbers in alone.items() if numbers}
    parts |= {f"({oracle.replace('_', ' ')})": numbers for oracle, numbers in ceilings.items()}
    parts = {n: numbers for n, numbers in parts.items() if set(protocol.headline) <= set(numbers)}
    if not parts:
        return []
    low, _ = result.intervals[protocol.headline_name]
    means = {n: sum(map(numbers.get, protocol.headline)) for n, numbers in parts.items()}
    means = {n: total / len(protocol.headline) for n, total in means.items()}
    unbeaten = [f"{name} {mean:.2f}" for name, mean in means.items() if mean >= low]
    if not unbeaten:
        return []
    headline = f"{protocol.headline_name} {result.numbers[protocol.headline_name]:.2f}"
    return [
        f"{protocol.name}: {headline} is not clearly above what a part of the query reaches: "
        f"{', '.join(unbeaten)}."
    ]


def _unread_texts(unread: Mapping[str, UnreadTexts]) -> list[str]:
    """Return a line for each way in which the model cannot read some texts, with the protocols."""
    lines: dict[str, list[str]] = {}
    for name, texts in unread.items():
        if texts.unknown_words_percent:
            words = ", ".join(texts.most_frequent_unknown)
            part = f"{texts.unknown_words_percent:.2g}% of the words, such as {words}"
            line = f"the model does not know {part}: it reads each as <unk>."
            lines.setdefault(line, []).append(name)
        if texts.wordless_captions_percent:
            part = f"{texts.wordless_captions_percent:.2g}% of the captions"
            lines.setdefault(
                f"no word is left of {part}: none of their characters is read.", []
            ).append(name)
    return [f"{', '.join(names)}: {line}" for line, names in lines.items()]


def labelled(name: str, stored: StoredResults) -> str:
    """Return the name of a model's results in a table, marked where they are zero-shot."""
    return f"{name} (zero-shot)" if stored.facts.zero_shot else name


def _span(interval: tuple[float, float] | None, digits: int) -> str:
    """Return an interval for a cell, empty for a number over no query."""
    return "-".join(f"{end:.{digits}f}" for end in interval or ())


def _protocol_rows(
    label: str, result: ProtocolResult, columns: Sequence[str], ceilings: Mapping[str, Numbers]
) -> list[list[str]]:
    """Return a protocol's rows.

    Args:
        label: heads the first row.
        result: numbers and intervals under the protocol.
        columns: names of the numbers.
        ceilings: the numbers of each oracle, if there are any.
    """
    numbers = result.numbers

    def cells(values: Numbers, prefix: str = "") -> list[str]:
        picked = [values.get(prefix + column) for column in columns]
        return ["" if value is None else f"{value:.2f}" for value in picked]

    def ranks(values: Numbers) -> list[str]:
        return [str(values["median_rank"]), f"{values['mean_rank']:.1f}"]

    counts = [str(numbers["queries"]), str(numbers["gallery_images"])]
    rows = [[label, *cells(numbers), *ranks(numbers), *counts]]
    digits = dict.fromkeys(columns, 1) | {"median_rank": 0, "mean_rank": 1}
    spans = [_span(result.intervals.get(name), d) for name, d in digits.items()]
    rows.append(["  95% interval", *spans, "", ""])
    empty = [""] * 4
    for category in result.outcomes.groups:
        if f"{category}/{columns[0]}" in numbers:
            rows.append([f"  {category}", *cells(numbers, f"{category}/"), *empty])
    for half, alone in result.shortcuts.items():
        if alone is None:
            rows.append([f"  {half} alone", *(["-"] * len(columns)), *empty])
        else:
            rows.append([f"  {half} alone", *cells(alone), *ranks(alone), "", ""])
    for oracle, ceiling in ceilings.items():
        rows.append([f"  ({oracle.replace('_', ' ')})", *cells(ceiling), *empty])
    return rows
