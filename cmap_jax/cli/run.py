"""The train and evaluate modes of main.py, which end with a table of results."""

import shlex

import jax
import tensorflow as tf
from ml_collections import ConfigDict

import input_pipeline
from cmap_jax import sharding
from cmap_jax.cli.captions import captions_for
from cmap_jax.cli.results_table import results_table
from cmap_jax.config_fields import Kind, differences
from cmap_jax.evaluation.evaluator import Evaluator
from cmap_jax.evaluation.results import Result
from cmap_jax.evaluation.results_file import (
    RANKINGS,
    check_can_write_results,
    read_results,
    results_path,
)
from cmap_jax.evaluation.workdir import evaluate_workdir
from cmap_jax.facts import DataFacts
from cmap_jax.files import check_can_write
from cmap_jax.models.cmap import CMAP
from cmap_jax.training.check import check_config
from cmap_jax.training.frozen_encoder import FrozenEncoder, start_from_features
from cmap_jax.training.initial_weights import read_initial_weights
from cmap_jax.training.stopping import Stopped, StopRequest
from cmap_jax.training.train import train
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.same_run import check_same_run
from cmap_jax.workdir.weights import read_variables
from input_pipeline.features.reading import FeatureFiles


def run(
    config: ConfigDict, workdir: str, *, evaluate_only: bool, command: str = "python main.py"
) -> None:
    """Train (or continue) in a workdir, or evaluate the model in it; print the recalls.

    Args:
        config: a whole config.
        workdir: folder of the run, local or in a bucket.
        evaluate_only: evaluate without training.
        command: command line before the flags, as the advice at the end repeats it.

    Raises:
        Stopped: Ctrl-C or SIGTERM asked the program to stop.
    """
    if evaluate_only:
        evaluate(config, workdir, read_for_evaluation(config, workdir))
    else:
        _train(config, workdir)
    if jax.process_index() > 0:
        return
    print_results(config, workdir)
    name = shlex.quote(workdir)
    print(f"\nEverything is in {workdir}; its curves: tensorboard --logdir={name}")
    if config.eval.rankings:
        print(f"Each query's first images are in {workdir}/{RANKINGS}")
    else:
        print(
            f"Next, each query's first 50 images: {command} --mode=evaluate "
            f"--workdir={name} --config.eval.rankings=true"
        )


def print_results(config: ConfigDict, workdir: str) -> int:
    """Print a workdir's results on the config's data set, and whether its run is unfinished.

    Args:
        config: a whole config.
        workdir: a workdir with results.

    Returns:
        Training steps of the evaluated variables.
    """
    stored = read_results(results_path(workdir, config.data.name))
    print(results_table(stored))
    if progress := workdir_lib.unfinished(workdir):
        last, total = progress
        print(
            f"\nThe run is unfinished: it stands at step {last:,} of {total:,}. These are its best "
            f"variables so far, of step {stored.step:,}."
        )
    return stored.step


def _leave_accelerators_to_jax() -> None:
    """Hide accelerators from TensorFlow, whose build in Colab would claim all of their memory."""
    tf.config.set_visible_devices([], "GPU")


def _train(config: ConfigDict, workdir: str) -> None:
    _leave_accelerators_to_jax()
    # All checks come before data are rendered or read; impossible values come before values that
    # do not fit the workdir.
    check_config(config)
    input_pipeline.check_fields(config)
    check_same_run(workdir, config)
    check_can_write(workdir)
    if workdir_lib.has_checkpoint(workdir):
        # The weights and files that the run started from are no longer needed, and may be gone.
        initial = None
        own = workdir_lib.read_description(workdir).tokenizer
        tokenizer = own if config.init_from or not own.counts_words else None
    else:
        initial = read_initial_weights(config)
        tokenizer = initial.tokenizer
        if config.data.features:
            initial = start_from_features(config, initial, FeatureFiles(config.data.features))
    datasets = input_pipeline.create_datasets(
        config, tokenizer, process_index=jax.process_index(), process_count=jax.process_count()
    )
    train(config, datasets, workdir, initial)


def read_for_evaluation(config: ConfigDict, workdir: str) -> input_pipeline.Datasets:
    """Read the data that a workdir's model is to be evaluated on.

    Args:
        config: a whole config; it may name another data set than the model was trained on.
        workdir: a workdir with weights.

    Raises:
        FileNotFoundError: no workdir, nothing saved in it, or no data.
        OSError: results could not be written to the workdir.
        ValueError: the config differs from the model's in fields that its weights depend on; names
            the fields.
    """
    _leave_accelerators_to_jax()
    config, description = as_trained(config, workdir)
    config.eval.captions = captions_for(
        config.data.name, config.model.variant, config.eval.captions
    )
    check_can_write_results(workdir, config.data.name, rankings=config.eval.rankings)
    if config.data.features:
        _check_features(config, workdir)
    datasets = input_pipeline.create_datasets(
        config,
        description.tokenizer,
        training=False,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    _check_prepared_alike(
        DataFacts.from_dict(description.facts), datasets.facts, workdir, config.data.directory
    )
    return datasets


def as_trained(config: ConfigDict, workdir: str) -> tuple[ConfigDict, workdir_lib.Description]:
    """Return a config for the use of a workdir's model, and the workdir's description.

    Args:
        config: a whole config; it may name another data set than the model was trained on.
        workdir: a workdir with weights.

    Raises:
        FileNotFoundError: no workdir, or nothing saved in it.
        ValueError: an impossible config, or one that differs from the model's in fields that its
            weights depend on; names the fields.
    """
    check_config(config, training=False)
    description = workdir_lib.read_description(workdir)
    config = _read_as_trained(config, description, workdir)
    old, new = description.config.to_dict(), config.to_dict()
    changed = differences(old, new, Kind.TRAINED)
    if changed:
        raise ValueError(f"a trained model cannot be changed: {'; '.join(changed)}")
    workdir_lib.check_has_weights(workdir)
    return config, description


def evaluate(config: ConfigDict, workdir: str, datasets: input_pipeline.Datasets) -> Result:
    """Evaluate the model in a workdir, write the results there, and return them.

    Args:
        config: a whole config.
        workdir: a workdir with weights.
        datasets: the result of `read_for_evaluation`.

    Raises:
        Stopped: Ctrl-C or SIGTERM asked the program to stop; nothing is written.
    """
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    evaluator = Evaluator(
        CMAP.from_config(config),
        mesh,
        gallery_chunk=config.eval.gallery_chunk,
        overlap=config.eval.overlap,
    )
    with StopRequest() as stop:
        try:
            return evaluate_workdir(
                config=config,
                evaluator=evaluator,
                mesh=mesh,
                datasets=datasets,
                workdir=workdir,
                before_batch=stop.check,
            )
        except Stopped as stopped:
            raise Stopped(
                f"stopped in the evaluation; nothing was written to {workdir}", stopped.exit_status
            ) from None


def _read_as_trained(
    config: ConfigDict, description: workdir_lib.Description, workdir: str
) -> ConfigDict:
    """Return the config with pictures read as in the model's training, on any data set.

    Raises:
        ValueError: the config asks to read them otherwise.
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


def _check_features(config: ConfigDict, workdir: str) -> None:
    """Refuse features that another image encoder than a workdir's has made."""
    files = FeatureFiles(config.data.features)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    _, variables = read_variables(
        workdir,
        CMAP.from_config(config),
        config.data.crop,
        lambda shapes: sharding.by_size(shapes, mesh),
    )
    about = files.description
    encoder = FrozenEncoder.from_variables(config, variables)
    encoder.check_same(about.encoder, about.levels, files.directory)


def _check_prepared_alike(theirs: DataFacts, ours: DataFacts, workdir: str, directory: str) -> None:
    """Refuse data that were prepared in another version than the model's training data."""
    versions = [(facts.prepared or {}).get("version") for facts in (theirs, ours)]
    if None not in versions and versions[0] != versions[1]:
        raise ValueError(
            f"{workdir}: the model was trained on data prepared in version {versions[0]}, but "
            f"{directory} was prepared in version {versions[1]}; evaluate on the former, or on "
            "the raw data"
        )
