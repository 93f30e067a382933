"""Evaluation of the model in a workdir, with its results written there."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmap_jax import sharding
from cmap_jax.evaluation.evaluator import Evaluator, Result
from cmap_jax.evaluation.results import keep_shortcuts, results_to_dict
from cmap_jax.models.cmap import CMAP
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.fingerprint import digest
from cmap_jax.workdir.weights import read_variables


def evaluate_workdir(
    config: ConfigDict,
    evaluator: Evaluator,
    mesh: Mesh,
    datasets: Any,
    workdir: str | os.PathLike,
    before_batch: Callable[[], None] = lambda: None,
) -> Result:
    """Evaluate the best variables of a workdir on all splits, and write the results there.

    Args:
        config: a whole config, with the vocabulary's size.
        evaluator: an evaluator of the config's model.
        mesh: the devices over which large parameters are sharded.
        datasets: the result of `input_pipeline.create_datasets`.
        workdir: a workdir with weights, local or in a bucket.
        before_batch: called before every batch; the evaluation ends with what it raises, and
            nothing is written.
    """
    model = CMAP.from_config(config)
    # Sharded as the state is in training: the programs of the evaluations before serve here too.
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
                before_batch=before_batch,
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
