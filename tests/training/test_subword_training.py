"""A model on sub-words, from the data to a workdir that needs no other files."""

import json
import logging
import shutil

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from fake_data import fashion_iq as write_fashion_iq
from ml_collections import ConfigDict
from small import small_config
from subword_files import write_clip_pairs, write_siglip_folder

from cmap_jax.cli.run import run
from cmap_jax.models.encoders import TEXT_ENCODERS
from cmap_jax.models.encoders.entry import Setting, TextEntry
from cmap_jax.processing.tokenizers import TOKENIZERS
from cmap_jax.processing.tokenizing import join_captions
from cmap_jax.processing.unread_texts import describe_unread
from cmap_jax.trained import load
from cmap_jax.training.same_data import fit_vocabulary
from cmap_jax.training.train import train
from cmap_jax.workdir.description import read_description
from input_pipeline import create_datasets
from input_pipeline.records import DataError

LONG = "is red and longer " * 40


class Bag(nn.Module):
    """The sum of the tokens' embeddings, in place of a transformer."""

    vocabulary_size: int
    embed_dim: int

    @nn.compact
    def __call__(self, tokens, lengths, *, train):
        embedded = nn.Embed(self.vocabulary_size, self.embed_dim)(tokens)
        valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
        return jnp.where(valid[..., None], embedded, 0).sum(1)


ENTRY = TextEntry(
    build=lambda settings, vocabulary_size, embed_dim, remat, dtype: Bag(
        vocabulary_size, embed_dim
    ),
    settings={"positions": Setting(least=1)},
    tokenizers=("clip", "siglip"),
)


def _sources(tmp_path, kind):
    source = tmp_path / "files"
    source.mkdir()
    return write_clip_pairs(source) if kind == "clip" else write_siglip_folder(source)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(TEXT_ENCODERS, "bag", ENTRY)
    config = small_config("text_only", image_name="cells")
    with config.unlocked():
        config.model.text.name, config.model.text.bag = "bag", ConfigDict({"positions": 77})
    config.model.text.tokenizer = "clip"
    config.model.text.vocabulary_size = None
    config.model.text.tokenizer_path = str(_sources(tmp_path, "clip"))
    config.data.directory = str(write_fashion_iq(tmp_path / "data"))
    config.data.resize, config.data.crop = 40, 32
    config.train.epochs = 1
    config.eval.batch_size = 16
    return config


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_batches_hold_the_tokenizer_s_ids(config, tmp_path, kind):
    config.model.text.tokenizer = kind
    if kind == "siglip":
        config.model.text.tokenizer_path = str(write_siglip_folder(tmp_path / "siglip"))
    tokenizer = TOKENIZERS[kind].from_data(config.model.text.tokenizer_path, (), ())
    datasets = create_datasets(config)
    assert datasets.tokenizer == tokenizer
    (batch,) = datasets.train.batches(0, 1)
    (_, queries) = next(iter(datasets.evaluations.items()))
    captions = {q.captions for e in queries.evaluations for q in e.queries}
    captions |= {t.captions for t in datasets.train._source.items()}
    known = {tuple(tokenizer.encode(join_captions(c))) for c in captions}
    width = max(map(len, known))
    assert batch["text_tokens"].shape == (8, width if kind == "clip" else 64)
    rows = zip(batch["text_tokens"], batch["text_lengths"], strict=True)
    assert {tuple(ids[:length].tolist()) for ids, length in rows} <= known
    if kind == "clip":
        assert queries.sizes.tokens < 77  # padding has no effect: batches need not be wider


@pytest.mark.slow  # it compiles a run's programs
def test_a_workdir_needs_no_other_files(config, tmp_path):
    """It is loaded, and its run continues, with the published files gone."""
    workdir = tmp_path / "run"
    train(config, create_datasets(config), workdir)
    source = config.model.text.tokenizer_path
    tokenizer = TOKENIZERS["clip"].from_data(source, (), ())
    shutil.rmtree(tmp_path / "files")
    trained = load(workdir)
    assert trained.tokenizer == tokenizer
    assert trained.config.model.text.vocabulary_size == len(tokenizer)
    short, long = trained.encode_text(["is red"]), trained.encode_text([LONG])
    assert not np.allclose(short, long)
    tokens, lengths = tokenizer.encode_batch([LONG])
    assert tokens.shape == (1, 77)
    expected = trained.model.apply(trained.variables, tokens, lengths, method="encode_text")
    np.testing.assert_allclose(long, expected, atol=1e-6)
    config.model.text.tokenizer_path = str(tmp_path / "gone")  # it may be anywhere else
    run(config, str(workdir), evaluate_only=False)
    assert read_description(workdir).tokenizer == tokenizer


def test_texts_that_are_too_long_are_warned_of(config, tmp_path, caplog):
    path = tmp_path / "data" / "captions" / "cap.dress.train.json"
    entries = json.loads(path.read_text())
    entries[0]["captions"] = [LONG, "is longer"]
    path.write_text(json.dumps(entries))
    with caplog.at_level(logging.WARNING):
        datasets = create_datasets(config)
    (warning,) = (r.getMessage() for r in caplog.records if "longer than" in r.getMessage())
    assert "2 of" in warning  # both caption orders
    assert "longer than 77 tokens, and their ends are not read" in warning
    assert datasets.train.text_width == 77


def test_use_warns_of_texts_that_are_too_long(config, tmp_path):
    tokenizer = TOKENIZERS["clip"].from_data(config.model.text.tokenizer_path, (), ())
    assert describe_unread(["is red", ("is", "red")], tokenizer) == ""
    warning = describe_unread(["is red", LONG, ("is red", LONG)], tokenizer)
    assert warning.startswith("the ends of 2 texts are not read, such as that of 'is red and")
    assert warning.endswith("longer than 77 tokens")
    siglip = TOKENIZERS["siglip"].from_data(str(write_siglip_folder(tmp_path / "s")), (), ())
    assert "only the characters of its vocabulary are read" in describe_unread(
        ["\u7ea2\u8272"], siglip
    )


def test_tokenizers_of_other_models_are_refused(config):
    tokenizer = create_datasets(config, training=False).tokenizer
    assert fit_vocabulary(config, tokenizer).model.text.vocabulary_size == len(tokenizer)
    config.model.text.vocabulary_size = 49408
    with pytest.raises(ValueError, match=r"size is 49408, but the tokenizer clip of .*txt\.gz has"):
        fit_vocabulary(config, tokenizer)
    config.model.text.vocabulary_size = None
    config.model.text.bag.positions = 16
    with pytest.raises(ValueError, match=r"bag\.positions is 16, but the texts .* up to 77 tokens"):
        fit_vocabulary(config, tokenizer)


def test_texts_in_another_script_are_refused(config, tmp_path):
    config.model.text.tokenizer = "siglip"
    config.model.text.tokenizer_path = str(write_siglip_folder(tmp_path / "siglip"))
    for path in (tmp_path / "data" / "captions").glob("cap.*.train.json"):
        entries = json.loads(path.read_text())
        for entry in entries:
            entry["captions"] = ["\u7ea2\u8272", "\u957f\u8896"]
        path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match="Write them with the characters of its vocabulary"):
        create_datasets(config)
