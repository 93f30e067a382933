"""Layers, pooling and resizing with PyTorch's numerics and initial values."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.models.cpu import convolve
from cmap_jax.scoring import at_least_float32

# The name, for rematerialisation, of what convolutions and linear layers result in.
PRODUCT = "product"


def uniform_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """Return an initializer uniform in ±1/sqrt(fan_in): PyTorch's default for most layers."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


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
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        y = checkpoint_name(y, PRODUCT)
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
    over devices, the statistics are those of the global batch; or, with ``groups``, of equal parts
    of it, which need no word between devices where each part lies on one (as in PyTorch's
    DistributedDataParallel without SyncBatchNorm). The running ones take in the parts' mean.

    Attributes:
        momentum: share of the batch's statistics in the running ones at each update.
        epsilon: added to the variance.
        groups: parts of the batch, each normalised by its own statistics.
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
        """Normalise by the batch's statistics and update the running ones, or use those."""
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
            y, mean, var = _normalize_by_batch(x, scale, bias, self.epsilon)
        else:
            parts = x.reshape(groups, -1, *x.shape[1:])
            normalize = jax.vmap(_normalize_by_batch, in_axes=(0, None, None, None))
            y, mean, var = normalize(parts, scale, bias, self.epsilon)
            y, mean, var = y.reshape(x.shape), mean.mean(0), var.mean(0)
        if not self.is_initializing():
            count = x.size // x.shape[-1] // groups
            unbiased = var * (count / max(count - 1, 1))
            for running, batch in ((running_mean, mean), (running_var, unbiased)):
                running.value = (1 - self.momentum) * running.value + self.momentum * batch
        return y.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize_by_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the normalised batch and its statistics, through which no gradient flows.

    The gradient is written out since XLA's CPU back end takes three times as long for the one that
    automatic differentiation finds.
    """
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.mean(jnp.square(x - mean), axes)
    slope = jax.lax.rsqrt(var + epsilon) * scale
    return x * slope + (bias - mean * slope), mean, var


def _normalize_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    y, mean, var = _normalize_by_batch(x, scale, bias, epsilon)
    return (y, mean, var), (x, scale, mean, jax.lax.rsqrt(var + epsilon))


def _normalize_backward(_: float, residuals: tuple, cotangents: tuple) -> tuple:
    x, scale, mean, inverse = residuals
    dy, axes = cotangents[0], tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    dbias = jnp.sum(dy, axes)
    dscale = inverse * jnp.sum(dy * (x - mean), axes)
    # dx = scale / sigma * (dy - mean(dy) - x_hat * mean(dy * x_hat)), gathered by x and dy
    slope, pull = inverse * scale, inverse * dscale / count
    dx = slope * dy - (slope * pull) * x + slope * (mean * pull - dbias / count)
    return dx, dscale, dbias


_normalize_by_batch.defvjp(_normalize_forward, _normalize_backward)


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
    wide = at_least_float32(x)
    if x.shape[1:3] == (2 * height, 2 * width):
        # The mean of each 2x2 block; the general way is two matrix products and transposes.
        corners = (wide[:, i::2, j::2] for i in range(2) for j in range(2))
        return (sum(corners) / 4).astype(x.dtype)
    # jax.image.resize antialiases by default, which PyTorch's interpolate does not.
    shape = (x.shape[0], height, width, x.shape[-1])
    return jax.image.resize(wide, shape, "bilinear", antialias=False).astype(x.dtype)


def generalized_mean(
    x: Float[Array, "B H W C"], *, power: float = 3.0, floor: float = 1e-6
) -> Float[Array, "B C"]:
    """GeM pooling over space, ``mean(max(x, 1e-6)^3)^(1/3)`` (SPEC 1), in float32 or better."""
    x = jnp.maximum(at_least_float32(x), floor)
    # A chain of products where the power is whole: pow takes a logarithm a pixel.
    powered = jax.lax.integer_pow(x, int(power)) if float(power).is_integer() else x**power
    return jnp.mean(powered, axis=(1, 2)) ** (1 / power)
