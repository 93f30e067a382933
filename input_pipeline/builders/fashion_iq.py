"""FashionIQ as a TFDS data set."""

from input_pipeline.builders.base import RecordsBuilder


class FashionIq(RecordsBuilder):
    """FashionIQ: garments of three categories, two captions a triplet."""

    DESCRIPTION = (
        "Composed image retrieval of dresses, shirts and tops: a reference image and two captions "
        "lead to a target image. The answers of the test split are not public."
    )
    HOMEPAGE = "https://github.com/XiaoxiaoGuo/fashion-iq"
    CITATION = """
@inproceedings{wu2021fashioniq,
  title = {Fashion {IQ}: A New Dataset Towards Retrieving Images by Natural Language Feedback},
  author = {Wu, Hui and Gao, Yupeng and Guo, Xiaoxiao and Al-Halah, Ziad and Rennie, Steven and
            Grauman, Kristen and Feris, Rogerio},
  booktitle = {CVPR},
  year = {2021}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
manual_dir holds `captions` and `image_splits` of the project's repository, and the images (from
their product pages, or a copy of somebody's) in `images`, `<category>` or
`resized_image/<category>`. `cmap doctor fashion_iq DIRECTORY` says what is missing.
"""
