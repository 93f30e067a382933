"""The train and evaluate modes of main.py: data in, a table out."""

from collections.abc import Mapping

import jax
import tensorflow as tf
from ml_collections import ConfigDict

import input_pipeline
from cmap_jax import sharding
from cmap_jax.cli import tables
from cmap_jax.evaluation.evaluator import Evaluator, Interrupted, Result
from cmap_jax.files import check_can_write
from cmap_jax.models.cmap import CMAP
from cmap_jax.training import train as train_lib
from cmap_jax.training.check import check_config
from cmap_jax.training.initial_weights import read_initial_weights
from cmap_jax.training.stopping import Stopped, StopRequest
from cmap_jax.workdir import description as workdir_lib


def run(
    config: ConfigDict, workdir: str, *, evaluate_only: bool, command: str = "python main.py"
) -> None:
    """Train (or continue) in a workdir, or evaluate what stands there; print the recalls.

    Args:
        config: a whole config.
        workdir: the workdir.
        evaluate_only: whether not to train.
        command: what was typed before the flags, for the advice at the end.

    Raises:
        Stopped: by Ctrl-C or SIGTERM.
    """
    tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    if evaluate_only:
        evaluate(config, workdir, read_for_evaluation(config, workdir))
    else:
        _train(config, workdir)
    if jax.process_index() > 0:
        return
    print_results(config, workdir)
    print(f"\nEverything is in {workdir}; its curves: tensorboard --logdir={workdir}")
    if config.eval.rankings:
        print(f"Each query's first images are in {workdir}/{workdir_lib.RANKINGS}")
    else:
        print(
            f"Next, each query's first 50 images: {command} --mode=evaluate "
            f"--workdir={workdir} --config.eval.rankings=true"
        )


def print_results(config: ConfigDict, workdir: str) -> int:
    """Print what a workdir's variables reach on the config's data set; return their step.

    Where the run is unfinished, that is said too.
    """
    content = workdir_lib.read_results(workdir, config.data.name)
    print(tables.results(content))
    if progress := workdir_lib.unfinished(workdir):
        last, total = progress
        print(
            f"\nThe run is unfinished: it stands at step {last:,} of {total:,}. These are its best "
            f"variables so far, of step {content['step']:,}."
        )
    return content["step"]


def _train(config: ConfigDict, workdir: str) -> None:
    # Before any data are rendered or read; what is impossible, before what does not fit.
    check_config(config)
    input_pipeline.check_fields(config)
    workdir_lib.check_same_run(workdir, config)
    check_can_write(workdir)
    if workdir_lib.has_checkpoint(workdir):
        # What the run started from is no longer needed, and may be gone.
        initial = None
        tokenizer = workdir_lib.read_description(workdir).tokenizer if config.init_from else None
    else:
        initial = read_initial_weights(config)
        tokenizer = initial.tokenizer
    datasets = input_pipeline.create_datasets(
        config, tokenizer, process_index=jax.process_index(), process_count=jax.process_count()
    )
    train_lib.train(config, datasets, workdir, initial)


def read_for_evaluation(config: ConfigDict, workdir: str) -> input_pipeline.Datasets:
    """Read the data that a workdir's model is to be evaluated on.

    Raises:
        FileNotFoundError: no workdir, nothing saved in it, or the data are not there.
        OSError: results could not be written there.
        ValueError: the config changes what the weights were made with; names the fields.
    """
    check_config(config, training=False)
    description = workdir_lib.read_description(workdir)
    config = _read_as_trained(config, description, workdir)
    # What the weights were made with; all else may differ.
    of_data = ("resize", "crop", "fit", "resampling")
    old, new = (
        {"model": c.model.to_dict(), "data": {name: c.data[name] for name in of_data}}
        for c in (description.config, config)
    )
    changed = list(workdir_lib.differing_fields(old, new))
    if changed:
        raise ValueError(f"a trained model cannot be changed: {'; '.join(changed)}")
    workdir_lib.check_has_weights(workdir)
    check_can_write(workdir)
    datasets = input_pipeline.create_datasets(
        config,
        description.tokenizer,
        training=False,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    _check_prepared_alike(description.facts, datasets.facts, workdir, config.data.directory)
    return datasets


def evaluate(config: ConfigDict, workdir: str, datasets: input_pipeline.Datasets) -> Result:
    """Evaluate what stands in a workdir, write the results there, and return them.

    Args:
        config: a whole config.
        workdir: the workdir.
        datasets: from `read_for_evaluation`.

    Raises:
        Stopped: by Ctrl-C or SIGTERM, with nothing written.
    """
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    evaluator = Evaluator(CMAP.from_config(config), mesh, gallery_chunk=config.eval.gallery_chunk)
    with StopRequest() as stop:
        try:
            return train_lib.evaluate_workdir(config, evaluator, mesh, datasets, workdir, stop)
        except Interrupted:
            raise Stopped(
                f"stopped in the evaluation; nothing was written to {workdir}", stop.exit_status
            ) from None


def _read_as_trained(
    config: ConfigDict, description: workdir_lib.Description, workdir: str
) -> ConfigDict:
    """Return the config with pictures read as the model's were, whatever data set it is now.

    Raises:
        ValueError: the config asks for another way.
    """
    read_as = description.preprocessing.read_as
    if config.data.read_as not in (None, read_as):
        raise ValueError(
            f"{workdir}: the model was trained on pictures read as {read_as}, and the config reads "
            f"them as {config.data.read_as}; leave --config.data.read_as out"
        )
    config = config.copy_and_resolve_references()
    config.data.read_as = read_as
    return config


def _check_prepared_alike(theirs: Mapping, ours: Mapping, workdir: str, directory: str) -> None:
    """Refuse to evaluate on data that were prepared in another version than the model's."""
    versions = [facts.get("prepared", {}).get("version") for facts in (theirs, ours)]
    if None not in versions and versions[0] != versions[1]:
        raise ValueError(
            f"{workdir}: the model was trained on data prepared in version {versions[0]}, but "
            f"{directory} was prepared in version {versions[1]}; evaluate on the former, or on "
            "the raw data"
        )
