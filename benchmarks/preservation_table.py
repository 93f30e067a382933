"""Tables of the results of `preservation.py`."""


def tables(runs: list[dict]) -> str:
    """Return Markdown tables of all runs."""
    return ""
