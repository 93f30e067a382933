"""A folder of one's own images as a TFDS data set."""

from input_pipeline.builders.base import RecordsBuilder


class Folder(RecordsBuilder):
    """Images of one's own, with tables of reference, text and target."""

    DESCRIPTION = (
        "Composed image retrieval on images of one's own: tables name a reference image, a text "
        "and a target image."
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
manual_dir holds `train.csv` and `val.csv` (`reference,text,target`) or `.jsonl`, perhaps `test` and
`gallery.txt`, and the images that they name. `cmap doctor folder DIRECTORY` says what is wrong.
"""
