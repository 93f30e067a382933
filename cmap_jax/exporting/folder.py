"""The folder of an exported model: a workdir without a run, and what a hub shows of it.

F/README.md            the model card
  model.safetensors    the variables, with the record that describes them
  config.json, model.json, parameters.txt, the tokenizer's files, evaluation*.json
                       as in a workdir; see `cmap_jax.workdir.description`
  stablehlo/           the programs; see `cmap_jax.exporting.programs`

`cmap_jax.load` takes it for a workdir. Paths of the machine that trained the model are left out:
the folder is meant for others.
"""

import dataclasses
import functools
import operator
import os
from collections.abc import Mapping

from etils import epath
from jax.export import Exported
from ml_collections import ConfigDict

from cmap_jax.config_fields import FIELDS, Kind
from cmap_jax.evaluation.results_file import StoredResults, read_results
from cmap_jax.files import complete_folder, read_bytes, write_bytes, write_json, write_text
from cmap_jax.processing.hub import is_hub_id
from cmap_jax.trained import Trained
from cmap_jax.workdir import about as about_lib
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir import tensors
from cmap_jax.workdir.description import Description
from cmap_jax.workdir.fingerprint import digest, fingerprint
from cmap_jax.workdir.same_run import mark_of_run

CARD, PROGRAMS, SUFFIX = "README.md", "stablehlo", ".jax_export"


def results_of(trained: Trained) -> tuple[dict[str, StoredResults], list[str]]:
    """Return the results of a model's variables by file name, and names of files with others.

    Args:
        trained: a model that was loaded from a workdir.

    Raises:
        ValueError: a file of results cannot be read; names it.
    """
    paths = sorted(epath.Path(trained.workdir).glob("evaluation*.json"))
    stored = {path.name: read_results(path) for path in paths}
    variables = digest(trained.variables) if stored else ""
    current = {name: s for name, s in stored.items() if _is_of(s, trained.step, variables)}
    return current, [name for name in stored if name not in current]


def _is_of(stored: StoredResults, step: int, variables: str) -> bool:
    """Tell whether results are those of some variables; old files know the step alone."""
    return stored.step == step and stored.facts.variables in (None, variables)


def write_export(
    out: str | os.PathLike,
    trained: Trained,
    card: str,
    results: Mapping[str, StoredResults],
    programs: Mapping[str, Exported],
) -> None:
    """Write the folder; it appears when it is complete.

    Args:
        out: a folder that does not exist, or is empty; local or in a bucket.
        trained: a model that was loaded from a workdir.
        card: the text of README.md.
        results: the results by file name.
        programs: the result of `programs.export_programs`; empty to leave them out.

    Raises:
        OSError: the folder is there already and not empty, or cannot be written.
        ValueError, FileNotFoundError: the workdir was changed or removed meanwhile.
    """
    workdir = epath.Path(trained.workdir)
    description = without_paths(workdir_lib.read_description(workdir))
    about = about_lib.make(
        mark_of_run(description.config),
        trained.step,
        fingerprint(trained.variables),
        about_lib.describe(description),
    )
    with complete_folder(workdir_lib.absolute(out)) as scratch:
        tensors.write(scratch / workdir_lib.TENSORS, trained.variables, about)
        for name, program in programs.items():
            write_bytes(scratch / PROGRAMS / f"{name}{SUFFIX}", program.serialize())
        for name, stored in results.items():
            write_json(scratch / name, _without_folders(stored).to_dict())
        if (workdir / workdir_lib.PARAMETERS).exists():
            _copy(workdir_lib.PARAMETERS, workdir, scratch)
        write_text(scratch / CARD, card)
        workdir_lib.write_description(scratch, description)
        # It names the versions and the commit of the training, and not of the export.
        _copy(workdir_lib.MODEL, workdir, scratch)


def _copy(name: str, source: epath.Path, target: epath.Path) -> None:
    write_bytes(target / name, read_bytes(source / name))


def without_paths(description: Description) -> Description:
    """Return a description whose config names no path of a machine.

    Folders that depend on the machine become None. Of the weights that a run started from, which
    say where the model comes from, the last part of the path is kept.
    """
    config = description.config.copy_and_resolve_references()
    for path, field in FIELDS.items():
        if field.is_path:
            *parents, name = path.split(".")
            _shorten(functools.reduce(operator.getitem, parents, config), name, field.kind)
    return dataclasses.replace(description, config=config)


def _shorten(config: ConfigDict, name: str, kind: Kind) -> None:
    """Set a part's field to None, or to the last part of the path that it holds, in place.

    An id of a hub, such as "openai/clip-vit-base-patch32", names no machine and stays.
    """
    value = config.get(name)
    if value:
        with config.ignore_type():
            if kind == Kind.ENVIRONMENT:
                config[name] = None
            elif not is_hub_id(value) or epath.Path(value).exists():
                config[name] = os.path.basename(os.path.normpath(value))


def _without_folders(stored: StoredResults) -> StoredResults:
    """Return results that do not name the folders of the data set."""
    data = dataclasses.replace(stored.facts.data, directory=None, image_directory=None)
    return dataclasses.replace(stored, facts=dataclasses.replace(stored.facts, data=data))
