"""Convolution, dense layer, pooling and resizing with PyTorch's numerics and initial values."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.scoring import at_least_float32


def uniform_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """Return an initializer uniform in ±1/sqrt(fan_in): PyTorch's default for most layers."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    size = kernel.shape[0]
    if min(x.shape[1:3]) >= size or size == 1:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=[(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    # A map smaller than the kernel (the deepest maps of small images). XLA's CPU back end leaves
    # its fast convolution there and takes 10 to 50 times longer than this product of shifted maps.
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    taps = [
        x[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class Conv(nn.Module):
    """A square convolution, ``[B, H, W, C] -> [B, H', W', features]``, zero-padded on all sides.

    Attributes:
        features: channels out.
        kernel_size: side of the kernel in pixels.
        stride: step in pixels.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel; None for ±1/sqrt(fan_in).
        dtype: what the product is computed in.

    The padding is ``kernel_size // 2``. Parameters: ``kernel`` [k, k, C, features] and ``bias``.
    """

    features: int
    kernel_size: int
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        """Convolve a batch of maps."""
        fan_in = self.kernel_size**2 * x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or uniform_fan_in(fan_in), shape)
        y = _convolve(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.kernel_size // 2
        )
        if self.use_bias:
            bias = self.param("bias", uniform_fan_in(fan_in), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


class Dense(nn.Module):
    """A linear layer with PyTorch's initial values, ``[..., C] -> [..., features]``.

    Attributes:
        features: width out.
        dtype: what the product is computed in.

    Parameters: ``kernel`` [C, features] and ``bias`` [features], uniform in ±1/sqrt(C).
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*shape C"]) -> Float[Array, "*shape F"]:
        """Apply the layer to the last axis."""
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, as PyTorch does it (SPEC 1, 3).

    Differs from Flax's: the running variance is updated with the *unbiased* batch variance, and the
    statistics are computed in float32 or better by two passes over the data. With the batch sharded
    over devices, the statistics are those of the global batch.

    Attributes:
        momentum: share of the batch's statistics in the running ones at each update.
        epsilon: added to the variance.
        dtype: dtype of the result.

    Parameters ``scale`` and ``bias``; in the collection ``batch_stats``, ``mean`` and ``var``.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*shape C"], *, use_batch_statistics: bool
    ) -> Float[Array, "*shape C"]:
        """Normalise by the batch's statistics and update the running ones, or use those."""
        width = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        running_var = self.variable("batch_stats", "var", jnp.ones, width)
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        x = at_least_float32(x)
        if use_batch_statistics:
            axes = tuple(range(x.ndim - 1))
            count = x.size // x.shape[-1]
            mean = jnp.mean(x, axes)
            var = jnp.mean(jnp.square(x - mean), axes)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                for running, batch in ((running_mean, mean), (running_var, unbiased)):
                    running.value = (1 - self.momentum) * running.value + self.momentum * batch
        else:
            mean, var = running_mean.value, running_var.value
        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return y.astype(self.dtype)


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """3x3 maximum with stride 2 and padding 1; the gradient goes to the first maximum.

    Written as a comparison of shifted maps, rows then columns: the gradient of ``reduce_window`` is
    a scatter, which on CPU takes six times as long as this.
    """
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        x_padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        out = (x.shape[axis] - 1) // 2 + 1
        best = None
        for tap in range(3):
            other = jax.lax.slice_in_dim(x_padded, tap, tap + 2 * out - 1, stride=2, axis=axis)
            # A NaN must win, or a diverging network would look healthy.
            better = None if best is None else (other > best) | jnp.isnan(other)
            best = other if best is None else jnp.where(better, other, best)
        x = best
    return x


def resize_bilinear(
    x: Float[Array, "B H W C"], height: int, width: int
) -> Float[Array, "B {height} {width} C"]:
    """Bilinear resize with half-pixel centres and no antialiasing (SPEC 1), computed in float32."""
    # jax.image.resize antialiases by default, which PyTorch's interpolate does not.
    shape = (x.shape[0], height, width, x.shape[-1])
    resized = jax.image.resize(at_least_float32(x), shape, "bilinear", antialias=False)
    return resized.astype(x.dtype)


def generalized_mean(
    x: Float[Array, "B H W C"], *, power: float = 3.0, floor: float = 1e-6
) -> Float[Array, "B C"]:
    """GeM pooling over space, ``mean(max(x, 1e-6)^3)^(1/3)`` (SPEC 1), in float32 or better."""
    x = jnp.maximum(at_least_float32(x), floor)
    # A chain of products where the power is whole: pow takes a logarithm a pixel.
    powered = jax.lax.integer_pow(x, int(power)) if float(power).is_integer() else x**power
    return jnp.mean(powered, axis=(1, 2)) ** (1 / power)
