"""The data sets by name: which reader reads which."""

from typing import Any

from input_pipeline import circo, cirr, fashion200k, fashion_iq, folder, shoes
from input_pipeline.garments import reader as garments_reader
from input_pipeline.records import Records

READERS = {
    "fashion_iq": fashion_iq,
    "shoes": shoes,
    "fashion200k": fashion200k,
    "cirr": cirr,
    "circo": circo,
    "folder": folder,
}


def read_records(config: Any) -> Records:
    """Read the annotations of ``config.data.name``; garments are rendered first where needed.

    Raises:
        ValueError: no such data set, or no folder; names the field.
        FileNotFoundError: a folder or an annotation file is missing.
        DataError: broken annotations.
    """
    data = config.data
    known = (*READERS, "garments")
    if data.name not in known:
        raise ValueError(f"config.data.name must be one of {', '.join(known)}; got {data.name!r}")
    if not data.directory:
        raise ValueError(
            "config.data.directory is not set: give the folder that holds the annotations, "
            "--config.data.directory=..."
        )
    if data.name == "garments":
        if data.image_directory:
            raise ValueError("config.data.image_directory: garments keep their images with them")
        return garments_reader.read(data.directory, **data.garments)
    return READERS[data.name].read(data.directory, data.image_directory)
