"""The curves of a training run: means of the metrics over a window of steps."""

import logging
from collections.abc import Callable
from typing import Any

from cmap_jax.training.progress import PendingMeans
from cmap_jax.training.watch import FinishedStep

_logger = logging.getLogger(__name__)

# Fraction of the time spent waiting for data above which a warning says what helps.
_MUCH_WAITING = 0.1


class TrainingLog:
    """Collects the metrics of finished steps, and writes their means to the curves."""

    def __init__(self, writer: Any, pending: PendingMeans, waited_fraction: Callable[[], float]):
        """Write nothing yet.

        Args:
            writer: a CLU metric writer.
            pending: metrics that are not written yet, of an earlier start of the run too; the log
                keeps them up to date, for the next checkpoint.
            waited_fraction: returns the fraction of the time since its last call in which the
                devices waited for data, 0 to 1.
        """
        self._writer = writer
        self._pending = pending
        self._waited_fraction = waited_fraction

    def add(self, finished: FinishedStep) -> None:
        """Add a step's metrics; a step that is not finite has no part in the means.

        Args:
            finished: the metrics on the host.
        """
        if finished.is_finite:
            for name, value in finished.measurements.items():
                self._pending.sums[name] = self._pending.sums.get(name, 0.0) + value
            self._pending.count += 1
        self._pending.states = dict(finished.states)

    def write(self, step: int) -> None:
        """Write the means over the steps since the last call, if there were any.

        Args:
            step: position on the curves' horizontal axis.
        """
        pending = self._pending
        if not pending.states:
            return
        means = {name: total / pending.count for name, total in pending.sums.items()}
        waited = self._waited_fraction()
        self._writer.write_scalars(step, {**means, **pending.states, "data_wait": waited})
        pending.sums, pending.count, pending.states = {}, 0, {}
        if waited > _MUCH_WAITING:
            _logger.warning(
                "Up to step %d the devices waited for data %.0f%% of the time. Keep decoded "
                "images in memory (--config.data.cache_gb), prepare the data set once (tfds "
                "build, see the README), or use a machine with more CPU cores",
                step,
                100 * waited,
            )
