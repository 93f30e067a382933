"""The curves of a training run, and a look at every step's loss."""

import collections
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cmap_jax.training.checkpointing import Checkpoints
from cmap_jax.training.feed import DeviceFeed

_logger = logging.getLogger(__name__)

# A step's loss is looked at when this many later steps are under way, so that the look need not
# wait for the device.
_LAG = 2

# Metrics of which the last value is written, not the mean.
_STATES = ("learning_rate", "logit_scale", "skipped_steps")

# Above this share of the time, waiting for data is worth a word.
_WORTH_SAYING = 0.1


class TrainingLog:
    """Writes the means of the metrics; at a loss that is not finite it stops the run or says so."""

    def __init__(
        self,
        writer: Any,
        every_steps: int,
        checkpoints: Checkpoints,
        feed: DeviceFeed,
        *,
        skips: bool = False,
        finished: Callable[[int, float], None] = lambda step, loss: None,
    ):
        """Write every ``every_steps`` steps.

        Args:
            writer: of the curves.
            every_steps: steps between two writes.
            checkpoints: waited for where the run is stopped.
            feed: knows how long the devices waited.
            skips: whether steps that are not finite are skipped.
            finished: called with each step that the devices have finished, and its loss.
        """
        self._skips = skips
        self._finished = finished
        self._writer = writer
        self._every = every_steps
        self._checkpoints = checkpoints
        self._feed = feed
        self._unchecked: collections.deque = collections.deque()
        self._sums: dict[str, float] = {}
        self._count = 0
        self._states: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """Return what is not written yet, for JSON: so a run that goes on writes the same means."""
        return {"sums": self._sums, "count": self._count, "states": self._states}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`; nothing where it is empty."""
        if state:
            self._sums, self._count = dict(state["sums"]), state["count"]
            self._states = dict(state["states"])

    def __call__(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take a step's metrics."""
        self._unchecked.append((step, metrics))
        while len(self._unchecked) > _LAG:
            self._check(*self._unchecked.popleft())
        if step % self._every == 0:
            self.write(step)

    def write(self, step: int) -> None:
        """Write the means over the steps since the last time, if there were any."""
        self.check_all()
        if self._states:
            means = {name: total / self._count for name, total in self._sums.items()}
            waited = self._feed.take_waiting_share()
            self._writer.write_scalars(step, {**means, **self._states, "data_wait": waited})
            self._sums, self._count, self._states = {}, 0, {}
            if waited > _WORTH_SAYING:
                _logger.warning(
                    "Up to step %d the devices waited for data %.0f%% of the time. Keep decoded "
                    "images in memory (--config.data.cache_gb), prepare the data set once (tfds "
                    "build, see the README), or use a machine with more CPU cores",
                    step,
                    100 * waited,
                )

    def check_all(self) -> None:
        """Look at the losses of all steps so far."""
        while self._unchecked:
            self._check(*self._unchecked.popleft())

    def _check(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        # These are states, not noisy measurements: their last value is what they are.
        states = {name: values.pop(name) for name in _STATES if name in values}
        # The gradient too: a finite loss with a broken gradient leaves broken parameters behind.
        if np.isfinite(values["loss/total"] + values["gradient_norm"]):
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._count += 1
        elif self._skips:
            _logger.warning(
                "The loss or gradient of step %d is not finite: skipped, %d of this run so far",
                step,
                states["skipped_steps"],
            )
        else:
            self._stop(step, values)
        self._states = states
        self._finished(step, values["loss/total"])

    def _stop(self, step: int, values: dict[str, float]) -> None:
        self._checkpoints.wait()
        good = self._checkpoints.latest_step()
        terms = ", ".join(f"{k} = {v}" for k, v in values.items())
        raise FloatingPointError(
            f"the loss or gradient of step {step} is not finite: {terms}. "
            + (f"The last good checkpoint is of step {good}. " if good else "None was saved. ")
            + "Try a lower --config.optimizer.learning_rate or --config.optimizer.clip_norm=1, or "
            "leave out such steps with --config.train.non_finite=skip"
        )
