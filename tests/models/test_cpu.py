"""The convolution of the CPU back end against XLA's, values and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmap_jax.models import cpu as convolution


def _expected(x, kernel, dy, stride):
    def plain(x, kernel):
        padding = kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    y, pull_back = jax.vjp(plain, x, kernel)
    return y, *pull_back(dy)


@pytest.mark.parametrize(("channels", "width"), [(3, 5), (80, 64)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "side",
    [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(8, marks=pytest.mark.slow), 34],
)
def test_every_way_gives_the_same(side, size, stride, channels, width, monkeypatch, x64):
    # So that the batch is cut in two.
    outside = ((side - 1) // stride + 1) * ((side + side % 2 - 1) // stride + 1)
    monkeypatch.setattr(convolution, "_PATCH_BYTES", 2 * outside * size**2 * channels * 8)
    monkeypatch.setattr(convolution, "_PATCHES_PER_KERNEL", 0)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, side, side + side % 2, channels)))
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, width)))
    shape = jax.eval_shape(lambda: convolution.convolve(x, kernel, stride)).shape
    assert shape == (4, (side - 1) // stride + 1, (x.shape[2] - 1) // stride + 1, width)
    dy = jnp.asarray(rng.normal(size=shape))
    y, pull_back = jax.vjp(lambda x, k: convolution.convolve(x, k, stride), x, kernel)
    for ours, other in zip((y, *pull_back(dy)), _expected(x, kernel, dy, stride), strict=True):
        assert ours.shape == other.shape
        np.testing.assert_allclose(ours, other, rtol=1e-9, atol=1e-9)


def test_accelerators_get_xlas_convolution():
    """What is lowered for a GPU or TPU has convolutions and no gathered patches."""
    x, kernel = jnp.zeros((2, 8, 8, 64)), jnp.zeros((3, 3, 64, 64))

    def loss(x, kernel):
        return convolution.convolve(x, kernel, 1).sum()

    exported = jax.export.export(jax.jit(jax.grad(loss, argnums=(0, 1))), platforms=["cuda"])(
        x, kernel
    )
    text = exported.mlir_module()
    assert text.count("stablehlo.convolution") == 2  # the two gradients; the value is not asked for
    assert "concatenate" not in text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_stay(dtype):
    x, kernel = jnp.ones((2, 4, 4, 3), dtype), jnp.ones((3, 3, 3, 8), dtype)
    y, pull_back = jax.vjp(lambda x, k: convolution.convolve(x, k, 2), x, kernel)
    assert {y.dtype, *(g.dtype for g in pull_back(y))} == {jnp.dtype(dtype)}
