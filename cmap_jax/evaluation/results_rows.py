"""The content of a file of results in rows of text, for tables in a terminal or a report."""

from collections.abc import Mapping, Sequence

from cmap_jax.evaluation.results import Numbers, ProtocolResult
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.facts import UnreadTexts
from cmap_jax.protocols import LOWER_IS_BETTER, Protocol


def columns_of(protocol: Protocol) -> tuple[str, ...]:
    """Return the names of a protocol's metrics and of its headline, each once."""
    return tuple(dict.fromkeys((*protocol.metrics, protocol.headline_name)))


def header(columns: Sequence[str]) -> list[str]:
    """Return the cells above `protocol_rows`."""
    return ["protocol", *columns, "median rank", "mean rank", "queries", "gallery"]


def rows_of(name: str, stored: StoredResults) -> list[list[str]]:
    """Return the rows of one protocol: its numbers and intervals, and all that stands beside them.

    These are the protocol's categories, the numbers of each half of the queries alone (shortcuts),
    and the ceilings of the data set's oracles where known.

    Args:
        name: key of a protocol in the results.
        stored: the content of a file of results.
    """
    result = stored.result.protocols[name]
    ceilings = (stored.facts.data_set.oracles or {}).get(name, {})
    columns = columns_of(result.protocol)
    return _protocol_rows(labelled(name, stored), result, columns, ceilings)


def notes(stored: StoredResults) -> list[str]:
    """Return a sentence for each fact without which the numbers would be misread."""
    results, facts = stored.result.protocols, stored.facts.data_set
    lines = [
        f"{name}: {result.numbers['skipped']} queries have no image to find and do not count."
        for name, result in results.items()
        if result.numbers["skipped"]
    ]
    lines += [
        f"{name}: {result.numbers['tied_queries']:.3g}% of the queries are tied, their right image "
        "with a wrong one of exactly its score; their rank is the mean over all orders."
        for name, result in results.items()
        if "tied_queries" in result.numbers
    ]
    lines += [_overlap(name, r.overlap) for name, r in results.items() if r.overlap]
    for name, result in results.items():
        lines += _unbeaten(result, (facts.oracles or {}).get(name, {}))
    columns = [n for r in results.values() for n in columns_of(r.protocol)]
    if faults := dict.fromkeys(n for n in columns if n.startswith(LOWER_IS_BETTER)):
        lines.append(f"{' and '.join(faults)}: the lower, the better.")
    if stored.facts.zero_shot:
        lines.append("zero-shot: the model was trained on no data set's triplets.")
    lines += _unread_texts(stored.facts.unread_texts)
    if facts.images_skipped:
        lines.append(f"{facts.images_skipped} images were unusable and left out of everything.")
    if facts.categories_missing:
        lines.append(
            f"No {', '.join(facts.categories_missing)}: means over the other categories cannot "
            "be compared with published ones."
        )
    return lines


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


def _overlap(name: str, numbers: Numbers) -> str:
    """Return a line about the overlap of the modified and the preserved part."""
    shown = {
        "heat maps on the target, intersection over union": "target_iou",
        "correlation": "target_correlation",
        "attentions": "attention_overlap",
    }
    parts = [f"{words} {numbers[key]:.3f}" for words, key in shown.items() if key in numbers]
    return (
        f"{name}: overlap of the modified and the preserved part on {numbers['queries']} queries: "
        f"{', '.join(parts)}."
    )


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
