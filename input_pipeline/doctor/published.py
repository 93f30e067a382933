"""How a folder differs from the data set that was published."""

from collections.abc import Iterator, Sequence

from input_pipeline.doctor.findings import Finding, number
from input_pipeline.readers.data_set import Count


def count_findings(name: str, counts: Sequence[Count]) -> Iterator[Finding]:
    """Yield whether a data set is another than the published one, or not all of it."""
    differing = [c for c in counts if not c.agrees]
    if not differing:
        return
    items = tuple(
        f"{c.things}: {c.actual:,}, published {c.published:,}: {c.remark}".removesuffix(": ")
        for c in differing
    )
    if len(differing) == len(counts):
        yield Finding(
            kind="not_published",
            severity="note",
            title=f"this is not the published {name}: none of its {len(counts)} counts agrees",
            count=len(differing),
            items=items,
            fix="nothing to do if that is so; numbers cannot be compared with published ones",
        )
    else:
        yield Finding(
            kind="count",
            severity="warning",
            title=f"{number(len(differing), 'count')} of {len(counts)} not as published",
            count=len(differing),
            items=items,
            fix="restore what these lines name; numbers on other data cannot be compared with "
            "those published",
        )
