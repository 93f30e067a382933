"""CIRR as a TFDS data set."""

from input_pipeline.builders.base import RecordsBuilder


class Cirr(RecordsBuilder):
    """CIRR: real-life images in sets of six that resemble one another."""

    DESCRIPTION = (
        "Composed image retrieval on real-life images: a reference image and a caption lead to a "
        "target image, and each query also ranks among the other images of its set. The answers "
        "of test1 are known to the data set's server alone."
    )
    HOMEPAGE = "https://github.com/Cuberick-Orion/CIRR"
    CITATION = """
@inproceedings{liu2021image,
  title = {Image Retrieval on Real-Life Images with Pre-Trained Vision-and-Language Models},
  author = {Liu, Zheyuan and Rodriguez-Opazo, Cristian and Teney, Damien and Gould, Stephen},
  booktitle = {ICCV},
  year = {2021}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
manual_dir holds `captions` and `image_splits`, there or in `cirr`, and the images of NLVR2 there,
in `images` or in `img_raw`. `cmap doctor cirr DIRECTORY` says what is missing.
"""
