"""The tables of encoders and tokenizers: what a new family needs, and what is refused."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import one_device, small_config

from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from cmap_jax.models.encoders.entry import ImageEntry, Pictures, Pretrained, Setting, TextEntry
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizers import TOKENIZERS, make_tokenizer
from cmap_jax.processing.tokenizing import Tokenizer, captions_of
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.trained import load, write_model
from cmap_jax.training.initial_weights import apply_initial_weights, read_initial_weights
from cmap_jax.training.optimizer import label_parameters, make_optimizer
from cmap_jax.training.train_state import create_train_state
from cmap_jax.training.train_step import make_train_step
from cmap_jax.workdir import renamed_fields
from cmap_jax.workdir.description import Description
from configs import default


class Grid(nn.Module):
    """An image encoder: a linear map of the mean colour of each cell of 2x2."""

    width: int

    @nn.compact
    def __call__(self, images, *, train):
        b, h, w, c = images.shape
        cells = images.reshape(b, 2, h // 2, 2, w // 2, c).mean((2, 4)).reshape(b, -1)
        return {"high": nn.Dense(self.width, name="colours")(cells)}


class Bag(nn.Module):
    """A text encoder: the sum of the letters' vectors."""

    size: int
    dim: int

    @nn.compact
    def __call__(self, tokens, lengths, *, train):
        table = self.param("letters", nn.initializers.normal(), (self.size, self.dim))
        valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
        return jnp.sum(table[tokens] * valid[..., None], axis=1)


class Letters(Tokenizer):
    """A tokenizer: an id for each letter, in batches of twelve positions."""

    width = 12

    @classmethod
    def from_data(cls, source, captions, extra_special):
        return cls()

    @classmethod
    def load(cls, folder):
        assert (pathlib.Path(folder) / "letters.txt").read_text() == "a-z"
        return cls()

    def save(self, folder):
        (pathlib.Path(folder) / "letters.txt").write_text("a-z")

    def __len__(self):
        return 27

    def __eq__(self, other):
        return isinstance(other, Letters)

    def __hash__(self):
        return 0

    def encode(self, text):
        letters = "".join(captions_of(text))[: self.width]
        return [ord(letter) - ord("a") + 1 for letter in letters if letter.isalpha()]


def load_colours(path, settings):
    """Pretrained weights of `Grid`, whatever the file holds."""
    width = settings["width"]
    return {
        "params": {
            "backbone": {"colours": {"bias": np.full(width, 7.0), "kernel": np.eye(12, width)}}
        }
    }


GRID = ImageEntry(
    build=lambda settings, frozen, remat, dtype: Grid(settings["width"]),
    settings={"width": Setting(least=1)},
    levels=("high",),
    pictures=Pictures(multiple=10, mean=(0.5,) * 3, std=(0.25,) * 3, fits=("crop",)),
    pretrained=Pretrained(
        load=f"{__name__}:load_colours",
        headline="NO COLOURS",
        advice=lambda settings: "Give some.",
        expected=lambda settings: True,
    ),
)
BAG = TextEntry(
    build=lambda settings, vocabulary_size, embed_dim, remat, dtype: Bag(
        vocabulary_size, embed_dim
    ),
    settings={},
    tokenizers=("letters",),
    frozen=("letters",),
)


@pytest.fixture
def config(monkeypatch):
    """A config of the two families, registered for the time of a test."""
    monkeypatch.setitem(IMAGE_ENCODERS, "grid", GRID)
    monkeypatch.setitem(TEXT_ENCODERS, "bag", BAG)
    monkeypatch.setitem(TOKENIZERS, "letters", Letters)
    config = small_config("artemis", embed_dim=5)
    config.data.resize, config.data.crop, config.data.fit = 24, 20, "crop"
    with config.unlocked():
        config.model.image.name, config.model.image.grid = "grid", {"width": 6}
        config.model.text.name, config.model.text.bag = "bag", {}
        config.model.text.tokenizer, config.model.text.vocabulary_size = "letters", 27
    return config


@pytest.mark.slow
def test_new_families_train_and_are_used(config, tmp_path):
    """One training step, then a workdir with the model, and embeddings from it."""
    model = CMAP.from_config(config)
    config.model.text.frozen = True
    schedule = optax.constant_schedule(0.1)
    tx = make_optimizer(config, schedule)
    state = create_train_state(model, tx, 0, config.data.crop)
    labels = label_parameters(state.params, config)
    assert labels["text_encoder"] == {"letters": "frozen"}
    assert set(jax.tree.leaves(labels["image_encoder"])) == {"trained"}

    tokenizer = make_tokenizer(config.model.text, ["is red", "is blue"])
    tokens, lengths = tokenizer.encode_batch(["is red", "is blue"])
    assert tokens.shape == (2, 12)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3)).astype(np.uint8)
    batch = {
        "reference_image": pixels[:2],
        "target_image": pixels[2:],
        "text_tokens": tokens,
        "text_lengths": lengths,
        "mask": np.ones(2, bool),
    }
    after, _ = jax.jit(make_train_step(model, tx, schedule, config, one_device()))(state, batch)
    before_image, after_image = (s.params["image_encoder"] for s in (state, after))
    assert not np.array_equal(before_image["head_high"]["bias"], after_image["head_high"]["bias"])
    np.testing.assert_array_equal(
        state.params["text_encoder"]["letters"], after.params["text_encoder"]["letters"]
    )

    # uint8 is normalised as the entry says.
    variables = after.variables
    pyramid = model.apply(variables, pixels, method="encode_images")
    normalized = (pixels.astype(np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(
        pyramid, model.apply(variables, normalized, method="encode_images"), atol=1e-5
    )
    with pytest.raises(ValueError, match="multiples of 10, not"):
        model.apply(variables, pixels[:, :12], method="encode_images")

    preprocessing = ImagePreprocessing(resize=24, crop=20, fit="crop")
    description = Description(config, tokenizer, preprocessing, (PROTOCOLS["cirr/val"],), {})
    write_model(tmp_path / "run", description, model, jax.tree.map(np.asarray, variables))
    trained = load(tmp_path / "run")
    assert trained.tokenizer == tokenizer
    assert trained.preprocessing == preprocessing
    text = trained.encode_text(["is red", "is blue"])
    expected = model.apply(variables, tokens, lengths, method="encode_text")
    np.testing.assert_allclose(text, expected, atol=1e-6)
    assert trained.encode_images(list(pixels)).shape == (1, 4, 5)


def test_pretrained_weights_are_the_entry_s(config, tmp_path, caplog):
    variables = CMAP.from_config(config).init(jax.random.key(0), **CMAP.example_inputs(20))
    read_initial_weights(config)
    assert "NO COLOURS: this grid trains from scratch" in caplog.text
    assert "Give some." in caplog.text
    (tmp_path / "colours").touch()
    config.model.image.init_from = str(tmp_path / "colours")
    changed = apply_initial_weights(read_initial_weights(config), variables)
    colours = changed["params"]["image_encoder"]["backbone"]["colours"]
    np.testing.assert_array_equal(colours["bias"], np.full(6, 7.0))
    config.model.image.init_from = None
    config.model.text.init_from = str(tmp_path / "colours")
    with pytest.raises(ValueError, match=r"text\.init_from: bag has no pretrained weights"):
        read_initial_weights(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.variant": "cmap"}, "scores the level mid, but .*=grid gives high alone"),
        ({"model.image.name": "gird"}, r"image\.name must be one of resnet, .*grid; got 'gird'"),
        ({"model.image.grid.width": 0}, r"image\.grid\.width must be 1 or more, not 0"),
        ({"model.image.grid": {}}, r"image\.grid\.width is missing; fields: width"),
        ({"model.image.grid": {"width": 1, "x": 1}}, r"image\.grid\.x does not exist"),
        ({"model.text.tokenizer": "words"}, r"text\.tokenizer must be one of letters; got 'words'"),
        ({"data.fit": "pad"}, r"config\.data\.fit must be one of crop; got 'pad'"),
        ({"data.crop": 16}, r"config\.data\.crop must be a positive multiple of 10, got 16"),
    ],
)
def test_impossible_configs(config, fields, message):
    for path, value in fields.items():
        *parents, field = path.split(".")
        part = config
        for parent in parents:
            part = part[parent]
        with part.unlocked():
            del part[field]
            part[field] = value
    with pytest.raises(ValueError, match=message):
        CMAP.from_config(config)


def test_configs_of_earlier_versions_are_translated():
    config = default.get_config()
    config.model.text.name = "lstm"
    config.model.text.lstm.hidden = 9
    new = config.to_dict()
    old = config.to_dict()
    image, text = old["model"]["image"], old["model"]["text"]
    resnet, lstm = image.pop("resnet"), text.pop("lstm")
    image["depth"], image["width"] = resnet["depth"], resnet["width"]
    image["frozen_backbone_batch_norm"] = resnet["frozen_batch_norm"]
    image["batch_norm_groups"] = resnet["batch_norm_groups"]
    text["encoder"], text["word_dim"] = text.pop("name"), lstm["word_dim"]
    text["lstm_hidden"], text["dropout"] = lstm["hidden"], lstm["dropout"]
    text["lstm_pool_padding"], text["word_vectors"] = lstm["pool_padding"], text.pop("init_from")
    for part, field in ((image, "name"), (text, "tokenizer"), (text, "gru")):
        del part[field]
    del old["data"]["fit"], old["data"]["resampling"]
    assert renamed_fields.has_old_names(old)
    assert renamed_fields.translate(old) == new == renamed_fields.translate(new)
    text["encoder"] = "bigru"
    assert renamed_fields.translate(old)["model"]["text"]["name"] == "gru"
