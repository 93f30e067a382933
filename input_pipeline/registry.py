"""The table of data sets: one line an entry, and one file in `input_pipeline.readers` behind it."""

from input_pipeline.readers import circo, cirr, fashion200k, fashion_iq, folder, garments, shoes
from input_pipeline.readers.data_set import DataSet

DATA_SETS: dict[str, DataSet] = {
    data_set.name: data_set
    for data_set in (
        fashion_iq.DATA_SET,
        shoes.DATA_SET,
        fashion200k.DATA_SET,
        cirr.DATA_SET,
        circo.DATA_SET,
        folder.DATA_SET,
        garments.DATA_SET,
    )
}


def find_data_set(name: str) -> DataSet:
    """Return the data set with a name or an alias, such as the name of its config file.

    Raises:
        ValueError: there is no such data set; the message lists those that there are.
    """
    for data_set in DATA_SETS.values():
        if name in (data_set.name, *data_set.aliases):
            return data_set
    raise ValueError(f"no data set {name!r}; there are {', '.join(DATA_SETS)}")


def check_name(name: str) -> None:
    """Refuse a ``config.data.name`` that is not in the table.

    Raises:
        ValueError: the message lists the names that are.
    """
    if name not in DATA_SETS:
        raise ValueError(f"config.data.name must be one of {', '.join(DATA_SETS)}; got {name!r}")
