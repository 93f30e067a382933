"""The data sets by name: which reader reads which."""

import inspect
import logging
from typing import Any

from input_pipeline import prepared, storage
from input_pipeline.garments import STAMP, prepare
from input_pipeline.garments import reader as garments_reader
from input_pipeline.images import near_names as near_names_lib
from input_pipeline.images.check import in_parallel
from input_pipeline.readers import circo, cirr, fashion200k, fashion_iq, folder, shoes
from input_pipeline.readers.annotations import check_keys
from input_pipeline.records import DataError, Records

_logger = logging.getLogger(__name__)

READERS = {
    "fashion_iq": fashion_iq,
    "shoes": shoes,
    "fashion200k": fashion200k,
    "cirr": cirr,
    "circo": circo,
    "folder": folder,
}
NAMES = (*READERS, "garments")
_SPELLINGS = {"fashioniq": "fashion_iq"}  # the config file's name -> the data set's


def data_set_name(name: str) -> str:
    """Return a data set's name, which may be given as its config file is called.

    Raises:
        ValueError: no such data set; names those that there are.
    """
    name = _SPELLINGS.get(name, name)
    if name not in NAMES:
        raise ValueError(f"no data set {name!r}; there are {', '.join(NAMES)}")
    return name


def training_files(name: str) -> str:
    """Return what a data set's training annotations are called, or nothing where it has none."""
    return "" if name == "garments" else READERS[name].TRAINING_FILES


def read_folder(
    name: str, directory: str, image_directory: str | None = None, near_names: str = "fail"
) -> Records:
    """Read the data set in a folder, raw or prepared, whatever its settings.

    Garments are not rendered.

    Args:
        name: the data set's.
        directory: the folder of the annotations.
        image_directory: the folder of the images; None: inside ``directory``.
        near_names: "accept": take files with near names for missing images, see `near_names`.

    Raises:
        ValueError: a folder of images for data that keep theirs with them.
        FileNotFoundError: a folder or an annotation file is missing.
        DataError: broken annotations.
    """
    if prepared.is_prepared(directory):
        if image_directory:
            raise ValueError("prepared data keep their images with them: give no folder of images")
        return prepared.read(directory, name)
    if name == "garments" and image_directory:
        raise ValueError("garments keep their images with them: no other folder can be given")
    try:
        if name != "garments":
            records = READERS[name].read(directory, image_directory)
            return _with_near_names(records) if near_names == "accept" else records
        return garments_reader.read(directory, **garments_settings(directory))
    except FileNotFoundError:
        _refuse_folder_above(directory)
        raise


def _with_near_names(records: Records) -> Records:
    """Return the records with near names taken for missing images, and say so."""
    places = [image.path for image in records.images.values()]
    there = in_parallel(storage.exists, places, "looking", "images")
    missing = [i for i, exists in zip(records.images, there, strict=True) if not exists]
    records = near_names_lib.accept(records, missing)
    if found := records.near_names:
        _logger.warning(
            "%d of %d images are taken from files with near names, such as %s for %s",
            len(found),
            len(records.images),
            records.images[found[0]].path,
            found[0],
        )
    return records


def _refuse_folder_above(directory: str) -> None:
    """Refuse a folder that `tfds build` wrote into, where one far below it is meant."""
    if below := prepared.find_below(directory):
        raise DataError(
            f"{directory} holds prepared data sets; name one of them: {', '.join(below)}"
        ) from None


def garments_settings(directory: str) -> dict[str, int | float]:
    """Return the settings of `garments.prepare` that the garments in a folder were rendered with.

    Raises:
        FileNotFoundError: there are none.
        DataError: their description is broken.
    """
    file = storage.join(directory, STAMP)
    if not storage.exists(file):
        raise FileNotFoundError(
            f"{file}: no such file, so no garments are rendered there; python main.py "
            "--config=configs/garments.py renders them"
        )
    keys = {"seed": int, "image_size": int, "train_triplets": int}
    stamp = storage.read_json(file)
    check_keys(stamp, {"settings": dict, "oracles": dict}, file)
    check_keys(stamp["settings"], keys, f"{file}: settings")
    known = inspect.signature(prepare).parameters
    return {key: value for key, value in stamp["settings"].items() if key in known}


def check_name(name: str) -> None:
    """Refuse a ``config.data.name`` that is none."""
    if name not in NAMES:
        raise ValueError(f"config.data.name must be one of {', '.join(NAMES)}; got {name!r}")


def read_records(config: Any) -> Records:
    """Read the annotations of ``config.data.name``; garments are rendered first where needed.

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
    if data.name != "garments" or prepared.is_prepared(data.directory):
        return read_folder(data.name, data.directory, data.image_directory, data.near_names)
    if data.image_directory:
        raise ValueError("config.data.image_directory: garments keep their images with them")
    if not storage.exists(storage.join(data.directory, STAMP)):  # rendering would refuse it too
        _refuse_folder_above(data.directory)
    return garments_reader.read(data.directory, **data.garments)
