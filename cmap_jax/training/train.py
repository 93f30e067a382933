"""The training loop: steps, logs, an evaluation an epoch, checkpoints, a clean stop (SPEC 3, 6)."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from absl import logging
from clu import metric_writers, periodic_actions
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmap_jax import sharding
from cmap_jax.evaluation.evaluator import Evaluator, Interrupted, Result
from cmap_jax.evaluation.results import keep_shortcuts, results_to_dict
from cmap_jax.models.cmap import CMAP
from cmap_jax.protocols import Protocol
from cmap_jax.training import curves
from cmap_jax.training.checkpointing import Checkpoints
from cmap_jax.training.display import Display, describe_run, evaluations_left
from cmap_jax.training.feed import DeviceFeed
from cmap_jax.training.initial_weights import (
    InitialWeights,
    apply_initial_weights,
    fit_initial_weights,
)
from cmap_jax.training.optimizer import make_optimizer, make_schedule
from cmap_jax.training.stopping import Stopped, StopRequest
from cmap_jax.training.train_state import TrainState, create_train_state
from cmap_jax.training.train_step import TrainStep, make_train_step
from cmap_jax.training.training_log import TrainingLog
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.fingerprint import digest
from cmap_jax.workdir.lock import WorkdirLock
from cmap_jax.workdir.weights import read_variables


def train(
    config: ConfigDict,
    datasets: Any,
    workdir: str | os.PathLike,
    initial: InitialWeights | None = None,
) -> Result:
    """Train, or continue to train, in a workdir; then evaluate the best checkpoint.

    Args:
        config: a whole config.
        datasets: what `input_pipeline.create_datasets` returns.
        workdir: made if it is not there; continued if it is.
        initial: what a new run starts from; None: what the config names, read here.

    Returns:
        The best checkpoint's results on all splits.

    Raises:
        Stopped: by SIGTERM or Ctrl-C, with the state saved.
        FloatingPointError: a loss is not finite; the last good checkpoint stays.
        WorkdirInUse: another run is at work in the workdir.
        OSError: a checkpoint cannot be written; the last one stays.
        ValueError: the workdir holds a run with another config, or the vocabulary does not fit.
    """
    # First of all: a run that is at work there may be writing what is read here.
    with _locked(workdir) as lock:
        return _train(config, datasets, workdir, initial, lock)


def _train(
    config: ConfigDict,
    datasets: Any,
    workdir: str | os.PathLike,
    initial: InitialWeights | None,
    lock: WorkdirLock | None,
) -> Result:
    """Train in a workdir that nobody else works in."""
    workdir_lib.check_same_run(workdir, config)
    check_same_data(datasets, workdir)
    config = fit_vocabulary(config, datasets.tokenizer)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    model = CMAP.from_config(config)
    # Before the first write: what cannot be read must not leave a workdir of this config behind.
    if not workdir_lib.has_checkpoint(workdir):
        initial = fit_initial_weights(config, initial, model, datasets)
    steps_per_epoch = datasets.train.steps_per_epoch
    total_steps = config.train.epochs * steps_per_epoch
    checkpoints = Checkpoints(
        workdir, config.train.checkpoints_to_keep, workdir_lib.mark_of_run(config)
    )
    rules_changed = has_other_rules(datasets, workdir)
    write_description(config, datasets, workdir)
    state, train_step, progress = build_state(config, model, steps_per_epoch, mesh, checkpoints)
    if rules_changed:
        logging.warning("the protocols' rules have changed: the next evaluation is the best so far")
        progress.update(best_recall=-1.0, best_step=None, evaluated_step=0)
    evaluator = Evaluator(model, mesh, gallery_chunk=config.eval.gallery_chunk)
    writer = metric_writers.create_default_writer(
        os.fspath(workdir), just_logging=jax.process_index() > 0, asynchronous=False
    )
    report = periodic_actions.ReportProgress(
        num_train_steps=total_steps, writer=writer, every_secs=10.0
    )
    start = int(state.step)
    display = Display(
        first_step=start,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        images_per_step=2 * config.train.batch_size,
        evaluations_left=lambda step: evaluations_left(config, datasets, step),
    )
    if start == 0:
        if initial is None:  # what seemed to be a checkpoint was none
            initial = fit_initial_weights(config, None, model, datasets)
        variables = apply_initial_weights(initial, state.variables)
        state = state.replace(**variables)
        writer.write_hparams(curves.flat(config.to_dict()))
        curves.write_parameters(state.params, writer, workdir)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    steps = (
        f"continuing with steps {start + 1:,} to {total_steps:,}"
        if start
        else f"{total_steps:,} steps"
    )
    display.say(describe_run(config, datasets, os.fspath(workdir), count, steps))
    train_step = display.compiled(train_step, "the training step")

    stop = StopRequest()

    def is_due(step: int, every_epochs: int) -> bool:
        epoch, position = divmod(step, steps_per_epoch)
        return step == total_steps or (position == 0 and epoch % every_epochs == 0)

    def check() -> None:
        """Let nothing be written after a step that went wrong, or in another run's workdir."""
        log.check_all()
        if lock is not None:
            lock.check()

    def evaluate(step: int) -> bool:
        """Evaluate on the val split; return whether the state must be saved, being the best."""
        check()
        data = datasets.evaluations["val"]
        with display.evaluating():
            result = evaluator(state.variables, data, examples=curves.EXAMPLES, should_stop=stop)
        writer.write_scalars(step, curves.tags(result))
        curves.write_examples(result, data, writer, step)
        progress["evaluated_step"] = step
        best = progress["best_step"], progress["best_recall"]
        is_best = result.headline() > progress["best_recall"]
        display.evaluated(step, result, None if is_best else best)
        if not is_best:
            return False
        progress.update(best_recall=result.headline(), best_step=step)
        checkpoints.save_best(state)
        return True

    def save(step: int) -> None:
        check()
        # Before the checkpoint: what it has left behind is never logged again.
        writer.flush()
        with display.saving(step):
            checkpoints.save(state, {**progress, "log": log.state()})

    def finished(step: int, loss: float) -> None:
        display.finished(step, loss, feed.waited)
        report(step)

    feed = DeviceFeed(datasets.train.batches(start, total_steps), mesh)
    log = TrainingLog(
        writer,
        config.train.log_every_steps,
        checkpoints,
        feed,
        skips=config.train.non_finite == "skip",
        finished=finished,
    )
    log.restore(progress.pop("log"))
    # The curves' file is written by TensorFlow, which has errors of its own for a full disk.
    explained = checkpoints.explained("the curves", (tf.errors.OpError,))
    writing = metric_writers.ensure_flushes(writer)
    with contextlib.closing(display), checkpoints, explained, writing, stop, feed:
        try:
            # Where the run was stopped in the middle of an evaluation.
            pending = start > 0 and progress["evaluated_step"] != start
            if pending and is_due(start, config.eval.every_epochs):
                evaluate(start)
            for step, batch in enumerate(feed, start + 1):
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, metrics = train_step(state, batch)
                feed.working_on(metrics["loss/total"])
                log(step, metrics)
                is_best = is_due(step, config.eval.every_epochs) and evaluate(step)
                at_interval = is_due(step, config.train.checkpoint_every_epochs)
                if is_best or at_interval or stop():
                    save(step)
                if stop():
                    raise Interrupted
            log.write(total_steps)
            checkpoints.wait()
            display.close()  # the evaluation shows its own progress
            result = evaluate_workdir(config, evaluator, mesh, datasets, workdir, stop)
            writer.write_scalars(total_steps, curves.tags(result, prefix="best/"))
            display.ended(progress["best_step"] or total_steps, result)
        except Interrupted:
            step = int(state.step)
            save(step)
            checkpoints.wait()
            raise Stopped(
                f"stopped at step {step} of {total_steps}; run again to continue",
                stop.exit_status,
            ) from None
    return result


@contextlib.contextmanager
def _locked(workdir: str | os.PathLike) -> Iterator[WorkdirLock | None]:
    """Hold the workdir's lock, in process 0; the others end where it is refused, and get None."""
    with contextlib.ExitStack() as stack:
        lock, refused = None, None
        if jax.process_index() == 0:
            try:
                lock = stack.enter_context(WorkdirLock(workdir))
            except OSError as error:
                refused = error
        if jax.process_count() > 1:
            anyone = multihost_utils.broadcast_one_to_all(np.asarray(refused is not None))
            if anyone and refused is None:
                refused = OSError(f"process 0 could not lock {os.fspath(workdir)}, and says why")
        if refused is not None:
            raise refused
        yield lock


def fit_vocabulary(config: ConfigDict, tokenizer: Any) -> ConfigDict:
    """Return the config with the vocabulary's size filled in.

    Raises:
        ValueError: the config names another size.
    """
    size = config.model.text.vocabulary_size
    if size is not None and size != len(tokenizer):
        raise ValueError(
            f"config.model.text.vocabulary_size is {size}, but the data's vocabulary has "
            f"{len(tokenizer)} words; leave the field unset to take the data's"
        )
    config = config.copy_and_resolve_references()
    config.model.text.vocabulary_size = len(tokenizer)
    return config


def check_same_data(datasets: Any, workdir: str | os.PathLike) -> None:
    """Refuse to go on with other data: order, words and steps would not be those of the run.

    Raises:
        ValueError: says what differs.
    """
    if workdir_lib.read_config(workdir) is None:
        return
    old = workdir_lib.read_description(workdir)
    problem = None
    if old.tokenizer != datasets.tokenizer:
        problem = "the captions give other words than its tokenizer has"
    elif (ours := old.preprocessing.read_as) != (theirs := datasets.preprocessing.read_as):
        problem = (
            f"its pictures were read as {ours}, these as {theirs}: --config.data.read_as={ours}"
        )
    elif dict(old.facts) != (facts := json.loads(json.dumps(dict(datasets.facts)))):
        differing = [k for k in {**old.facts, **facts} if old.facts.get(k) != facts.get(k)]
        problem = "; ".join(
            f"{key} was {str(old.facts.get(key))[:200]} and is {str(facts.get(key))[:200]}"
            for key in differing
        )
    if problem:
        raise ValueError(
            f"{os.fspath(workdir)} holds a run on other data: {problem}. Restore the data, or "
            "choose another folder with --workdir=..."
        )


def has_other_rules(datasets: Any, workdir: str | os.PathLike) -> bool:
    """Tell whether a workdir's best was chosen by a protocol whose rules have changed since."""
    if workdir_lib.read_config(workdir) is None:
        return False
    old = {p.name: p for p in workdir_lib.read_description(workdir).protocols}
    return any(old.get(p.name, p) != p for p in _protocols(datasets))


def _protocols(datasets: Any) -> tuple[Protocol, ...]:
    """Return the protocols of all evaluations; what chooses the best checkpoint comes first."""
    return tuple(e.protocol for data in datasets.evaluations.values() for e in data.evaluations)


def write_description(config: ConfigDict, datasets: Any, workdir: str | os.PathLike) -> None:
    """Make the workdir describe itself, from its first minute."""
    if jax.process_index() == 0:
        workdir_lib.write_description(
            workdir,
            workdir_lib.Description(
                config,
                datasets.tokenizer,
                datasets.preprocessing,
                _protocols(datasets),
                datasets.facts,
            ),
        )


def build_state(
    config: ConfigDict, model: CMAP, steps_per_epoch: int, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[TrainState, TrainStep, dict[str, Any]]:
    """Return the initial or restored state, the compiled step, and the progress so far."""
    schedule = make_schedule(config, steps_per_epoch)
    tx = make_optimizer(config, schedule)

    def create() -> TrainState:
        return create_train_state(model, tx, config.seed, config.data.crop)

    shapes = jax.eval_shape(create)
    where = sharding.by_size(shapes, mesh)
    like = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, where
    )
    if (restored := checkpoints.restore(like)) is None:
        state = jax.jit(create, out_shardings=where, compiler_options=_for_one_run())()
        progress = {"best_recall": -1.0, "best_step": None, "evaluated_step": 0, "log": {}}
    else:
        state, progress = restored
        logging.info("Continuing from step %d", int(state.step))
    step = jax.jit(
        make_train_step(model, tx, schedule, config, mesh),
        donate_argnums=0,
        out_shardings=(where, sharding.replicated(mesh)),
    )
    return state, step, progress


def _for_one_run() -> dict[str, Any] | None:
    """Return options for a program that runs once: on CPU, optimising it takes longer than it."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def evaluate_workdir(
    config: ConfigDict,
    evaluator: Evaluator,
    mesh: Mesh,
    datasets: Any,
    workdir: str | os.PathLike,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Evaluate the best variables of a workdir on all splits, and write what they reach there.

    Raises:
        Interrupted: ``should_stop`` returned true between two batches.
    """
    model = CMAP.from_config(config)
    # Split as the state is in training: the programs of the evaluations before serve here too.
    step, variables = read_variables(
        workdir, model, config.data.crop, lambda shapes: sharding.by_size(shapes, mesh)
    )
    merged = Result()
    for data in datasets.evaluations.values():
        merged.merge(
            evaluator(
                variables,
                data,
                rankings=config.eval.rankings,
                shortcuts=config.eval.shortcuts,
                should_stop=should_stop,
            )
        )
    of = {k: config.data[k] for k in ("name", "directory", "image_directory", "resize", "crop")}
    of["read_as"] = datasets.preprocessing.read_as
    stamps = {
        **datasets.facts,
        "unread_texts": datasets.unread_texts,
        "data": of,
        "variables": digest(variables),
    }
    content = results_to_dict(step, merged, stamps)
    if jax.process_index() == 0:
        # Where there are none, or a broken file, there is nothing to keep.
        with contextlib.suppress(OSError, ValueError):
            keep_shortcuts(content, workdir_lib.read_results(workdir, config.data.name))
        workdir_lib.write_results(workdir, content, merged.rankings)
    return merged
