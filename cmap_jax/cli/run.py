"""The train and evaluate modes of main.py: data in, a table out."""

from collections.abc import Mapping

import jax
import tensorflow as tf
from ml_collections import ConfigDict

import input_pipeline
from cmap_jax import sharding
from cmap_jax import workdir as workdir_lib
from cmap_jax.cli import tables
from cmap_jax.cli.flags import end_with
from cmap_jax.evaluation.evaluator import Evaluator, Interrupted, Result
from cmap_jax.models.cmap import CMAP
from cmap_jax.training import train as train_lib
from cmap_jax.training.check import check_config
from cmap_jax.training.initial_weights import read_initial_weights
from cmap_jax.training.stopping import StopRequest


def run(config: ConfigDict, workdir: str, *, evaluate_only: bool) -> None:
    """Train (or continue) in a workdir, or evaluate what stands there; print the recalls."""
    tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    try:
        (evaluate if evaluate_only else _train)(config, workdir)
    except train_lib.Stopped as stopped:
        end_with(str(stopped), status=0)
    if jax.process_index() > 0:
        return
    print(tables.results(workdir_lib.read_results(workdir, config.data.name)))
    print(f"\nEverything is in {workdir}; its curves: tensorboard --logdir={workdir}")
    if config.eval.rankings:
        print(f"Each query's first images are in {workdir}/{workdir_lib.RANKINGS}")
    else:
        print(
            "Next, each query's first 50 images: python main.py --mode=evaluate "
            f"--workdir={workdir} --config.eval.rankings=true"
        )


def _train(config: ConfigDict, workdir: str) -> None:
    # Before any data are rendered or read.
    workdir_lib.check_same_run(workdir, config)
    check_config(config)
    if workdir_lib.has_checkpoint(workdir):
        # What the run started from is no longer needed, and may be gone.
        initial = None
        vocabulary = workdir_lib.read_description(workdir).vocabulary if config.init_from else None
    else:
        initial = read_initial_weights(config)
        vocabulary = initial.vocabulary
    datasets = input_pipeline.create_datasets(
        config, vocabulary, process_index=jax.process_index(), process_count=jax.process_count()
    )
    train_lib.train(config, datasets, workdir, initial)


def evaluate(config: ConfigDict, workdir: str) -> tuple[Result, input_pipeline.Datasets]:
    """Evaluate what stands in a workdir, write the results there, and return them.

    Raises:
        FileNotFoundError: no workdir, or the data are not there.
        ValueError: the config changes what the weights were made with; names the fields.
        KeyboardInterrupt: by Ctrl-C or SIGTERM, with nothing written.
    """
    check_config(config)
    description = workdir_lib.read_description(workdir)
    config = _read_as_trained(config, description, workdir)
    # What the weights were made with; all else may differ.
    old, new = (
        {"model": c.model.to_dict(), "data": {k: c.data[k] for k in ("resize", "crop")}}
        for c in (description.config, config)
    )
    changed = list(workdir_lib.differing_fields(old, new))
    if changed:
        raise ValueError(f"a trained model cannot be changed: {'; '.join(changed)}")
    datasets = input_pipeline.create_datasets(
        config,
        description.vocabulary,
        training=False,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    _check_prepared_alike(description.facts, datasets.facts, workdir, config.data.directory)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    evaluator = Evaluator(CMAP.from_config(config), mesh, gallery_chunk=config.eval.gallery_chunk)
    try:
        with StopRequest() as stop:
            result = train_lib.evaluate_workdir(config, evaluator, mesh, datasets, workdir, stop)
    except Interrupted:
        raise KeyboardInterrupt from None
    return result, datasets


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
