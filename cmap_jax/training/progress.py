"""Progress of a run besides its arrays: the best evaluation so far, and means not yet written."""

import dataclasses
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
    def from_dict(cls, fields: Any) -> "Progress":
        """Return the progress that `to_dict` was called on.

        Args:
            fields: the dict, after a round trip through JSON.

        Raises:
            ValueError: it has another form; names the field.
        """
        _check_names(cls, fields, "the progress")
        log = fields.get("log")
        _check_names(PendingMeans, log, "the progress's log")
        for name, value in fields.items():
            is_good = name == "log" or _is_number(value, whole=name != "best_recall")
            if not is_good and not (name == "best_step" and value is None):
                raise ValueError(f"the progress's {name} is {value!r:.40}")
        for name in ("sums", "states"):
            values = log.get(name, {})
            if not isinstance(values, dict) or not all(map(_is_number, values.values())):
                raise ValueError(f"the progress's log.{name} is {values!r:.40}")
        if not _is_number(log.get("count", 0), whole=True):
            raise ValueError(f"the progress's log.count is {log['count']!r:.40}")
        return cls(**{**fields, "log": PendingMeans(**log)})


def _check_names(kind: type, fields: Any, subject: str) -> None:
    """Refuse something else than an object with a class's fields, all or some."""
    known = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(fields, dict) or not set(fields) <= known:
        raise ValueError(f"{subject} is {fields!r:.40}")


def _is_number(value: Any, whole: bool = False) -> bool:
    return type(value) is int or (type(value) is float and not whole)
