"""The watch over the losses: every step's loss and gradient are checked to be finite."""

import collections
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import jax
import numpy as np

from cmap_jax.training.checkpointing import Checkpoints, advice

_logger = logging.getLogger(__name__)

# Metrics that are states of the run and no noisy measurements: their latest value says it all.
STATES = ("learning_rate", "logit_scale", "skipped_steps")

# A step is checked when this many later steps have been dispatched: its metrics are then most
# likely computed, and reading them does not keep the devices waiting.
_LAG = 2


@dataclasses.dataclass(frozen=True)
class FinishedStep:
    """A step that the devices have finished, with its metrics on the host.

    Attributes:
        step: the step's number, from 1.
        measurements: the metrics that vary from step to step, such as ``loss/total``.
        states: the metrics in `STATES`.
    """

    step: int
    measurements: Mapping[str, float]
    states: Mapping[str, float]

    @classmethod
    def fetch(cls, step: int, metrics: Mapping[str, jax.Array]) -> "FinishedStep":
        """Wait for the metrics of a step, and copy them to the host.

        Args:
            step: the step's number, from 1.
            metrics: float32 scalars on the devices, as `train_step` returns them.
        """
        values = {name: float(value) for name, value in metrics.items()}
        states = {name: values.pop(name) for name in STATES if name in values}
        return cls(step, values, states)

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are finite; a finite loss may come with a broken gradient."""
        values = self.measurements
        return bool(np.isfinite(values["loss/total"] + values["gradient_norm"]))


class LossWatch:
    """Stops the run at a loss or gradient that is not finite, or warns where it is skipped."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        skips: bool = False,
        observers: Sequence[Callable[[FinishedStep], None]] = (),
    ):
        """Watch over no step yet.

        Args:
            checkpoints: the run's checkpoints; the message names the last good one.
            skips: whether the training step itself leaves out steps that are not finite.
            observers: called with every finished step that does not stop the run, in order.
        """
        self._checkpoints = checkpoints
        self._skips = skips
        self._observers = observers
        self._unchecked: collections.deque[tuple[int, Mapping[str, jax.Array]]] = (
            collections.deque()
        )

    def __call__(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Take the metrics of a dispatched step, and check the steps that are likely finished.

        Args:
            step: the step's number, from 1.
            metrics: float32 scalars on the devices.

        Raises:
            FloatingPointError: an earlier step is not finite, and such steps are not skipped.
        """
        self._unchecked.append((step, metrics))
        while len(self._unchecked) > _LAG:
            self._check(*self._unchecked.popleft())

    def check_all(self) -> None:
        """Wait for all steps so far and check them.

        Raises:
            FloatingPointError: a step is not finite, and such steps are not skipped.
        """
        while self._unchecked:
            self._check(*self._unchecked.popleft())

    def _check(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        finished = FinishedStep.fetch(step, metrics)
        if not finished.is_finite:
            if not self._skips:
                self._stop(finished)
            _logger.warning(
                "The loss or gradient of step %d is not finite: skipped, %d of this run so far",
                step,
                finished.states["skipped_steps"],
            )
        for observe in self._observers:
            observe(finished)

    def _stop(self, finished: FinishedStep) -> NoReturn:
        self._checkpoints.wait()
        good = self._checkpoints.latest_step()
        terms = ", ".join(f"{name} = {value}" for name, value in finished.measurements.items())
        raise FloatingPointError(
            f"the loss or gradient of step {finished.step} is not finite: {terms}. {advice(good)}, "
            "or leave out such steps there with --config.train.non_finite=skip"
        )
