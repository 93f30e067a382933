"""EfficientNet-Lite0: counts and shapes, its settings, and what is kept for the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmap_jax.models.encoders.efficientnet_lite0 import ENTRY, EfficientNetLite0
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
