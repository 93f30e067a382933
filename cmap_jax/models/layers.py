"""Layers, pooling and resizing with PyTorch's numerics and initial values."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.models import cpu
from cmap_jax.numerics import at_least_float32

# The name of the convolutions' results, for a rematerialisation that keeps them.
PRODUCT = "product"


def uniform_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """Return an initializer, uniform in ±1/sqrt(fan_in): PyTorch's default for most layers."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


@cpu.with_cpu_form(forward=cpu.convolve, backward=cpu.convolution_gradients, arrays=2)
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k C F"], stride: int
) -> Float[Array, "B H2 W2 F"]:
    """Convolve maps with a square kernel of odd side k, zero-padded by ``k // 2`` on all sides.

    Args:
        x: maps.
        kernel: weights, in the dtype of ``x``.
        stride: step in pixels.

    Returns:
        Maps of ``(H - 1) // stride + 1`` rows, in the dtype of ``x``.
    """
    padding = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Conv(nn.Module):
    """A square convolution, ``[B, H, W, C] -> [B, H', W', features]``, zero-padded on all sides.

    Attributes:
        features: number of output channels.
        kernel_size: side of the kernel in pixels, odd.
        stride: step in pixels.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel; None: uniform in ±1/sqrt(fan_in).
        dtype: dtype of the products and of the result.

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
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        y = checkpoint_name(y, PRODUCT)
        if self.use_bias:
            bias = self.param("bias", uniform_fan_in(fan_in), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


@cpu.with_cpu_form(forward=cpu.convolve_depthwise, backward=cpu.depthwise_gradients, arrays=2)
def convolve_depthwise(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"], stride: int
) -> Float[Array, "B H2 W2 C"]:
    """Convolve each channel with a square kernel of its own, padded as TensorFlow's "SAME".

    Args:
        x: maps.
        kernel: weights, in the dtype of ``x``.
        stride: step in pixels.

    Returns:
        Maps of ``ceil(H / stride)`` rows, in the dtype of ``x``. Where the zeros that this takes
        are odd in number, the bottom and the right have one more: for a kernel of 3 and stride 2 on
        an even side none before and one after, where PyTorch's usual padding has one and one.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


class DepthwiseConv(nn.Module):
    """A convolution of each channel by itself, without a bias, ``[B, H, W, C] -> [B, H', W', C]``.

    Attributes:
        kernel_size: side of the kernel in pixels.
        stride: step in pixels.
        dtype: dtype of the products and of the result.

    The padding is that of `convolve_depthwise`. Parameter: ``kernel`` [k, k, 1, C], normal with
    variance 2 / k^2.
    """

    kernel_size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        """Convolve a batch of maps."""
        size = self.kernel_size
        init = nn.initializers.normal(math.sqrt(2) / size)
        kernel = self.param("kernel", init, (size, size, 1, x.shape[-1]))
        y = convolve_depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        return checkpoint_name(y, PRODUCT)


class Dense(nn.Module):
    """A linear layer with PyTorch's initial values, ``[..., C] -> [..., features]``.

    Attributes:
        features: width of the result.
        dtype: dtype of the products and of the result.

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
    """Batch normalisation over all axes but the last, as PyTorch does it.

    See docs/method.md, sections 1 and 3.

    It differs from Flax's: the running variance is updated with the *unbiased* batch variance, and
    the statistics are computed in float32 or better by two passes over the data. They are those of
    the global batch, also where it is sharded; or, with ``groups``, those of equal parts of it. A
    part that lies on one device needs no communication (as in PyTorch's DistributedDataParallel
    without SyncBatchNorm). The running statistics are updated with the mean over the parts.

    Attributes:
        momentum: weight of the batch's statistics in an update of the running ones, 0 to 1.
        epsilon: constant that is added to the variance.
        groups: number of parts of the batch, each normalised by its own statistics.
        dtype: dtype of the result.

    Parameters ``scale`` and ``bias``; in the collection ``batch_stats``, ``mean`` and ``var``.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    groups: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*shape C"], *, use_batch_statistics: bool
    ) -> Float[Array, "*shape C"]:
        """Normalise by the running statistics, or by the batch's, which update the running ones."""
        width = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        running_var = self.variable("batch_stats", "var", jnp.ones, width)
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        x = at_least_float32(x)
        if not use_batch_statistics:
            inverse = jax.lax.rsqrt(running_var.value + self.epsilon)
            return ((x - running_mean.value) * (inverse * scale) + bias).astype(self.dtype)
        groups = 1 if self.is_initializing() else self.groups
        if groups == 1:
            y, mean, var = normalize_by_batch(x, scale, bias, self.epsilon)
        else:
            parts = x.reshape(groups, -1, *x.shape[1:])
            normalize = jax.vmap(normalize_by_batch, in_axes=(0, None, None, None))
            y, mean, var = normalize(parts, scale, bias, self.epsilon)
            y, mean, var = y.reshape(x.shape), mean.mean(0), var.mean(0)
        if not self.is_initializing():
            count = x.size // x.shape[-1] // groups
            unbiased = var * (count / max(count - 1, 1))
            for running, batch in ((running_mean, mean), (running_var, unbiased)):
                running.value = (1 - self.momentum) * running.value + self.momentum * batch
        return y.astype(self.dtype)


@cpu.with_cpu_form(backward=cpu.batch_norm_gradients, arrays=3)
def normalize_by_batch(
    x: Float[Array, "*shape C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float
) -> tuple[Float[Array, "*shape C"], Float[Array, " C"], Float[Array, " C"]]:
    """Normalise a batch by its own statistics, over all axes but the last.

    Args:
        x: float32 or float64.
        scale: standard deviation of the result.
        bias: mean of the result.
        epsilon: constant that is added to the variance.

    Returns:
        The normalised batch, its mean and its biased variance. No gradient flows through the last
        two.
    """
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.mean(jnp.square(x - mean), axes)
    slope = jax.lax.rsqrt(var + epsilon) * scale
    statistics = jax.lax.stop_gradient((mean, var))
    return x * slope + (bias - mean * slope), *statistics


@cpu.with_cpu_form(forward=cpu.max_pool, backward=cpu.max_pool_gradient, arrays=1)
def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """Take the 3x3 maximum with stride 2 and padding 1; the gradient goes to a first maximum."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def resize_bilinear(
    x: Float[Array, "B H W C"], height: int, width: int
) -> Float[Array, "B {height} {width} C"]:
    """Resize bilinearly, with half-pixel centers and no antialiasing, in float32.

    See docs/method.md, section 1.
    """
    wide = at_least_float32(x)
    if x.shape[1:3] == (2 * height, 2 * width):
        # The mean of each 2x2 block: the general case is two matrix products and transposes.
        corners = (wide[:, i::2, j::2] for i in range(2) for j in range(2))
        return (sum(corners) / 4).astype(x.dtype)
    # jax.image.resize antialiases by default, which PyTorch's interpolate does not.
    shape = (x.shape[0], height, width, x.shape[-1])
    return jax.image.resize(wide, shape, "bilinear", antialias=False).astype(x.dtype)


def generalized_mean(
    x: Float[Array, "B H W C"], *, power: float = 3.0, floor: float = 1e-6
) -> Float[Array, "B C"]:
    """Pool over space by GeM, ``mean(max(x, 1e-6)^3)^(1/3)``, in float32 or better.

    See docs/method.md, section 1.
    """
    x = jnp.maximum(at_least_float32(x), floor)
    # For an integer power, a chain of products: a general power takes a logarithm for each pixel.
    powered = jax.lax.integer_pow(x, int(power)) if float(power).is_integer() else x**power
    return jnp.mean(powered, axis=(1, 2)) ** (1 / power)
