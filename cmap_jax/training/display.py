"""What a person sees of a training run: a few lines at its start, one live line, then the results.

Only process 0 shows anything. Speed and the time left are those of steps that the devices have
finished: steps are dispatched ahead of them, and say nothing.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from cmap_jax.evaluation.results import ProtocolResult, Result
from cmap_jax.progress import LiveLine, format_seconds

_RECENT = 50  # steps over which speed is measured
_LONG = 5.0  # seconds from which saving is worth a line


class Display:
    """Shows how a run goes."""

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
            first_step: steps that were done before this start.
            total_steps: of the whole run.
            steps_per_epoch: steps of an epoch.
            images_per_step: images that a step encodes.
            evaluations_left: from a step to the evaluations still to come after it, in units of an
                evaluation of the val split.
        """
        self._line = LiveLine(shown=jax.process_index() == 0)
        self._total = total_steps
        self._epoch_steps = steps_per_epoch
        self._images = images_per_step
        self._evaluations_left = evaluations_left
        self._evaluation_seconds: float | None = None
        self._paused = 0.0
        # Step, working time and waiting time at each of the last steps' ends.
        self._ends: collections.deque = collections.deque(maxlen=_RECENT + 1)
        self._first_step = first_step

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._line.say(text)

    def compiled(self, function: Callable, name: str) -> Callable:
        """Return a jitted function that says at its first call that it is compiled, and how long.

        The wrapped call returns when the work is dispatched, as the function's own does.
        """
        is_first = True

        def call(*arguments: Any) -> Any:
            nonlocal is_first
            if not is_first:
                return function(*arguments)
            is_first = False
            self.say(f"compiling {name} ...")
            started = time.monotonic()
            result = function(*arguments)
            self.say(f"compiled {name} in {format_seconds(time.monotonic() - started)}")
            self._ends.append((self._first_step, self._now(), 0.0))
            return result

        return call

    def finished(self, step: int, loss: float, waited: float) -> None:
        """Show that the devices have finished a step.

        Args:
            step: its number, from 1.
            loss: its loss.
            waited: seconds in which the devices have waited for data since the start.
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
        """Measure an evaluation of the val split; it does not count as time of the steps."""
        with self._pause() as seconds:
            yield
        # The first one compiles too.
        self._evaluation_seconds = min(self._evaluation_seconds or seconds(), seconds())

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Say how long a checkpoint takes, if it is long."""
        with self._pause() as seconds:
            yield
        if seconds() > _LONG:
            self.say(f"saved the state of step {step:,} in {format_seconds(seconds())}")

    def evaluated(self, step: int, result: Result, best: tuple[int, float] | None) -> None:
        """Print an evaluation's line.

        Args:
            step: training steps of the variables.
            result: what they reach.
            best: step and headline of the best evaluation before; None if this is the best so far.
        """
        name, first = next(iter(result.protocols.items()))
        protocol, recalls = first.protocol, _recalls(first)
        rank = "the best so far"
        if best is not None:
            rank = f"the best so far is {protocol.headline_name} {best[1]:.2f} of step {best[0]:,}"
        epoch = step / self._epoch_steps
        self.say(f"step {step:,}, epoch {epoch:.4g}: {name} {recalls}; {rank}")

    def ended(self, step: int, result: Result) -> None:
        """Print what the best variables reach, a line a protocol."""
        self.say(f"the best variables, of step {step:,}:")
        width = max(map(len, result.protocols))
        for name, results in result.protocols.items():
            self.say(f"  {name:{width}}  {_recalls(results)}")

    def close(self) -> None:
        """Take the live line away; another call of a method brings it back."""
        self._line.clear()

    @contextlib.contextmanager
    def _pause(self) -> Iterator[Callable[[], float]]:
        """Take the live line away for other work, and do not count its time as the steps'."""
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


def describe_run(config: Any, datasets: Any, workdir: str, parameters: int, steps: str) -> str:
    """Return the lines at the start: data, model, devices, length and place.

    Args:
        config: the whole config.
        datasets: what `input_pipeline.create_datasets` returns.
        workdir: the folder of the run.
        parameters: number of the model's parameters.
        steps: which steps are to be done.
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
    """Return how many evaluations come after a step, in units of one of the val split.

    The last one is of all splits, and counts as much more as it has images.
    """
    steps = config.train.epochs * datasets.train.steps_per_epoch
    every = config.eval.every_epochs * datasets.train.steps_per_epoch
    images = {split: len(data.image_ids) for split, data in datasets.evaluations.items()}
    return -(-steps // every) - step // every + sum(images.values()) / max(images["val"], 1)
