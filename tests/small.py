"""Small configs and inputs that many tests share."""

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from cmap_jax.models.cmap import CMAP
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.sharding import make_mesh
from cmap_jax.trained import write_model
from cmap_jax.workdir import description as workdir
from configs import default

VOCABULARY, EMBED, WORD, HIDDEN = 11, 8, 6, 7


def small_config(variant: str = "cmap", **model) -> ConfigDict:
    """A config whose model is tiny; keyword arguments set fields of ``config.model``.

    ``image_depth=50`` sets ``config.model.image.resnet.depth``, and ``text_hidden=3`` sets
    ``config.model.text.lstm.hidden``: a field that the part itself lacks is set in its sub-configs.
    """
    config = default.get_config()
    config.model.variant = variant
    config.model.embed_dim = EMBED
    config.model.image.resnet.depth = 18
    config.model.image.resnet.width = 4
    config.model.image.frozen = False
    config.model.text.frozen = False
    config.model.text.gru.word_dim = config.model.text.lstm.word_dim = WORD
    config.model.text.lstm.hidden = HIDDEN
    config.model.text.vocabulary_size = VOCABULARY
    config.model.text.lstm.dropout = 0.0
    config.data.resize = 72
    config.data.crop = 64
    config.train.batch_size = 8
    for name, value in model.items():
        part, _, field = name.partition("_")
        if part in ("image", "text"):
            values = list(config.model[part].values())
            sub_configs = [v for v in values if isinstance(v, ConfigDict) and field in v]
            for holder in [config.model[part]] if field in config.model[part] else sub_configs:
                holder[field] = value
            assert sub_configs or field in config.model[part], name
        else:
            config.model[name] = value
    return config


def random_batch(batch: int = 4, size: int = 64, seed: int = 0, dtype=np.float32) -> dict:
    """A batch of triplets with normalised images."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, batch).astype(np.int32)
    tokens = rng.integers(1, VOCABULARY, (batch, 6)).astype(np.int32)
    tokens[np.arange(6) >= lengths[:, None]] = 0
    return {
        "reference_image": rng.normal(size=(batch, size, size, 3)).astype(dtype),
        "target_image": rng.normal(size=(batch, size, size, 3)).astype(dtype),
        "text_tokens": tokens,
        "text_lengths": lengths,
        "mask": np.ones(batch, bool),
    }


def one_device() -> jax.sharding.Mesh:
    """The mesh of a single device, of the eight that tests have."""
    return make_mesh(jax.devices()[:1])


def init(config: ConfigDict, seed: int = 0) -> tuple[CMAP, dict]:
    """A model and its variables."""
    model = CMAP.from_config(config)
    inputs = CMAP.example_inputs(config.data.crop)
    return model, jax.jit(lambda: model.init(jax.random.key(seed), **inputs))()


def write_workdir(folder: pathlib.Path, data_name: str, protocol: str, **fields) -> pathlib.Path:
    """Write a workdir with random weights; keyword arguments set fields of ``config.eval``."""
    vocabulary = Vocabulary.build(["is red longer has a no"])
    config = small_config(text_vocabulary_size=len(vocabulary))
    config.data.name = data_name
    config.eval.update(fields)
    preprocessing = ImagePreprocessing(resize=config.data.resize, crop=config.data.crop)
    write_model(
        folder,
        workdir.Description(config, vocabulary, preprocessing, (PROTOCOLS[protocol],), {}),
        *init(config),
    )
    return folder
