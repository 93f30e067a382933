"""Shoes as a TFDS data set."""

from input_pipeline.builders.base import RecordsBuilder


class Shoes(RecordsBuilder):
    """Shoes: women's shoes, one caption a triplet."""

    DESCRIPTION = (
        "Composed image retrieval of women's shoes: a reference image and a relative caption lead "
        "to a target image."
    )
    HOMEPAGE = "https://github.com/XiaoxiaoGuo/fashion-retrieval"
    CITATION = """
@inproceedings{guo2018dialog,
  title = {Dialog-based Interactive Image Retrieval},
  author = {Guo, Xiaoxiao and Wu, Hui and Cheng, Yu and Rennie, Steven and Tesauro, Gerald and
            Feris, Rogerio},
  booktitle = {NeurIPS},
  year = {2018}
}
@inproceedings{berg2010automatic,
  title = {Automatic Attribute Discovery and Characterization from Noisy Web Data},
  author = {Berg, Tamara L. and Berg, Alexander C. and Shih, Jonathan},
  booktitle = {ECCV},
  year = {2010}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
manual_dir holds `relative_captions_shoes.json`, `train_im_names.txt` and `eval_im_names.txt`, or
`triplet.*.json` and `split.*.json`; and the images of the Attribute Discovery data set,
`womens_*/...`. `cmap doctor shoes DIRECTORY` says what is missing.
"""
