"""The CPU back end's forms against the plain code of `layers`: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmap_jax.models import cpu, layers

_plain = {
    name: getattr(layers, name).__wrapped__
    for name in ("convolve", "convolve_depthwise", "normalize_by_batch", "max_pool")
}


def _agree(name, arrays, *settings, cotangent):
    """The decorated function against the plain one and its automatic gradient, in float64."""

    def run(function):
        y, pull_back = jax.vjp(lambda *arrays: function(*arrays, *settings), *arrays)
        return *jax.tree.leaves(y), *pull_back(cotangent)

    ours, plain = run(getattr(layers, name)), run(_plain[name])
    for a, b in zip(ours, plain, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("channels", "width"), [(3, 5), (80, 64)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "side",
    [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(8, marks=pytest.mark.slow), 34],
)
def test_convolutions_agree(side, size, stride, channels, width, monkeypatch, x64):
    # The weight gradient then takes the batch in two parts.
    outside = ((side - 1) // stride + 1) * ((side + side % 2 - 1) // stride + 1)
    monkeypatch.setattr(cpu, "_PATCH_BYTES", 2 * outside * size**2 * channels * 8)
    monkeypatch.setattr(cpu, "_PATCHES_PER_KERNEL", 0)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, side, side + side % 2, channels)))
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, width)))
    shape = jax.eval_shape(lambda: layers.convolve(x, kernel, stride)).shape
    assert shape == (4, (side - 1) // stride + 1, (x.shape[2] - 1) // stride + 1, width)
    dy = jnp.asarray(rng.normal(size=shape))
    _agree("convolve", (x, kernel), stride, cotangent=dy)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("side", [2, 7])
def test_depthwise_convolutions_agree(side, size, stride, x64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, side, side + 2, 3)))
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, 3)))
    shape = jax.eval_shape(lambda: layers.convolve_depthwise(x, kernel, stride)).shape
    assert shape == (2, -(-side // stride), -(-(side + 2) // stride), 3)
    dy = jnp.asarray(rng.normal(size=shape))
    _agree("convolve_depthwise", (x, kernel), stride, cotangent=dy)


def test_depthwise_padding_is_tensorflow_s():
    """With stride 2 on an even side, the first pixel of a result is at the first pixel itself."""
    x = jnp.arange(1.0, 5.0)[None, :, None, None] * jnp.ones((1, 4, 4, 1))
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
    y = layers.convolve_depthwise(x, kernel, 2)
    np.testing.assert_array_equal(y[0, :, 0, 0], [1, 3])


def test_batch_norms_agree(x64):
    """No gradient flows through the statistics, whatever their cotangents are."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(2, 3, (4, 3, 2, 5))) for _ in range(2))
    scale, bias, *others = jnp.asarray(rng.normal(size=(4, 5)))
    _agree("normalize_by_batch", (x, scale, bias), 1e-5, cotangent=(dy, *others))
    y, mean, var = layers.normalize_by_batch(x, scale, bias, 1e-5)
    np.testing.assert_allclose((mean, var), (x.mean((0, 1, 2)), x.var((0, 1, 2))), rtol=1e-12)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 5, 3)])
def test_max_pools_agree(shape, x64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.permutation(np.prod(shape)).reshape(shape), jnp.float64)  # without ties
    dy = jnp.asarray(rng.normal(size=jax.eval_shape(layers.max_pool, x).shape))
    _agree("max_pool", (x,), cotangent=dy)


def test_max_pool_gives_its_gradient_to_the_first_maximum():
    x = jnp.ones((1, 4, 4, 1))
    for max_pool in (layers.max_pool, _plain["max_pool"]):
        gradient = jax.grad(lambda x, f=max_pool: f(x).sum())(x)[0, :, :, 0]
        np.testing.assert_array_equal(gradient, [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4])
        assert jnp.isnan(max_pool(x.at[0, 1, 1, 0].set(jnp.nan))).any()


def _lowered(name, arrays, *settings, platform):
    def loss(*arrays):
        return jax.tree.leaves(getattr(layers, name)(*arrays, *settings))[0].sum()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arrays)))))
    return jax.export.export(gradient, platforms=[platform])(*arrays).mlir_module()


@pytest.mark.parametrize("platform", ["cuda", "cpu"])
def test_accelerators_get_the_plain_code(platform):
    """Programs for a GPU hold XLA's operations; those for a CPU hold the other forms."""
    is_plain = platform == "cuda"
    arrays = jnp.zeros((2, 4, 4, 64)), jnp.zeros((3, 3, 64, 64))
    text = _lowered("convolve", arrays, 1, platform=platform)
    assert text.count("stablehlo.convolution") == (3 if is_plain else 0)
    assert ("concatenate" in text) != is_plain
    arrays = jnp.zeros((2, 4, 4, 8)), jnp.zeros((3, 3, 1, 8))
    text = _lowered("convolve_depthwise", arrays, 1, platform=platform)
    assert ("stablehlo.convolution" in text) == is_plain
    text = _lowered("max_pool", (jnp.zeros((2, 8, 8, 4)),), platform=platform)
    assert ("select_and_scatter" in text) == is_plain


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_stay(dtype):
    x, kernel = jnp.ones((2, 4, 4, 3), dtype), jnp.ones((3, 3, 3, 8), dtype)
    y, pull_back = jax.vjp(lambda x, k: layers.max_pool(layers.convolve(x, k, 2)), x, kernel)
    assert {y.dtype, *(g.dtype for g in pull_back(y))} == {jnp.dtype(dtype)}
    arrays = x, jnp.ones((3, 3, 1, 3), dtype)
    y, pull_back = jax.vjp(lambda x, k: layers.convolve_depthwise(x, k, 1), *arrays)
    assert {y.dtype, *(g.dtype for g in pull_back(y))} == {jnp.dtype(dtype)}
