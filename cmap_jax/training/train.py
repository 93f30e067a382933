"""The training loop: steps, curves, evaluations, checkpoints, and an orderly stop.

See docs/method.md, sections 3 and 6.
"""

from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from cmap_jax.evaluation.results import Result
from cmap_jax.training.initial_weights import InitialWeights
from cmap_jax.training.run import TrainingRun
from cmap_jax.training.start import open_run
from cmap_jax.training.stopping import Stopped
from cmap_jax.workdir.lock import lock_workdir


def train(
    config: ConfigDict,
    datasets: Any,
    workdir: epath.PathLike,
    initial: InitialWeights | None = None,
) -> Result:
    """Train, or continue to train, in a workdir; then evaluate the best checkpoint.

    Args:
        config: a whole config.
        datasets: the result of `input_pipeline.create_datasets`.
        workdir: made if it does not exist; a run that it holds is continued.
        initial: weights that a new run starts from; None reads those that the config names.

    Returns:
        The best checkpoint's results on all splits.

    Raises:
        Stopped: SIGTERM or Ctrl-C asked the run to stop; its state is saved.
        FloatingPointError: a loss is not finite; the last good checkpoint stays.
        WorkdirInUse: another run is at work in the workdir.
        OSError: a checkpoint cannot be written; the last one stays.
        ValueError: the workdir holds a run with another config, or the vocabulary does not fit.
    """
    # The lock comes first: another run that is at work may be writing what is read next.
    with lock_workdir(workdir) as lock:
        run = open_run(config, datasets, workdir, initial=initial, lock=lock)
        with run.at_work():
            try:
                return _train(run)
            except Stopped as stopped:
                run.save(run.step)
                run.checkpoints.wait()
                raise Stopped(
                    f"stopped at step {run.step} of {run.length.steps}; run again to continue",
                    stopped.exit_status,
                ) from None


def _train(run: TrainingRun) -> Result:
    """Do the steps that are left, and evaluate the best variables."""
    if run.evaluation_is_pending():
        run.evaluate(run.step)
    for step, batch in enumerate(run.feed, run.step + 1):
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            run.state, metrics = run.train_step(run.state, batch)
        run.observe(step, metrics)
        is_best = run.evaluation_is_due(step) and run.evaluate(step)
        if is_best or run.checkpoint_is_due(step):
            run.save(step)
        run.stop.check()
    return run.evaluate_best()
