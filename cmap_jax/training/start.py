"""The start of a training run: everything is checked and built, or restored, before the loop."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from clu import metric_writers, periodic_actions
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmap_jax import sharding
from cmap_jax.config_fields import check_values
from cmap_jax.evaluation.evaluator import Evaluator
from cmap_jax.models.cmap import CMAP
from cmap_jax.training import curves
from cmap_jax.training.checkpointing import Checkpoints
from cmap_jax.training.display import Display, describe_run, evaluations_left
from cmap_jax.training.feed import DeviceFeed
from cmap_jax.training.frozen_encoder import start_from_features
from cmap_jax.training.initial_weights import (
    InitialWeights,
    apply_initial_weights,
    fit_initial_weights,
)
from cmap_jax.training.moving_average import start_average
from cmap_jax.training.optimizer import make_optimizer, make_schedule
from cmap_jax.training.progress import Progress
from cmap_jax.training.run import Length, TrainingRun
from cmap_jax.training.same_data import (
    check_same_data,
    fit_vocabulary,
    protocols_of,
    rules_have_changed,
)
from cmap_jax.training.train_state import TrainState, create_train_state
from cmap_jax.training.train_step import TrainStep, make_train_step
from cmap_jax.training.training_log import TrainingLog
from cmap_jax.training.watch import FinishedStep, LossWatch
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.about import describe
from cmap_jax.workdir.event_files import Curves, read_curves
from cmap_jax.workdir.lock import WorkdirLock
from cmap_jax.workdir.same_run import check_same_run, mark_of_run

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that a run is determined by; nothing of it is written yet.

    Attributes:
        config: the whole config, with the vocabulary's size.
        datasets: the result of `input_pipeline.create_datasets`.
        workdir: folder of the run.
        model: the Flax module.
        mesh: the devices.
        length: the run's length in steps and epochs.
    """

    config: ConfigDict
    datasets: Any
    workdir: epath.PathLike
    model: CMAP
    mesh: Mesh
    length: Length


class _Programs(NamedTuple):
    """The programs that make and change the state.

    Attributes:
        create: compiled at its call; returns the state at step 0.
        like: shapes, dtypes and shardings of the state.
        train_step: compiled at its first call.
    """

    create: Callable[[], TrainState]
    like: TrainState
    train_step: TrainStep


class _Opened(NamedTuple):
    """A workdir that the run may write to, with the state and progress that it starts from."""

    checkpoints: Checkpoints
    state: TrainState
    progress: Progress
    writer: curves.RecordingWriter


def open_run(
    config: ConfigDict,
    datasets: Any,
    workdir: epath.PathLike,
    *,
    initial: InitialWeights | None,
    lock: WorkdirLock | None,
) -> TrainingRun:
    """Begin a new run in a workdir, or resume the one that has saved a state there.

    Args:
        config: a whole config.
        datasets: the result of `input_pipeline.create_datasets`.
        workdir: folder of the run, local or in a bucket; made if it does not exist.
        initial: weights that a new run starts from; None reads those that the config names.
        lock: the lock on the workdir in process 0, None in the others.

    Raises:
        OSError: the workdir cannot be written.
        ValueError: a value of the config is impossible, the workdir holds a run with another config
            or other data, the vocabulary does not fit the config, or no saved state can be used.
    """
    check_values(config)
    resumes = workdir_lib.has_checkpoint(workdir)
    check_same_run(workdir, config)
    check_same_data(datasets, workdir)
    config = fit_vocabulary(config, datasets.tokenizer)
    plan = _Plan(
        config=config,
        datasets=datasets,
        workdir=workdir,
        model=CMAP.from_config(config),
        mesh=sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp),
        length=Length(config.train.epochs, datasets.train.steps_per_epoch),
    )
    programs = _make_programs(plan)
    opened = _resume(plan, programs) if resumes else _begin(plan, programs, initial)
    return _assemble(plan, programs.train_step, opened, lock)


def _make_programs(plan: _Plan) -> _Programs:
    """Trace the state's shapes, and jit what makes the state and what changes it."""
    config, model, mesh = plan.config, plan.model, plan.mesh
    schedule = make_schedule(config, plan.length.steps_per_epoch)
    tx = make_optimizer(config, schedule)
    create = functools.partial(
        create_train_state,
        model,
        tx,
        seed=config.seed,
        image_size=config.data.crop,
        average=functools.partial(start_average, config=config),
    )
    shapes = jax.eval_shape(create)
    shardings = sharding.by_size(shapes, mesh)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
    )
    # On CPU it takes longer to optimise a program that is called once than to run it as it is.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return _Programs(
        create=jax.jit(create, out_shardings=shardings, compiler_options=quick),
        like=like,
        train_step=jax.jit(
            make_train_step(model, tx, schedule, config=config, mesh=mesh),
            donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(mesh)),
        ),
    )


def _begin(plan: _Plan, programs: _Programs, initial: InitialWeights | None) -> _Opened:
    """Make the state at step 0, with the weights that the config asks for."""
    # Weights are read before the first write: a run that cannot start must leave no workdir.
    initial = fit_initial_weights(plan.config, initial, plan.model, plan.datasets)
    if plan.datasets.features is not None:
        initial = start_from_features(plan.config, initial, plan.datasets.features)
    checkpoints = _claim(plan)
    state = programs.create()
    variables = apply_initial_weights(initial, state.variables)
    state = state.replace(**variables, average=start_average(variables, plan.config))
    writer = _make_writer(plan, {})
    writer.write_hparams(curves.flat(plan.config.to_dict()))
    curves.write_parameters(state.params, writer, plan.workdir)
    return _Opened(checkpoints, state, Progress(), writer)


def _resume(plan: _Plan, programs: _Programs) -> _Opened:
    """Restore the latest good state."""
    # The description is overwritten with today's protocols when the workdir is claimed.
    has_other_rules = rules_have_changed(plan.datasets, plan.workdir)
    checkpoints = _claim(plan)
    state, progress = checkpoints.restore(programs.like)
    _logger.info("Continuing from step %d", int(state.step))
    if has_other_rules:
        _logger.warning("the protocols' rules have changed: the next evaluation is the best so far")
        progress.forget_best()
    # Read before the writer begins a new event file.
    earlier = read_curves(plan.workdir) if jax.process_index() == 0 else {}
    return _Opened(checkpoints, state, progress, _make_writer(plan, earlier))


def _claim(plan: _Plan) -> Checkpoints:
    """Make the folders of the checkpoints, and let the workdir describe itself from now on."""
    description = workdir_lib.Description(
        config=plan.config,
        tokenizer=plan.datasets.tokenizer,
        preprocessing=plan.datasets.preprocessing,
        protocols=protocols_of(plan.datasets),
        facts=plan.datasets.facts.to_dict(),
    )
    checkpoints = Checkpoints(
        plan.workdir,
        keep=plan.config.train.checkpoints_to_keep,
        run=mark_of_run(plan.config),
        describes=describe(description),
    )
    if jax.process_index() == 0:
        workdir_lib.write_description(plan.workdir, description)
    return checkpoints


def _make_writer(plan: _Plan, earlier: Curves) -> curves.RecordingWriter:
    """Return the writer of the curves; process 0 alone writes files.

    Args:
        plan: the run.
        earlier: curves that earlier starts of the run have written.
    """
    writer = metric_writers.create_default_writer(
        os.fspath(plan.workdir), just_logging=jax.process_index() > 0, asynchronous=False
    )
    return curves.RecordingWriter(writer, earlier)


def _assemble(
    plan: _Plan, train_step: TrainStep, opened: _Opened, lock: WorkdirLock | None
) -> TrainingRun:
    """Build what stands around the steps: data, evaluator, watch, log and display."""
    config, length = plan.config, plan.length
    start = int(opened.state.step)
    display = _make_display(plan, opened.state, start)
    feed = DeviceFeed(plan.datasets.train.batches(start, length.steps), plan.mesh)
    log = TrainingLog(opened.writer, opened.progress.log, feed.take_waited_fraction)
    report = periodic_actions.ReportProgress(
        num_train_steps=length.steps, writer=opened.writer, every_secs=10.0
    )
    watch = LossWatch(
        opened.checkpoints,
        skips=config.train.non_finite == "skip",
        observers=(log.add, functools.partial(_show, display, feed, report)),
    )
    return TrainingRun(
        config=config,
        datasets=plan.datasets,
        workdir=plan.workdir,
        lock=lock,
        mesh=plan.mesh,
        length=length,
        state=opened.state,
        progress=opened.progress,
        train_step=display.compiled(train_step, "the training step"),
        feed=feed,
        evaluator=Evaluator(
            plan.model,
            plan.mesh,
            gallery_chunk=config.eval.gallery_chunk,
            overlap=config.eval.overlap,
        ),
        checkpoints=opened.checkpoints,
        writer=opened.writer,
        watch=watch,
        log=log,
        display=display,
    )


def _make_display(plan: _Plan, state: TrainState, start: int) -> Display:
    """Return the display, which has described the run."""
    steps = plan.length.steps
    display = Display(
        first_step=start,
        total_steps=steps,
        steps_per_epoch=plan.length.steps_per_epoch,
        images_per_step=2 * plan.config.train.batch_size,
        evaluations_left=functools.partial(evaluations_left, plan.config, plan.datasets),
    )
    display.say(
        describe_run(
            config=plan.config,
            datasets=plan.datasets,
            workdir=os.fspath(plan.workdir),
            parameters=sum(x.size for x in jax.tree.leaves(state.params)),
            steps=f"continuing with steps {start + 1:,} to {steps:,}"
            if start
            else f"{steps:,} steps",
        )
    )
    return display


def _show(
    display: Display,
    feed: DeviceFeed,
    report: periodic_actions.ReportProgress,
    finished: FinishedStep,
) -> None:
    """Show a person, and CLU's report of the speed, that the devices have finished a step."""
    display.finished(finished.step, finished.measurements["loss/total"], feed.waited)
    report(finished.step)
