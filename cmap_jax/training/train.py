"""The training loop: steps, logs, an evaluation an epoch, checkpoints, a clean stop (SPEC 3, 6)."""

import collections
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import metric_writers, parameter_overview, periodic_actions
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmap_jax import sharding
from cmap_jax import workdir as workdir_lib
from cmap_jax.evaluation.evaluator import Evaluator, Result
from cmap_jax.evaluation.results import results_to_dict
from cmap_jax.models.cmap import CMAP
from cmap_jax.training.checkpointing import Checkpoints, abstract_state
from cmap_jax.training.feed import DeviceFeed
from cmap_jax.training.initial_weights import (
    InitialWeights,
    apply_initial_weights,
    read_initial_weights,
)
from cmap_jax.training.optimizer import make_optimizer, make_schedule
from cmap_jax.training.train_state import TrainState, create_train_state
from cmap_jax.training.train_step import TrainStep, make_train_step

# A step's loss is looked at when this many later steps are under way, so that the look need not
# wait for the device.
_LAG = 2

# Above this share of the time, waiting for data is worth a word.
_WORTH_SAYING = 0.1


class Stopped(Exception):  # noqa: N818
    """The run was asked to stop, saved its state and did."""


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
        ValueError: the workdir holds a run with another config, or the vocabulary does not fit.
    """
    workdir_lib.check_same_run(workdir, config)
    check_same_data(datasets, workdir)
    config = fit_vocabulary(config, datasets.vocabulary)
    mesh = sharding.make_mesh()
    model = CMAP.from_config(config)
    if initial is None and not workdir_lib.has_checkpoint(workdir):
        initial = read_initial_weights(config)
    steps_per_epoch = datasets.train.steps_per_epoch
    total_steps = config.train.epochs * steps_per_epoch
    checkpoints = Checkpoints(workdir, config.train.checkpoints_to_keep)
    write_description(config, datasets, workdir)
    state, train_step, progress = build_state(config, model, steps_per_epoch, mesh, checkpoints)
    evaluator = Evaluator(model, mesh, gallery_chunk=config.eval.gallery_chunk)
    writer = metric_writers.create_default_writer(
        os.fspath(workdir), just_logging=jax.process_index() > 0, asynchronous=False
    )
    report = periodic_actions.ReportProgress(
        num_train_steps=total_steps, writer=writer, every_secs=10.0
    )
    start = int(state.step)
    if start == 0:
        variables = apply_initial_weights(
            config, initial, state.variables, datasets.vocabulary, datasets.word_counts
        )
        state = state.replace(**variables)
        writer.write_hparams(_flat(config.to_dict()))
        parameter_overview.log_parameter_overview(state.params, msg="Parameters")
    logging.info("Steps %d to %d in %s", start, total_steps, os.fspath(workdir))

    feed = DeviceFeed(datasets.train.batches(start, total_steps), mesh)
    log = TrainingLog(writer, config.train.log_every_steps, checkpoints, feed)
    with metric_writers.ensure_flushes(writer), _stop_signals() as stop, feed:
        for step, batch in enumerate(feed, start + 1):
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, batch)
            feed.working_on(metrics["loss/total"])
            log(step, metrics)
            report(step)
            epoch, position = divmod(step, steps_per_epoch)
            if position == 0 and (epoch % config.eval.every_epochs == 0 or step == total_steps):
                log.check_all()
                result = evaluator(state.variables, datasets.evaluations["val"])
                writer.write_scalars(step, _tags(result))
                if result.headline() > progress["best_recall"]:
                    progress = {"best_recall": result.headline(), "best_step": step}
                    checkpoints.save_best(state)
            at_interval = position == 0 and epoch % config.train.checkpoint_every_epochs == 0
            if at_interval or step == total_steps or stop:
                log.check_all()
                checkpoints.save(state, progress)
            if stop and step < total_steps:
                checkpoints.close()
                raise Stopped(f"stopped at step {step} of {total_steps}; run again to continue")
        log.write(total_steps)
        checkpoints.close()
        result = evaluate_workdir(config, evaluator, mesh, datasets, workdir)
        writer.write_scalars(total_steps, _tags(result, prefix="best/"))
    return result


def fit_vocabulary(config: ConfigDict, vocabulary: Any) -> ConfigDict:
    """Return the config with the vocabulary's size filled in.

    Raises:
        ValueError: the config names another size.
    """
    size = config.model.text.vocabulary_size
    if size is not None and size != len(vocabulary):
        raise ValueError(
            f"config.model.text.vocabulary_size is {size}, but the data's vocabulary has "
            f"{len(vocabulary)} words; leave the field unset to take the data's"
        )
    config = config.copy_and_resolve_references()
    config.model.text.vocabulary_size = len(vocabulary)
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
    if old.vocabulary.words != datasets.vocabulary.words:
        problem = "the captions give other words than its vocabulary.txt holds"
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


def write_description(config: ConfigDict, datasets: Any, workdir: str | os.PathLike) -> None:
    """Make the workdir describe itself, from its first minute."""
    protocols = tuple(
        e.protocol for data in datasets.evaluations.values() for e in data.evaluations
    )
    if jax.process_index() == 0:
        workdir_lib.write_description(
            workdir,
            workdir_lib.Description(
                config, datasets.vocabulary, datasets.preprocessing, protocols, datasets.facts
            ),
        )


def build_state(
    config: ConfigDict, model: CMAP, steps_per_epoch: int, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[TrainState, TrainStep, dict[str, Any]]:
    """Return the initial or restored state, the compiled step, and the progress so far."""
    schedule = make_schedule(config, steps_per_epoch)
    tx = make_optimizer(config, schedule)
    everywhere = sharding.replicated(mesh)

    def create() -> TrainState:
        return create_train_state(model, tx, config.seed, config.data.crop)

    if checkpoints.latest_step() is None:
        state = jax.jit(create, out_shardings=everywhere)()
        progress = {"best_recall": -1.0, "best_step": None}
    else:
        like = abstract_state(jax.eval_shape(create), everywhere)
        state, progress = checkpoints.restore(like)
        logging.info("Continuing from step %d", int(state.step))
    step = jax.jit(
        make_train_step(model, tx, schedule, config), donate_argnums=0, out_shardings=everywhere
    )
    return state, step, progress


class TrainingLog:
    """Writes the means of the metrics, and stops the run at a loss that is not finite."""

    def __init__(self, writer: Any, every_steps: int, checkpoints: Checkpoints, feed: DeviceFeed):
        """Write every ``every_steps`` steps."""
        self._writer = writer
        self._every = every_steps
        self._checkpoints = checkpoints
        self._feed = feed
        self._unchecked: collections.deque = collections.deque()
        self._window: list[dict[str, np.ndarray]] = []

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
        if self._window:
            means = {k: float(np.mean([m[k] for m in self._window])) for k in self._window[0]}
            # These two are states, not noisy measurements: their last value is what they are.
            for name in ("learning_rate", "logit_scale"):
                means[name] = float(self._window[-1][name])
            means["data_wait"] = self._feed.take_waiting_share()
            self._writer.write_scalars(step, means)
            self._window.clear()
            if means["data_wait"] > _WORTH_SAYING:
                logging.warning(
                    "Up to step %d the devices waited for data %.0f%% of the time. Keep decoded "
                    "images in memory (--config.data.cache_gb), prepare the data set once (tfds "
                    "build, see the README), or use a machine with more CPU cores",
                    step,
                    100 * means["data_wait"],
                )

    def check_all(self) -> None:
        """Look at the losses of all steps so far."""
        while self._unchecked:
            self._check(*self._unchecked.popleft())

    def _check(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {k: np.asarray(v) for k, v in metrics.items()}
        # The gradient too: a finite loss with a broken gradient leaves broken parameters behind.
        if not np.isfinite(values["loss/total"] + values["gradient_norm"]):
            self._checkpoints.wait()
            good = self._checkpoints.latest_step()
            terms = ", ".join(f"{k} = {v}" for k, v in values.items())
            raise FloatingPointError(
                f"the loss or gradient of step {step} is not finite: {terms}. "
                + (f"The last good checkpoint is of step {good}. " if good else "None was saved. ")
                + "Try a lower "
                "--config.optimizer.learning_rate or --config.optimizer.clip_norm=1"
            )
        self._window.append(values)


def evaluate_workdir(
    config: ConfigDict,
    evaluator: Evaluator,
    mesh: Mesh,
    datasets: Any,
    workdir: str | os.PathLike,
) -> Result:
    """Evaluate the best variables of a workdir on all splits, and write what they reach there."""
    model = CMAP.from_config(config)
    step, variables = workdir_lib.read_variables(workdir, model, config.data.crop)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    merged = Result()
    for data in datasets.evaluations.values():
        merged.merge(
            evaluator(
                variables,
                data,
                rankings=config.eval.rankings,
                shortcuts=config.eval.shortcuts,
            )
        )
    of = {k: config.data[k] for k in ("name", "directory", "resize", "crop")}
    content = results_to_dict(step, merged, {**datasets.facts, "data": of})
    if jax.process_index() == 0:
        workdir_lib.write_results(workdir, content, merged.rankings)
    return merged


@contextlib.contextmanager
def _stop_signals() -> Iterator[list]:
    """Yield a list that becomes true at the first SIGTERM or Ctrl-C; a second one ends at once."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        logging.info("Stopping after this step; once more to stop at once")

    signals = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, handle) for number in signals]
    try:
        yield received
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


def _tags(result: Result, prefix: str = "") -> dict[str, float]:
    """Return TensorBoard tags, each with its protocol's name."""
    return {
        f"{prefix}{protocol}/{name}": value
        for protocol, numbers in result.protocols.items()
        for name, value in numbers.items()
    } | {
        f"{prefix}shortcuts/{half}/{protocol}/{name}": value
        for protocol, halves in result.shortcuts.items()
        for half, numbers in halves.items()
        if numbers is not None
        for name, value in numbers.items()
    }


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    """Return a nested config as one level with dots, values that hparams can hold."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float) else str(value)
    return flat
