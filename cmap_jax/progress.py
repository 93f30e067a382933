"""Progress of long work, on standard error.

A terminal and a notebook get one line that is redrawn in place. A file or a pipe gets a plain line
every 30 seconds. `track` counts the items of an iteration; `LiveLine` shows any text.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

_Item = TypeVar("_Item")

_QUIET = 2.0  # seconds of work before `track` draws its bar
_REDRAW = 0.2  # seconds between two redraws
_PLAIN = 30.0  # seconds between two plain lines


def can_redraw() -> bool:
    """Tell whether standard error is a terminal or a notebook, and not a file or a pipe."""
    return sys.stderr.isatty() or _in_notebook()


def track(items: Iterable[_Item], total: int, work: str, unit: str) -> Iterator[_Item]:
    """Yield items; show how many are done, their rate and the time left.

    Args:
        items: any iterable; an item counts as done when the next one is asked for.
        total: number of items that will come.
        work: begins the line, such as "checking".
        unit: name of the items, plural, such as "images".
    """
    if not can_redraw():
        return _track_plainly(items, total, work, unit)
    return iter(
        tqdm(
            items,
            desc=work,
            total=total,
            unit=f" {unit}",
            mininterval=_REDRAW,
            maxinterval=_REDRAW,
            delay=_QUIET,
            leave=False,
        )
    )


class LiveLine:
    """A line of any text about long work; redrawn in place, or printed every 30 seconds.

    line = LiveLine(shown=jax.process_index() == 0)
    line.update("step 3 of 10")
    line.say("a line that stays")
    line.clear()
    """

    def __init__(self, *, shown: bool = True):
        """Show nothing yet.

        Args:
            shown: False to never show anything, for all processes but the first.
        """
        self._shown = shown
        self._bar: tqdm | None = None
        self._printed = time.monotonic()
        self._drawn = 0.0

    def update(self, text: str, done: float = 0.0) -> None:
        """Show a text in place of the last one.

        Args:
            text: one line, without a line break.
            done: fraction of the work that is done, 0 to 1; sets the length of a notebook's bar.
        """
        if not self._shown:
            return
        if not can_redraw():
            if time.monotonic() - self._printed >= _PLAIN:
                self._print(text)
            return
        if self._bar is None:
            self._bar = tqdm(total=1.0, bar_format="{desc}", leave=False, file=sys.stderr)
        if time.monotonic() - self._drawn >= _REDRAW:
            self._drawn = time.monotonic()
            self._bar.n = done
            self._bar.set_description_str(text)

    def say(self, text: str) -> None:
        """Print a text that stays."""
        if self._shown:
            self.clear()
            self._print(text)

    def clear(self) -> None:
        """Remove the line until the next `update`, so that other output can be written."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """Return a duration in seconds as text, such as "45 s", "2 min 05 s" or "3 h 20 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _track_plainly(items: Iterable[_Item], total: int, work: str, unit: str) -> Iterator[_Item]:
    line, started = LiveLine(), time.monotonic()
    for done, item in enumerate(items):
        if done:
            left = format_seconds((time.monotonic() - started) * (total - done) / done)
            line.update(f"{work}: {done:,} of {total:,} {unit}, {left} left", done / total)
        yield item


def _in_notebook() -> bool:
    """Tell whether this runs in a Jupyter kernel, whose output cells redraw."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython else None
    return shell is not None and getattr(shell, "kernel", None) is not None
