"""The order of a sweep's runs: one after another, or one on each device."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from cmap_jax.progress import LiveLine, format_seconds
from cmap_jax.sweeps.plan import Run
from cmap_jax.sweeps.process import RunProcess

_POLL = 0.2  # seconds between two looks at the processes
_SHOWN = 100  # characters of a log's line


def work_off(
    runs: Sequence[Run],
    *,
    config: str,
    slots: Sequence[Mapping[str, str]],
    finished: Callable[[RunProcess, int], None],
    stop: Callable[[], bool],
    line: LiveLine,
) -> None:
    """Do runs in their order, as many at once as there are slots.

    A run that fails does not hold up the others.

    Args:
        runs: those that are not complete.
        config: a --config value.
        slots: for each run that is at work at once, the variables of its environment.
        finished: called with each process that has ended, and its exit status.
        stop: tells whether to stop; the runs at work then save their state and end.
        line: shows the progress.
    """
    waiting, active = deque(runs), {}
    progress = _Progress(len(runs), len(slots), line)
    with _ending(active):
        while (waiting or active) and not stop():
            for slot, environment in enumerate(slots):
                if slot not in active and waiting:
                    active[slot] = RunProcess(waiting.popleft(), config, environment)
            for slot, process in list(active.items()):
                status = process.poll()
                if status is not None:
                    del active[slot]
                    progress.ended += 1
                    finished(process, status)
            progress.show(list(active.values()))
            time.sleep(_POLL)


@contextlib.contextmanager
def _ending(active: Mapping[int, RunProcess]):
    """End the processes that are at work when the block ends, in good order if there is time."""
    try:
        yield
    finally:
        try:
            for process in active.values():
                process.ask_to_stop()
            for process in active.values():
                process.finish()
        except BaseException:  # a second signal
            for process in active.values():
                process.kill()
            raise


class _Progress:
    """Shows how many runs have ended, the time that is left, and the latest line of each log."""

    def __init__(self, total: int, at_once: int, line: LiveLine):
        self.ended = 0
        self._total, self._at_once, self._line = total, at_once, line
        self._began = time.monotonic()

    def show(self, active: Sequence[RunProcess]) -> None:
        """Show a line, if it is time for one."""
        left = ""
        if self.ended:
            each = (time.monotonic() - self._began) / self.ended
            left = f", about {format_seconds(each * (self._total - self.ended))} left"
        parts = [f"{self.ended} of {self._total} runs{left}"]
        parts += [f"{process.run}: {process.last_line()[:_SHOWN]}" for process in active]
        self._line.update("; ".join(parts), self.ended / self._total)
