"""Progress of long work, on standard error."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")

_QUIET = 2.0  # seconds that work may take without saying a word


def track(items: Iterable[_Item], total: int, what: str, unit: str) -> Iterator[_Item]:
    """Yield items, showing how many of how many there were, the rate and the time left.

    Args:
        items: what is worked on, or its results.
        total: their number.
        what: the work, such as "checking".
        unit: an item's name, such as "images".
    """
    # In a log file, a line a minute will do.
    interval = 0.2 if sys.stderr.isatty() else 60.0
    return iter(
        tqdm(
            items,
            desc=what,
            total=total,
            unit=f" {unit}",
            mininterval=interval,
            maxinterval=interval,
            delay=_QUIET,
            leave=False,
        )
    )
