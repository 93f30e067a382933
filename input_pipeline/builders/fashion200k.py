"""Fashion200k as a TFDS data set."""

from input_pipeline.builders.base import RecordsBuilder


class Fashion200k(RecordsBuilder):
    """Fashion200k: garments with product captions; training pairs are drawn online."""

    DESCRIPTION = (
        "Garments of five categories with captions. A query replaces one word of an image's "
        "caption, and every image with that caption is right. An example of the train split is an "
        "image with its caption: training draws its target and text anew each epoch."
    )
    HOMEPAGE = "https://github.com/xthan/fashion-200k"
    CITATION = """
@inproceedings{han2017automatic,
  title = {Automatic Spatially-aware Fashion Concept Discovery},
  author = {Han, Xintong and Wu, Zuxuan and Huang, Phoenix X. and Zhang, Xiao and Zhu, Menglong and
            Li, Yuan and Zhao, Yang and Davis, Larry S.},
  booktitle = {ICCV},
  year = {2017}
}
@inproceedings{vo2019composing,
  title = {Composing Text and Image for Image Retrieval - An Empirical Odyssey},
  author = {Vo, Nam and Jiang, Lu and Sun, Chen and Murphy, Kevin and Li, Li-Jia and Fei-Fei, Li and
            Hays, James},
  booktitle = {CVPR},
  year = {2019}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
manual_dir holds `labels`, the images in `women`, and `test_queries.txt` of the TIRG paper.
`cmap doctor fashion200k DIRECTORY` says what is missing.
"""
