"""CIRCO as a TFDS data set."""

from input_pipeline.builders.base import RecordsBuilder


class Circo(RecordsBuilder):
    """CIRCO: queries with several right images among all of COCO's unlabelled ones."""

    DESCRIPTION = (
        "Zero-shot composed image retrieval with several right images a query; for evaluation "
        "only. The answers of the test split are known to the data set's server alone."
    )
    HOMEPAGE = "https://github.com/miccunifi/CIRCO"
    CITATION = """
@inproceedings{baldrati2023zeroshot,
  title = {Zero-Shot Composed Image Retrieval with Textual Inversion},
  author = {Baldrati, Alberto and Agnolucci, Lorenzo and Bertini, Marco and Del Bimbo, Alberto},
  booktitle = {ICCV},
  year = {2023}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
manual_dir holds `annotations`, and `COCO2017_unlabeled` with the images and COCO's
`annotations/image_info_unlabeled2017.json`. `cmap doctor circo DIRECTORY` says what is missing.
"""
