"""The content of a file of results, or of a sweep, as tables for the terminal."""

from collections.abc import Sequence

from cmap_jax.cli.tables import table
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.evaluation.results_rows import columns_of, header, notes, rows_of
from cmap_jax.sweeps import tables
from cmap_jax.sweeps.results import RowRuns, summarize


def results_table(stored: StoredResults) -> str:
    """Return a file of results as tables, protocols with the same metrics in one table."""
    shapes: dict[tuple[str, ...], list[str]] = {}
    for name, result in stored.result.protocols.items():
        shapes.setdefault(columns_of(result.protocol), []).append(name)
    parts = [
        table([header(columns), *(row for name in names for row in rows_of(name, stored))])
        for columns, names in shapes.items()
    ]
    lines = notes(stored)
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def sweep_tables(rows: Sequence[RowRuns]) -> str:
    """Return the rows of a sweep as tables: means over the seeds, differences from the first row.

    Args:
        rows: one or more, at least one of them with results.
    """
    summaries = summarize(rows)
    lines = tables.notes(summaries, {row.row.name: row.missing for row in rows})
    parts = []
    for head, *body in tables.tables(summaries):
        parts.append(table([head, *([f"  {cells[0]}", *cells[1:]] for cells in body)]))
    return "\n\n".join([*parts, "\n".join(lines)])
