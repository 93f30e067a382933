"""Foreign weights as our variables: image and text encoders, the authors' files, word vectors.

    model_config, variables, vocabulary = load_reference_checkpoint("model_best.pth")
    model = CMAP.from_config(model_config)
    pyramid = model.apply(variables, images, method="encode_images")

PyTorch is needed for the authors' files alone, and only to read them: ``pip install
'cmap_jax[torch]'``.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.convert import (
        bytes_pickle,
        efficientnet_lite0,
        hugging_face,
        hugging_face_config,
        magiclens,
        picture_processor,
        reference,
        release_vocabulary,
        state_dict,
        torch_file,
        torchvision,
        word_vectors,
    )
    from cmap_jax.convert.efficientnet_lite0 import load_efficientnet_lite0
    from cmap_jax.convert.hugging_face import fill_pretrained, load_hugging_face
    from cmap_jax.convert.magiclens import load_magiclens
    from cmap_jax.convert.reference import load_reference_checkpoint
    from cmap_jax.convert.release_vocabulary import load_release_vocabulary
    from cmap_jax.convert.torchvision import load_resnet
    from cmap_jax.convert.word_vectors import load_word_vectors

__all__ = [
    "bytes_pickle",
    "efficientnet_lite0",
    "fill_pretrained",
    "hugging_face",
    "hugging_face_config",
    "load_efficientnet_lite0",
    "load_hugging_face",
    "load_magiclens",
    "load_reference_checkpoint",
    "load_release_vocabulary",
    "load_resnet",
    "load_word_vectors",
    "magiclens",
    "picture_processor",
    "reference",
    "release_vocabulary",
    "state_dict",
    "torch_file",
    "torchvision",
    "word_vectors",
]
