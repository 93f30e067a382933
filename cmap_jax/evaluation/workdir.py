"""Evaluation of the model in a workdir; the results are written there."""

import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmap_jax import sharding
from cmap_jax.evaluation.evaluator import Evaluator
from cmap_jax.evaluation.results import EvaluationFacts, ImageOrigin, Result
from cmap_jax.evaluation.results_file import write_results
from cmap_jax.models.cmap import CMAP
from cmap_jax.workdir.description import ZERO_SHOT, read_description
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
    """Evaluate the best variables of a workdir on all splits, and write the results.

    Args:
        config: a whole config, whose ``eval`` part says what is measured.
        evaluator: an evaluator of the config's model; its compiled programs are used again.
        mesh: the evaluator's devices.
        datasets: the result of `input_pipeline.create_datasets`.
        workdir: the folder to read the variables from; process 0 writes the results into it.
        before_batch: called before every batch; the evaluation ends with what it raises, and
            nothing is written.
    """
    model = CMAP.from_config(config)
    # Sharded as the state is in training: the evaluations' compiled programs serve here too.
    step, variables = read_variables(
        workdir, model, config.data.crop, lambda shapes: sharding.by_size(shapes, mesh)
    )
    results = {}
    for data in datasets.evaluations.values():
        result = evaluator(
            variables,
            data,
            rankings=config.eval.rankings,
            shortcuts=config.eval.shortcuts,
            before_batch=before_batch,
        )
        results |= result.protocols
    merged = Result(results)
    facts = EvaluationFacts(
        data_set=datasets.facts,
        unread_texts=datasets.unread_texts,
        data=ImageOrigin(
            name=config.data.name,
            directory=config.data.directory,
            image_directory=config.data.image_directory,
            resize=config.data.resize,
            crop=config.data.crop,
            read_as=datasets.preprocessing.read_as,
        ),
        variables=digest(variables),
        zero_shot=bool(read_description(workdir).facts.get(ZERO_SHOT)),
    )
    if jax.process_index() == 0:
        write_results(workdir, step, merged, facts)
    return merged
