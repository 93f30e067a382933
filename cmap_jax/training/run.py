"""A training run at work: its state, its step, its data, and what is done between the steps."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import tensorflow as tf
from clu import metric_writers
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmap_jax.evaluation.evaluator import Evaluator
from cmap_jax.evaluation.results import Result
from cmap_jax.evaluation.workdir import evaluate_workdir
from cmap_jax.training import curves
from cmap_jax.training.checkpoint_folder import explained
from cmap_jax.training.checkpointing import Checkpoints
from cmap_jax.training.display import Display
from cmap_jax.training.feed import DeviceFeed
from cmap_jax.training.progress import Progress
from cmap_jax.training.stopping import StopRequest
from cmap_jax.training.train_state import TrainState
from cmap_jax.training.train_step import TrainStep
from cmap_jax.training.training_log import TrainingLog
from cmap_jax.training.watch import LossWatch
from cmap_jax.workdir.lock import WorkdirLock


@dataclasses.dataclass(frozen=True)
class Length:
    """The length of a run.

    Attributes:
        epochs: epochs of the whole run.
        steps_per_epoch: training steps of an epoch.
    """

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def is_due(self, step: int, every_epochs: int) -> bool:
        """Tell whether work that is done every few epochs, and at the end, is due after a step.

        Args:
            step: number of a step, from 1.
            every_epochs: epochs between two times.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        return step == self.steps or (position == 0 and epoch % every_epochs == 0)


@dataclasses.dataclass(kw_only=True)
class TrainingRun:
    """A run that is at work in its workdir; `start.open_run` makes it.

    Attributes:
        config: the whole config, with the vocabulary's size.
        datasets: the result of `input_pipeline.create_datasets`.
        workdir: folder of the run, local or in a bucket.
        lock: the lock on the workdir in process 0, None in the others.
        mesh: the devices.
        length: the run's length in steps and epochs.
        state: the arrays after the latest step; each training step consumes the state before.
        progress: the facts that are saved with the state.
        train_step: the compiled step, (state, batch) -> (state, metrics).
        feed: the batches that are still to come, on the devices.
        evaluator: evaluates the variables; its programs are compiled once a run.
        checkpoints: the states to continue from, and the best variables.
        writer: writes the curves, and keeps them.
        watch: checks the losses.
        log: writes the means of the metrics.
        display: the lines that a person sees.
        stop: the request to stop.
    """

    config: ConfigDict
    datasets: Any
    workdir: epath.PathLike
    lock: WorkdirLock | None
    mesh: Mesh
    length: Length
    state: TrainState
    progress: Progress
    train_step: TrainStep
    feed: DeviceFeed
    evaluator: Evaluator
    checkpoints: Checkpoints
    writer: curves.RecordingWriter
    watch: LossWatch
    log: TrainingLog
    display: Display
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)

    @property
    def step(self) -> int:
        """Training steps that the state has behind it; waits for the devices."""
        return int(self.state.step)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Feed the devices, catch the requests to stop, and close all files at the end."""
        # TensorFlow writes the curves' file, and has errors of its own for a full disk.
        readable = explained(self.workdir, "the curves", (tf.errors.OpError,))
        writing = metric_writers.ensure_flushes(self.writer)
        display = contextlib.closing(self.display)
        with display, self.checkpoints, readable, writing, self.stop, self.feed:
            yield

    def observe(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Take the metrics of a step that was dispatched, and write the curves where it is time.

        Args:
            step: the step's number, from 1.
            metrics: float32 scalars on the devices.

        Raises:
            FloatingPointError: the loss or gradient of a step is not finite.
            OSError: a checkpoint could not be written in the background.
        """
        self.checkpoints.check()
        self.feed.working_on(metrics["loss/total"])
        self.watch(step, metrics)
        if step % self.config.train.log_every_steps == 0:
            self.write_curves(step)

    def write_curves(self, step: int) -> None:
        """Write the means of the metrics since the last time, up to a step."""
        self.watch.check_all()
        self.log.write(step)

    def evaluation_is_due(self, step: int) -> bool:
        """Tell whether the val split is evaluated after a step."""
        return self.length.is_due(step, self.config.eval.every_epochs)

    def checkpoint_is_due(self, step: int) -> bool:
        """Tell whether the state is saved after a step, whatever its evaluation says."""
        return self.length.is_due(step, self.config.train.checkpoint_every_epochs)

    def evaluation_is_pending(self) -> bool:
        """Tell whether the run was stopped in the evaluation after the state's step."""
        step = self.step
        return 0 < step != self.progress.evaluated_step and self.evaluation_is_due(step)

    def evaluate(self, step: int) -> bool:
        """Evaluate on the val split, and save the variables if they are the best so far.

        Args:
            step: the state's step.

        Returns:
            Whether they are: then the state must be saved too.

        Raises:
            Stopped: the run was asked to stop, and the evaluation is pending.
            FloatingPointError, OSError: as `save`.
        """
        self._check()
        data = self.datasets.evaluations["val"]
        with self.display.evaluating():
            result = self.evaluator(
                self.state.variables_to_use,
                data,
                examples=curves.EXAMPLES,
                before_batch=self.stop.check,
            )
        self.writer.write_scalars(step, curves.tags(result))
        curves.write_examples(result, data, self.writer, step, self.workdir)
        curves.write_curves(self.writer.curves, self.workdir)
        best_before = self.progress.best_step, self.progress.best_recall
        is_best = self.progress.record(step, result.headline())
        self.display.evaluated(step, result, None if is_best else best_before)
        if is_best:
            self.checkpoints.save_best(self.state)
        return is_best

    def save(self, step: int) -> None:
        """Save the state and the progress.

        Args:
            step: the state's step.

        Raises:
            FloatingPointError: a loss, a gradient or an array of the state is not finite.
            OSError: a checkpoint could not be written or read back.
        """
        self._check()
        # The curves come first: a resumed run never logs again what lies before its checkpoint.
        self.writer.flush()
        with self.display.saving(step):
            self.checkpoints.save(self.state, self.progress)

    def evaluate_best(self) -> Result:
        """Evaluate the best variables on all splits, when all steps are done."""
        self.write_curves(self.length.steps)
        self.checkpoints.wait()
        self.display.close()  # the evaluation shows its own progress
        result = evaluate_workdir(
            config=self.config,
            evaluator=self.evaluator,
            mesh=self.mesh,
            datasets=self.datasets,
            workdir=self.workdir,
            before_batch=self.stop.check,
        )
        self.writer.write_scalars(self.length.steps, curves.tags(result, prefix="best/"))
        curves.write_curves(self.writer.curves, self.workdir)
        self.display.ended(self.progress.best_step or self.length.steps, result)
        return result

    def _check(self) -> None:
        """Let nothing be written after a step that went wrong, or in another run's workdir."""
        self.watch.check_all()
        if self.lock is not None:
            self.lock.check()
