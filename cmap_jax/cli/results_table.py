"""The content of a file of results as tables for the terminal."""

from cmap_jax.cli.tables import table
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.evaluation.results_rows import columns_of, header, notes, rows_of


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
