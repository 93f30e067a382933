"""The configs of CLIP's and SigLIP's towers: the published sizes, and tiny ones that train."""

import importlib

import jax
import pytest
from command_line import ROOT, call
from fake_data import fashion_iq as write_fashion_iq

from cmap_jax.config_fields import check_values
from cmap_jax.models.cmap import CMAP
from cmap_jax.training.check import check_config
from configs import default, fashioniq, towers

# Parameters of the published models, whose own scalars (one in CLIP, two in SigLIP) count too.
PUBLISHED = {
    "clip_vit_b32": 151_277_313 - 1,
    "clip_vit_b16": 149_620_737 - 1,
    "clip_vit_l14": 427_616_513 - 1,
    "siglip_b16": 203_155_970 - 2,
}
FILES = ("fashioniq", "shoes", "fashion200k", "cirr", "folder")


def _shapes(config) -> dict:
    model, inputs = CMAP.from_config(config), CMAP.example_inputs(config.data.crop)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))["params"]


@pytest.mark.parametrize("name", towers.WEIGHTS)
def test_the_sizes_are_the_published_ones(name):
    params = _shapes(fashioniq.get_config(name))
    pretrained = params["image_encoder"]["backbone"], params["text_encoder"]
    assert sum(x.size for x in jax.tree.leaves(pretrained)) == PUBLISHED[name]


@pytest.mark.parametrize("file", FILES)
def test_every_data_set_has_them_in_both_stages(file):
    get_config = importlib.import_module(f"configs.{file}").get_config
    for name in towers.WEIGHTS:
        frozen, trained = get_config(name), get_config(f"finetune,{name}")
        check_values(frozen)
        check_config(trained)
        assert [frozen.model.image.frozen, frozen.model.text.frozen] == [True, True]
        assert [trained.model.image.frozen, trained.model.text.frozen] == [False, False]
        assert frozen.optimizer == default.get_config().optimizer
        assert trained.optimizer.learning_rate * trained.optimizer.groups.image.learning_rate == (
            pytest.approx(2e-6)
        )
        assert frozen.data.crop == frozen.data.resize
        assert [frozen.data.augment, trained.data.augment] == [False, False]
        assert get_config(f"debug,{name}").data.augment
    with pytest.raises(
        ValueError, match=r'"debug", .*not .*; with or without them it takes one of'
    ):
        get_config("clip_vit_b32,siglip_b16")


@pytest.mark.parametrize("file", ["garments", "circo"])
def test_the_other_configs_have_them_too(file):
    get_config = importlib.import_module(f"configs.{file}").get_config
    for name in towers.WEIGHTS:
        config = get_config(f"debug,{name}")
        check_config(config)
        assert config.model.image.name == config.model.text.name == name.partition("_")[0]
        params = _shapes(_with_words(config))
        assert sum(x.size for x in jax.tree.leaves(params)) < 2_000_000


def _with_words(config):
    config.model.text.vocabulary_size = 100
    return config


def test_the_end_of_a_text_of_words():
    """The feature is taken at <end>, whose id is not that of published sub-words."""
    config = fashioniq.get_config("debug,clip_vit_b32")
    config.model.text.clip.end_token = 2
    with pytest.raises(
        ValueError, match=r"model\.text\.clip\.end_token must be 3 with config\.mod"
    ):
        check_config(config)


@pytest.mark.slow
def test_tiny_towers_train_in_both_stages(tmp_path):
    """On the layout of FashionIQ: no published file is needed, and stage 2 starts from stage 1."""
    data = write_fashion_iq(tmp_path / "data")
    common = (
        f"--config.data.directory={data}",
        "--config.train.batch_size=8",
        "--config.train.epochs=1",
        "--config.eval.batch_size=16",
        "--config.train.ema_decay=0.9",
    )
    config = f"--config={ROOT / 'configs' / 'fashioniq.py'}"
    first, second = tmp_path / "first", tmp_path / "second"
    done = call(f"{config}:debug,siglip_b16", *common, f"--workdir={first}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fashioniq/original" in done.stdout
    done = call(
        f"{config}:debug,finetune,siglip_b16",
        *common,
        f"--config.init_from={first}",
        "--config.optimizer.groups.image.layer_decay=0.7",
        "--config.optimizer.undecayed=('biases','norms','positions','scalars')",
        f"--workdir={second}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fashioniq/original" in done.stdout
