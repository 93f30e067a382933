"""Records of a run for TensorBoard and the workdir: numbers, parameters, pictures of results."""

import logging
import os
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from cmap_jax.config_fields import flatten
from cmap_jax.evaluation.pictures import queries_grid
from cmap_jax.evaluation.results import Result
from cmap_jax.files import write_text
from cmap_jax.workdir import description as workdir_lib

_logger = logging.getLogger(__name__)

EXAMPLES = 4  # queries in the picture of each evaluation
_COLUMNS = 6  # best images that the picture shows of each query


def write_parameters(params: Any, writer: Any, workdir: str | os.PathLike) -> None:
    """Write a table of the parameters into the workdir and for TensorBoard; process 0 alone does.

    Args:
        params: the model's parameters.
        writer: a CLU metric writer.
        workdir: folder of the run.
    """
    if jax.process_index() > 0:
        return
    # Statistics are left out: parameters that are sharded over processes cannot be fetched here.
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    _logger.info("Parameters\n%s", overview)
    write_text(workdir_lib.absolute(workdir) / workdir_lib.PARAMETERS, overview + "\n")
    # Markdown takes indented lines for code, and keeps the columns.
    writer.write_texts(0, {"parameters": "    " + overview.replace("\n", "\n    ")})


def write_examples(result: Result, data: Any, writer: Any, step: int) -> None:
    """Write pictures of the best images of a few queries for TensorBoard; process 0 alone does.

    Args:
        result: results with `EXAMPLES` examples.
        data: the evaluated split, whose ``read_image`` gives the images.
        writer: a CLU metric writer.
        step: training steps of the evaluated variables.
    """
    if jax.process_index() > 0:
        return
    for name, results in result.protocols.items():
        if results.examples:
            title = f"{name}, step {step:,}"
            sheet = queries_grid(results.examples, data.read_image, title, _COLUMNS)
            writer.write_images(step, {f"{name}/examples": np.asarray(sheet)[None]})


def tags(result: Result, prefix: str = "") -> dict[str, float]:
    """Return an evaluation's numbers by TensorBoard tag, such as ``fashioniq/original/mR``.

    Args:
        result: results of one or more protocols.
        prefix: first part of every tag, such as ``best/``.
    """
    parts = {}
    for protocol, results in result.protocols.items():
        parts[f"{prefix}{protocol}"] = results.numbers
        parts[f"{prefix}overlap/{protocol}"] = results.overlap
        for half, numbers in results.shortcuts.items():
            parts[f"{prefix}shortcuts/{half}/{protocol}"] = numbers or {}
    return {
        f"{part}/{name}": value
        for part, numbers in parts.items()
        for name, value in numbers.items()
    }


def flat(config: dict) -> dict[str, Any]:
    """Return a nested config as one level with dots, values that hparams can hold."""
    return {
        path: value if isinstance(value, bool | int | float) else str(value)
        for path, value in flatten(config).items()
    }
