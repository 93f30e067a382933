"""The lines of a training run on a terminal: a few at the start, a live line, then the results.

Only process 0 shows anything. Speed and time left are computed from steps that the devices have
finished, because dispatched steps tell nothing about time.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from cmap_jax.evaluation.results import ProtocolResult, Result
from cmap_jax.progress import LiveLine, format_seconds

_RECENT = 50  # steps over which speed is measured
_LONG = 5.0  # a checkpoint that takes more seconds gets a line


class Display:
    """Shows the progress of a run."""

    def __init__(
        self,
        *,
        first_step: int,
        total_steps: int,
        steps_per_epoch: int,
        images_per_step: int,
        evaluations_left: Callable[[int], float] = lambda step: 0.0,
    ):
        """Show nothing yet.

        Args:
            first_step: number of steps that were done before this start, 0 for a new run.
            total_steps: number of steps at the end of the run.
            steps_per_epoch: training steps in one epoch.
            images_per_step: images that one step encodes, for the speed.
            evaluations_left: maps a step to the evaluations still to come after it, in units of
                one evaluation of the val split.
        """
        self._line = LiveLine(shown=jax.process_index() == 0)
        self._total = total_steps
        self._epoch_steps = steps_per_epoch
        self._images = images_per_step
        self._evaluations_left = evaluations_left
        self._evaluation_seconds: float | None = None
        self._paused = 0.0
        # At the end of each of the last steps: its number, and seconds of work and of waiting.
        self._ends: collections.deque = collections.deque(maxlen=_RECENT + 1)
        self._first_step = first_step

    def say(self, text: str) -> None:
        """Print a text that stays.

        Args:
            text: one or more lines.
        """
        self._line.say(text)

    def compiled(self, function: Callable, name: str) -> Callable:
        """Return a jitted function that reports its compilation, at its first call.

        Like the function itself, it returns as soon as the work is dispatched.

        Args:
            function: a jitted function that is not compiled yet.
            name: its name in the report, such as "the training step".
        """
        return _ReportsCompilation(self, function, name)

    def call_first(self, function: Callable, name: str, arguments: Sequence[Any]) -> Any:
        """Call a jitted function for the first time, and report how long its compilation takes.

        Args:
            function: a jitted function that is not compiled yet.
            name: its name in the report.
            arguments: positional arguments of the call.

        Returns:
            The result of the call.
        """
        self.say(f"compiling {name} ...")
        started = time.monotonic()
        result = function(*arguments)
        self.say(f"compiled {name} in {format_seconds(time.monotonic() - started)}")
        self._ends.append((self._first_step, self._now(), 0.0))
        return result

    def finished(self, step: int, loss: float, waited: float) -> None:
        """Show that the devices have finished a step.

        Args:
            step: the step's number, from 1.
            loss: total loss of the step's batch.
            waited: seconds that the devices have waited for data since the start.
        """
        self._ends.append((step, self._now(), waited))
        epoch = (step - 1) // self._epoch_steps + 1
        parts = [
            f"step {step:,}/{self._total:,}",
            f"epoch {epoch}/{-(-self._total // self._epoch_steps)}",
            f"loss {loss:.3f}",
        ]
        first, last = self._ends[0], self._ends[-1]
        steps, seconds, idle = (b - a for a, b in zip(first, last, strict=True))
        if steps > 0 and seconds > 0:
            parts += [
                f"{steps * self._images / seconds:,.0f} images/s",
                f"{100 * min(idle / seconds, 1):.0f}% waiting for data",
                f"{format_seconds(self._seconds_left(step, seconds / steps))} left",
            ]
        self._line.update(", ".join(parts), step / self._total)

    def _seconds_left(self, step: int, seconds_per_step: float) -> float:
        evaluations = self._evaluations_left(step) * (self._evaluation_seconds or 0.0)
        return (self._total - step) * seconds_per_step + evaluations

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Measure an evaluation of the val split, and keep it out of the time of the steps."""
        with self._pause() as seconds:
            yield
        # The first evaluation compiles too, and is slower than the others.
        self._evaluation_seconds = min(self._evaluation_seconds or seconds(), seconds())

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Report how long a checkpoint took, if it was long.

        Args:
            step: the saved state's step.
        """
        with self._pause() as seconds:
            yield
        if seconds() > _LONG:
            self.say(f"saved the state of step {step:,} in {format_seconds(seconds())}")

    def evaluated(self, step: int, result: Result, best: tuple[int, float] | None) -> None:
        """Print an evaluation's line.

        Args:
            step: training steps of the evaluated variables.
            result: their results on the val split.
            best: step and headline recall, in percent, of the best evaluation before; None if this
                one is the best so far.
        """
        name, first = next(iter(result.protocols.items()))
        protocol, recalls = first.protocol, _recalls(first)
        rank = "the best so far"
        if best is not None:
            rank = f"the best so far is {protocol.headline_name} {best[1]:.2f} of step {best[0]:,}"
        epoch = step / self._epoch_steps
        self.say(f"step {step:,}, epoch {epoch:.4g}: {name} {recalls}; {rank}")

    def ended(self, step: int, result: Result) -> None:
        """Print the results of the best variables, a line a protocol.

        Args:
            step: training steps of the best variables.
            result: their results on all splits.
        """
        self.say(f"the best variables, of step {step:,}:")
        width = max(map(len, result.protocols))
        for name, results in result.protocols.items():
            self.say(f"  {name:{width}}  {_recalls(results)}")

    def close(self) -> None:
        """Erase the live line, until the next call of a method."""
        self._line.clear()

    @contextlib.contextmanager
    def _pause(self) -> Iterator[Callable[[], float]]:
        """Erase the live line during other work, and keep that out of the time of the steps.

        Yields:
            A function that returns the seconds of the other work so far, or in all.
        """
        self._line.clear()
        started = time.monotonic()
        end = None
        try:
            yield lambda: (end or time.monotonic()) - started
        finally:
            end = time.monotonic()
            self._paused += end - started

    def _now(self) -> float:
        return time.monotonic() - self._paused


def _recalls(result: ProtocolResult) -> str:
    names = dict.fromkeys((*result.protocol.metrics, result.protocol.headline_name))
    return ", ".join(f"{name} {result.numbers[name]:.2f}" for name in names)


class _ReportsCompilation:
    """A jitted function whose first call, which compiles it, goes through the display."""

    def __init__(self, display: Display, function: Callable, name: str):
        self._display, self._function, self._name = display, function, name
        self._is_compiled = False

    def __call__(self, *arguments: Any) -> Any:
        if self._is_compiled:
            return self._function(*arguments)
        self._is_compiled = True
        return self._display.call_first(self._function, self._name, arguments)


def describe_run(config: Any, datasets: Any, workdir: str, parameters: int, steps: str) -> str:
    """Return the lines at the start of a run: data, model, devices, length and workdir.

    Args:
        config: a whole config.
        datasets: the result of `input_pipeline.create_datasets`.
        workdir: path of the run's folder, as it is shown.
        parameters: number of the model's parameters, frozen ones included.
        steps: phrase that says which steps are still to be done.
    """
    evaluated = ", ".join(
        f"{split} {sum(len(e.queries) for e in data.evaluations[:1]):,} queries and "
        f"{len(data.image_ids):,} images"
        for split, data in datasets.evaluations.items()
    )
    devices = jax.devices()
    kinds = collections.Counter(device.device_kind for device in devices)
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    train = datasets.train
    lines = {
        "data": f"{config.data.name}: {train.item_count:,} training items on "
        f"{train.image_count:,} images; {evaluated}; from {config.data.directory}",
        "model": f"{config.model.variant}, {parameters:,} parameters, {config.model.dtype}",
        "devices": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) + processes,
        "training": f"{steps}, {config.train.epochs} epochs of {train.steps_per_epoch:,} steps, "
        f"{config.train.batch_size:,} items a step",
        "workdir": workdir,
    }
    return "\n".join(f"{name:10}{text}" for name, text in lines.items())


def evaluations_left(config: Any, datasets: Any, step: int) -> float:
    """Return how much evaluation comes after a step, in units of one of the val split.

    The last evaluation is on all splits, and counts in proportion to their images.

    Args:
        config: a whole config.
        datasets: the result of `input_pipeline.create_datasets`.
        step: number of steps done.
    """
    steps = config.train.epochs * datasets.train.steps_per_epoch
    every = config.eval.every_epochs * datasets.train.steps_per_epoch
    images = {split: len(data.image_ids) for split, data in datasets.evaluations.items()}
    return -(-steps // every) - step // every + sum(images.values()) / max(images["val"], 1)
