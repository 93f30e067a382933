"""Findings on several right images, explicit wrong ones and paraphrases of queries.

See docs/method.md, section 6, several right and explicit wrong images.
"""

from collections.abc import Iterator, Sequence

from input_pipeline.doctor.findings import Finding, number
from input_pipeline.records import Evaluation, Query, Records


def judgment_findings(records: Records) -> Iterator[Finding]:
    """Yield what the judged queries of each split hold, and judgments that count for nothing."""
    for evaluations in records.evaluations.values():
        judged = [e for e in evaluations if e.protocol.cutoffs("wrong")]
        for evaluation in judged[:1]:
            rows = _rows(evaluation.queries)
            yield _content(evaluation.protocol.name, rows)
            yield from _wrong_references(evaluation, rows)
        for evaluation in judged:
            yield from _wrong_elsewhere(evaluation)
    repeated = records.facts.get("repeated_paraphrases", {})
    for split, count in repeated.items():
        yield Finding(
            kind="repeated_paraphrase",
            severity="warning",
            title=f"{number(count, 'paraphrase')} of {split} with the very words of another text "
            "of its row",
            count=count,
            items=(),
            fix="take them out or word them anew: each text is asked once, and a row with one text "
            "has no spread",
        )


def _rows(queries: Sequence[Query]) -> list[list[Query]]:
    """Return the queries of each annotation, in their order."""
    rows: dict[str, list[Query]] = {}
    for query in queries:
        rows.setdefault(query.annotation, []).append(query)
    return list(rows.values())


def _content(name: str, rows: Sequence[Sequence[Query]]) -> Finding:
    """Return the number of rows that each of a judged protocol's numbers is about."""
    texts = [len(row) for row in rows]
    least = "always" if min(texts) == max(texts) else f"{min(texts)} to"
    counts = {
        "several right images": sum(len(row[0].targets) > 1 for row in rows),
        "explicit wrong images": sum(bool(row[0].wrong) for row in rows),
        "several references": sum(len(row[0].references) > 1 for row in rows),
        "paraphrases": sum(count > 1 for count in texts),
    }
    parts = ", ".join(f"{count:,} with {things}" for things, count in counts.items())
    lacking = [things for things, count in counts.items() if not count]
    note = f"; nothing is measured of {' and '.join(lacking)}" if lacking else ""
    return Finding(
        kind="judgments",
        severity="note",
        title=f"{number(len(rows), 'row')} of {name}: {parts} ({least} "
        f"{number(max(texts), 'text')} a row)",
        count=len(rows),
        items=(),
        fix=f"nothing to do: each number counts the rows that it is about{note}",
    )


def _wrong_references(evaluation: Evaluation, rows: Sequence[Sequence[Query]]) -> Iterator[Finding]:
    """Yield rows whose reference is listed as wrong, where references are not ranked."""
    if evaluation.protocol.reference != "excluded":
        return
    same = [row[0] for row in rows if not set(row[0].wrong).isdisjoint(row[0].references)]
    if same:
        yield Finding(
            kind="wrong_is_reference",
            severity="warning",
            title=f"{number(len(same), 'row')} of {evaluation.protocol.name} with a reference "
            "among the explicit wrong images",
            count=len(same),
            items=tuple(_line(query, set(query.wrong) & set(query.references)) for query in same),
            fix="take the reference out of 'wrong': a reference is never in its own results",
        )


def _wrong_elsewhere(evaluation: Evaluation) -> Iterator[Finding]:
    """Yield rows with explicit wrong images that the gallery lacks."""
    galleries = {category: set(ids) for category, ids in evaluation.galleries.items()}
    firsts = [row[0] for row in _rows(evaluation.queries)]
    lost = {q: missing for q in firsts if (missing := set(q.wrong) - galleries[q.category])}
    if lost:
        yield Finding(
            kind="wrong_not_in_gallery",
            severity="warning",
            title=f"{number(len(lost), 'row')} of {evaluation.protocol.name} with explicit wrong "
            "images that are not in the gallery",
            count=len(lost),
            items=tuple(_line(query, missing) for query, missing in lost.items()),
            fix="add them to gallery.txt: an image that cannot be retrieved is never wrong",
        )


def _line(query: Query, images: set[str]) -> str:
    return f"{query.id}: {query.reference}, wrong: {', '.join(sorted(images))}"
