"""Progress of a run besides its arrays: the best evaluation so far, and means not yet written."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class PendingMeans:
    """Metrics of the steps since the curves were last written.

    A resumed run continues them, and thus writes the same means as an undisturbed one.

    Attributes:
        sums: each metric's sum over the steps whose loss and gradient are finite.
        count: number of these steps.
        states: the latest values of the metrics in `watch.STATES`, of which no mean is taken.
    """

    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    count: int = 0
    states: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Progress:
    """Facts about a run that are saved as JSON beside each of its states.

    Attributes:
        best_recall: headline recall of the best evaluation, in percent; -1 before the first one.
        best_step: step of that evaluation, whose variables are kept as the best; None before.
        evaluated_step: step of the latest evaluation; 0 before the first one.
        log: metrics that the curves do not show yet.
    """

    best_recall: float = -1.0
    best_step: int | None = None
    evaluated_step: int = 0
    log: PendingMeans = dataclasses.field(default_factory=PendingMeans)

    def record(self, step: int, recall: float) -> bool:
        """Record an evaluation, and return whether it is the best so far.

        Args:
            step: training steps of the evaluated variables.
            recall: headline recall in percent.
        """
        self.evaluated_step = step
        if not recall > self.best_recall:  # a recall that is not a number is not the best either
            return False
        self.best_recall, self.best_step = recall, step
        return True

    def forget_best(self) -> None:
        """Make the next evaluation the best, and due again where this state was evaluated."""
        self.best_recall, self.best_step, self.evaluated_step = -1.0, None, 0

    def to_dict(self) -> dict[str, Any]:
        """Return a copy that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Progress":
        """Return the progress that `to_dict` was called on.

        Args:
            fields: the dict, after a round trip through JSON.
        """
        return cls(**{**fields, "log": PendingMeans(**fields["log"])})
