"""What TensorBoard and the workdir keep of a run: numbers, parameters, and a picture of results."""

import os
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview

from cmap_jax.config_fields import flatten
from cmap_jax.evaluation.pictures import queries_grid
from cmap_jax.evaluation.results import Result
from cmap_jax.files import write_text
from cmap_jax.workdir import description as workdir_lib

EXAMPLES = 4  # queries of the picture that each evaluation makes
_COLUMNS = 6  # images that it shows of each


def write_parameters(params: Any, writer: Any, workdir: str | os.PathLike) -> None:
    """Write the overview of the parameters into the workdir and for TensorBoard."""
    if jax.process_index() > 0:
        return
    # Without statistics: parameters that are split over processes cannot be fetched here.
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    logging.info("Parameters\n%s", overview)
    write_text(workdir_lib.absolute(workdir) / workdir_lib.PARAMETERS, overview + "\n")
    # Indented: code, in Markdown.
    writer.write_texts(0, {"parameters": "    " + overview.replace("\n", "\n    ")})


def write_examples(result: Result, data: Any, writer: Any, step: int) -> None:
    """Show TensorBoard what a few queries find."""
    if jax.process_index() > 0:
        return
    for name, results in result.protocols.items():
        if results.examples:
            title = f"{name}, step {step:,}"
            sheet = queries_grid(results.examples, data.read_image, title, _COLUMNS)
            writer.write_images(step, {f"{name}/examples": np.asarray(sheet)[None]})


def tags(result: Result, prefix: str = "") -> dict[str, float]:
    """Return TensorBoard tags, each with its protocol's name."""
    return {
        f"{prefix}{protocol}/{name}": value
        for protocol, results in result.protocols.items()
        for name, value in results.numbers.items()
    } | {
        f"{prefix}shortcuts/{half}/{protocol}/{name}": value
        for protocol, results in result.protocols.items()
        for half, numbers in results.shortcuts.items()
        if numbers is not None
        for name, value in numbers.items()
    }


def flat(config: dict) -> dict[str, Any]:
    """Return a nested config as one level with dots, values that hparams can hold."""
    return {
        path: value if isinstance(value, bool | int | float) else str(value)
        for path, value in flatten(config).items()
    }
