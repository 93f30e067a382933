"""EfficientNet-Lite0: counts and shapes, its settings, and what is kept for the gradient."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmap_jax.models.encoders import IMAGE_ENCODERS
from cmap_jax.models.encoders.efficientnet_lite0 import ENTRY, EfficientNetLite0
from cmap_jax.models.encoders.entry import LEVELS
from cmap_jax.models.image_encoder import ImageEncoder
from cmap_jax.training.frozen_encoder import check_cacheable
from configs import default


def init(network, size=32):
    images = jnp.zeros((2, size, size, 3))
    return network.init(jax.random.key(0), images, train=False)


def outputs(network, size):
    images = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    return jax.eval_shape(
        lambda x: network.apply(init(network), x, train=False),
        images,
    )


@pytest.mark.parametrize(("high", "width"), [("head", 1280), ("blocks", 320)])
@pytest.mark.parametrize("size", [224, 64])
def test_shapes(high, width, size):
    maps = outputs(EfficientNetLite0(high=high), size)
    sides = {level: m.shape[1] for level, m in maps.items()}
    assert sides == {"high": size // 32, "mid": size // 16, "low": size // 8}
    widths = {level: m.shape[-1] for level, m in maps.items()}
    assert widths == {"high": width, "mid": 112, "low": 40}


@pytest.mark.parametrize("remat", ["none", "products", "blocks"])
def test_parameters(remat):
    """Names and counts are the same whatever is kept for the gradient."""
    variables = jax.eval_shape(lambda: init(EfficientNetLite0(remat=remat)))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 3_371_008
    assert sum(x.size for x in jax.tree.leaves(variables["batch_stats"])) == 42_016
    names = {f"block{i}" for i in range(16)}
    names |= {"stem_conv", "stem_norm", "head_conv", "head_norm"}
    assert variables["params"].keys() == names


def test_settings():
    settings = dict(default.get_config().model.image.efficientnet_lite0)
    assert settings.keys() == ENTRY.settings.keys()

    def build(frozen=True, **changes):
        return ENTRY.build({**settings, **changes}, frozen, "none", jnp.float32)

    assert not build().normalize_by_batch
    assert build(frozen_batch_norm="batch").normalize_by_batch
    assert build(frozen=False).normalize_by_batch
    assert build(high="blocks").high == "blocks"
    assert build(batch_norm_groups=4).batch_norm_groups == 4


def test_maps_of_the_batch_s_statistics_cannot_be_precomputed():
    config = default.get_config()
    config.model.image.name = "efficientnet_lite0"
    check_cacheable(config)
    config.model.image.efficientnet_lite0.frozen_batch_norm = "batch"
    with pytest.raises(
        ValueError, match=r"--config\.model\.image\.efficientnet_lite0\.frozen_batch_norm=running"
    ):
        check_cacheable(config)


class Fixed(nn.Module):
    """A backbone of the same maps for all images: those of blocks have negative numbers."""

    maps: dict[str, tuple]

    def __call__(self, images, *, train):
        return {level: jnp.asarray(x) for level, x in self.maps.items()}


@pytest.mark.parametrize("cross_level", ["none", "down"])
@pytest.mark.parametrize("high", ["head", "blocks"])
def test_no_map_of_a_block_loses_its_negative_numbers(high, cross_level, monkeypatch):
    """They are pooled by their mean; a head's map, and what the interaction makes, by GeM."""
    rng = np.random.default_rng(0)
    sides = {"high": 2, "mid": 4, "low": 8}
    maps = {k: rng.normal(size=(2, n, n, 3)).astype(np.float32) for k, n in sides.items()}
    if high == "head":
        maps["high"] = np.maximum(maps["high"], 0)
    fixed = Fixed(jax.tree.map(lambda x: tuple(x.tolist()), maps))
    entry = dataclasses.replace(ENTRY, build=lambda *_: fixed)
    monkeypatch.setitem(IMAGE_ENCODERS, "efficientnet_lite0", entry)
    encoder = ImageEncoder("efficientnet_lite0", {"high": high}, 4, cross_level=cross_level)
    images = np.zeros((2, 64, 64, 3), np.float32)
    pyramid, variables = encoder.init_with_output(jax.random.key(0), images, train=False)

    def gem(x):
        return (np.maximum(x, 1e-6) ** 3).mean((1, 2)) ** (1 / 3)

    def head(level, vectors):
        weights = variables["params"][f"head_{level}"]
        y = vectors @ weights["kernel"] + weights["bias"]
        return y / np.linalg.norm(y, axis=-1, keepdims=True)

    pooled = {level: x.mean((1, 2)) for level, x in maps.items()}
    if high == "head":
        pooled["high"] = gem(maps["high"])
    if cross_level == "down":
        inner = encoder.bind(variables).interaction
        _, mid, low = inner(*(jnp.asarray(maps[level]) for level in LEVELS))
        pooled |= {"mid": gem(np.asarray(mid)), "low": gem(np.asarray(low))}
    for ours, level in zip(pyramid, LEVELS, strict=True):
        np.testing.assert_allclose(ours, head(level, pooled[level]), atol=1e-5)
    # Stored maps, as `cmap extract` may hold them, give the same.
    stored = encoder.apply(variables, maps, train=False)
    np.testing.assert_allclose(stored, pyramid, atol=1e-6)


@pytest.mark.slow
def test_a_frozen_network_keeps_its_statistics():
    """With the running statistics, training gives the maps of evaluation and updates nothing."""
    network = EfficientNetLite0(normalize_by_batch=False)
    variables = jax.jit(lambda: init(network))()
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    apply = jax.jit(
        lambda v, x, train: network.apply(v, x, train=train, mutable=["batch_stats"]),
        static_argnames="train",
    )
    maps, updated = apply(variables, images, train=True)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    expected, _ = apply(variables, images, train=False)
    jax.tree.map(np.testing.assert_array_equal, maps, expected)


def test_bfloat16():
    maps = outputs(EfficientNetLite0(dtype=jnp.bfloat16), 32)
    assert {m.dtype for m in maps.values()} == {jnp.dtype(jnp.bfloat16)}
