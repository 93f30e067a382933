"""From a folder, raw or prepared, to the records of its data set."""

import logging
from collections.abc import Mapping
from typing import Any

from input_pipeline import prepared, storage
from input_pipeline.images import near_names as near_names_lib
from input_pipeline.images.check import in_parallel
from input_pipeline.readers.data_set import DataSet
from input_pipeline.records import DataError, Records
from input_pipeline.registry import check_name, find_data_set

_logger = logging.getLogger(__name__)


def read_folder(
    name: str, directory: str, image_directory: str | None = None, near_names: str = "fail"
) -> Records:
    """Read the data set in a folder, raw or prepared; nothing is rendered.

    Args:
        name: an entry of `registry.DATA_SETS`.
        directory: the folder of the annotations.
        image_directory: the folder of the images; None: inside ``directory``.
        near_names: "accept": take files with near names for missing images, see `near_names`.

    Raises:
        ValueError: no such data set; or a folder of images for data that keep theirs with them.
        FileNotFoundError: a folder or an annotation file is missing.
        DataError: broken annotations.
    """
    data_set = find_data_set(name)
    if prepared.is_prepared(directory):
        if image_directory:
            raise ValueError("prepared data keep their images with them: give no folder of images")
        return prepared.read(directory, name)
    _check_image_directory(data_set, image_directory)
    try:
        records = data_set.read(directory, image_directory)
    except FileNotFoundError:
        _refuse_folder_above(directory)
        raise
    if near_names == "accept" and data_set.rendering is None:
        return _accept_near_names(records)
    return records


def read_records(config: Any) -> Records:
    """Read the annotations of ``config.data.name``; rendered data are first drawn where needed.

    Raises:
        ValueError: no such data set, or no folder; names the field.
        FileNotFoundError: a folder or an annotation file is missing.
        DataError: broken annotations.
    """
    data = config.data
    check_name(data.name)
    if not data.directory:
        raise ValueError(
            "config.data.directory is not set: give the folder that holds the annotations, "
            "--config.data.directory=..."
        )
    data_set = find_data_set(data.name)
    if data_set.rendering is not None and not prepared.is_prepared(data.directory):
        _check_image_directory(data_set, data.image_directory)
        return read_rendered(data_set, data.directory, data[data.name])
    return read_folder(data.name, data.directory, data.image_directory, data.near_names)


def read_rendered(data_set: DataSet, directory: str, settings: Mapping[str, Any]) -> Records:
    """Read a data set that this library draws, and draw it first where it is not there.

    Args:
        data_set: an entry that has a `Rendering`.
        directory: the folder to read, or to render into.
        settings: arguments of `Rendering.render`.

    Raises:
        ValueError: the folder holds something else, or the data set with other settings.
    """
    try:
        data_set.rendering.render(directory, **settings)
    except ValueError:
        _refuse_folder_above(directory)
        raise
    return data_set.read(directory, None)


def choose_captions(records: Records, captions: str | None) -> Records:
    """Return the records with the texts of their queries under a caption policy.

    Args:
        records: as read.
        captions: "one" or "concept", for a data set whose queries name shared concepts; None: as
            the data set has them. See `cmap_jax.protocols.Protocol`.

    Raises:
        ValueError: the data set has no such choice.
        DataError: a concept is missing; names the query and the remedy.
    """
    if captions is None:
        return records
    if not find_data_set(records.name).has_concepts:
        raise ValueError(
            f"the queries of {records.name} name no shared concepts, and their texts leave no "
            f"choice: leave out --config.eval.captions={captions}"
        )
    if captions == "one":
        return records
    try:
        return records.with_concepts()
    except DataError as error:
        remedy = "mend the annotations" if records.prepared is None else "build the data again"
        raise DataError(
            f"{records.image_directory}: {error}: {remedy}, or use the captions alone, "
            "--config.eval.captions=one"
        ) from error


def _check_image_directory(data_set: DataSet, image_directory: str | None) -> None:
    if data_set.rendering is not None and image_directory:
        raise ValueError(
            f"{data_set.name} keep their images with them: no other folder can be given, "
            "so leave out --config.data.image_directory"
        )


def _accept_near_names(records: Records) -> Records:
    """Return the records with near names taken for missing images, and log how many."""
    paths = [image.path for image in records.images.values()]
    there = in_parallel(storage.exists, paths, "looking", "images")
    missing = [i for i, exists in zip(records.images, there, strict=True) if not exists]
    records = near_names_lib.accept(records, missing)
    if accepted := records.near_names:
        _logger.warning(
            "%d of %d images are taken from files with near names, such as %s for %s",
            len(accepted),
            len(records.images),
            records.images[accepted[0]].path,
            accepted[0],
        )
    return records


def _refuse_folder_above(directory: str) -> None:
    """Refuse a folder that `tfds build` wrote into, where a folder far below it is meant."""
    if below := prepared.find_below(directory):
        raise DataError(
            f"{directory} holds prepared data sets; name one of them: {', '.join(below)}"
        ) from None
