"""Small configs and inputs that many tests share."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import COMPOSERS
from cmap_jax.models.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from cmap_jax.models.encoders.entry import LEVELS, ImageEntry, Pictures, Setting, TextEntry
from cmap_jax.models.layers import BatchNorm
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.sharding import make_mesh
from cmap_jax.trained import Trained, write_model
from cmap_jax.workdir import description as workdir
from configs import default

VOCABULARY, EMBED, WORD, HIDDEN = 11, 8, 6, 7
_TOWER = {"width": EMBED, "layers": 3, "heads": 2, "mlp_width": 12}
# Methods that compose features of the encoders, and all others, which have heads of the model.
ON_FEATURES = tuple(name for name, variant in COMPOSERS.items() if variant.on_features)
WITH_HEADS = tuple(name for name in COMPOSERS if name not in ON_FEATURES)


class Cells(nn.Module):
    """An image encoder of three levels that compiles in half the time of the smallest ResNet.

    A level is a linear map of the mean colours of cells of 8, 16 or 32 pixels, with batch-norm.
    """

    width: int
    normalize_by_batch: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        batch, height, width, colors = images.shape
        maps = {}
        for level, cell in zip(LEVELS, (32, 16, 8), strict=True):
            cells = (batch, height // cell, cell, width // cell, cell, colors)
            means = images.reshape(cells).mean((2, 4))
            y = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=level)(means)
            norm = BatchNorm(dtype=self.dtype, name=f"{level}_norm")
            y = norm(y, use_batch_statistics=train and self.normalize_by_batch)
            maps[level] = nn.relu(y)
        return maps


class Vectors(nn.Module):
    """An image encoder that projects to a vector itself, as vision-language towers do."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        batch, height, width, colors = images.shape
        means = images.reshape(batch, 4, height // 4, 4, width // 4, colors).mean((2, 4))
        y = nn.Dense(self.width, dtype=self.dtype, name="projection")(means.reshape(batch, -1))
        return {"high": y}


class Bag(nn.Module):
    """A text encoder: the sum of the tokens' embeddings."""

    vocabulary_size: int
    embed_dim: int

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array, *, train: bool) -> jax.Array:
        embedded = nn.Embed(self.vocabulary_size, self.embed_dim, name="words")(tokens)
        valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
        return (embedded * valid[..., None]).sum(1)


IMAGE_ENCODERS["vectors"] = ImageEntry(
    build=lambda settings, frozen, remat, dtype: Vectors(settings["width"], dtype),
    settings={"width": Setting(least=1)},
    levels=LEVELS[:1],
    pictures=Pictures(multiple=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
    feature_width=lambda settings: settings["width"],
)
TEXT_ENCODERS["bag"] = TextEntry(
    build=lambda settings, vocabulary_size, embed_dim, remat, dtype: Bag(
        vocabulary_size, embed_dim
    ),
    settings={},
    empty_text=lambda settings, vocabulary_size: (1, 3),  # <start> <end>
)
IMAGE_ENCODERS["cells"] = ImageEntry(
    build=lambda settings, frozen, remat, dtype: Cells(settings["width"], not frozen, dtype),
    settings={"width": Setting(least=1)},
    levels=LEVELS,
    pictures=Pictures(multiple=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
)


def small_config(variant: str = "cmap", **model) -> ConfigDict:
    """A config whose model is tiny; keyword arguments set fields of ``config.model``.

    ``image_name="cells"``, for tests of something else than the network, saves compilation;
    ``image_name="vectors"`` is for methods that compose the encoders' own features.
    ``image_name="clip"`` or ``"siglip"`` brings the text tower and the sub-words of its family.
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
    if model.get("image_name") == "cells":
        with config.unlocked():
            config.model.image.cells = {"width": 6}
    if model.get("image_name") == "vectors":
        with config.unlocked():
            config.model.image.vectors = {"width": EMBED}
            config.model.text.bag = {}
        config.model.text.name = "bag"
    if model.get("image_name") in ("clip", "siglip"):
        _use_towers(config, model["image_name"])
    if variant == "magiclens":
        config.model.magiclens.update(layers=2, heads=2)
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


def _use_towers(config: ConfigDict, family: str) -> None:
    """Set a config to tiny towers, with maps after two blocks, which are in loops of 1 and 2."""
    config.model.text.name = config.model.text.tokenizer = family
    config.model.image[family].update(
        _TOWER, patch=16, image_size=config.data.crop, map_blocks=(3, 1)
    )
    config.model.image.clip.projection = EMBED
    config.model.text[family].update(_TOWER, positions=77, projection=EMBED)


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


def small_trained(variant: str = "cmap", **model) -> Trained:
    """A model with random weights in memory; arguments as `small_config` takes them.

    Its vocabulary is "is red longer has a no".
    """
    vocabulary = Vocabulary.build(["is red longer has a no"])
    config = small_config(variant, **model, text_vocabulary_size=len(vocabulary))
    preprocessing = ImagePreprocessing(resize=config.data.resize, crop=config.data.crop)
    description = workdir.Description(config, vocabulary, preprocessing, (), {})
    return Trained(description, *init(config), step=0)


def write_workdir(
    folder: pathlib.Path, data_name: str, protocol: str, image_name: str = "cells", **fields
) -> pathlib.Path:
    """Write a workdir with random weights; keyword arguments set fields of ``config.eval``."""
    vocabulary = Vocabulary.build(["is red longer has a no"])
    config = small_config(image_name=image_name, text_vocabulary_size=len(vocabulary))
    config.data.name = data_name
    config.eval.update(fields)
    preprocessing = ImagePreprocessing(resize=config.data.resize, crop=config.data.crop)
    write_model(
        folder,
        workdir.Description(config, vocabulary, preprocessing, (PROTOCOLS[protocol],), {}),
        *init(config),
    )
    return folder
