"""Convolution with a choice of algorithm by backend: the same values, the fastest way to them.

Accelerators get XLA's convolution and its gradients. XLA's CPU back end is fast at matrix products
and at plain convolutions of large maps, and slow at the rest: a 1x1 convolution and its gradients
are written as matrix products there, and so are weight gradients and convolutions of small maps
(`benchmarks/README.md` has the measurements by layer).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Below this number of rows and columns, a product of gathered patches beats XLA's convolution.
_SMALL_MAP = 8
# From this number of rows on, XLA's convolution beats the product where there are zeros to skip.
_LARGE_MAP = 16
# For a kernel of fewer numbers, XLA's own gradient beats a product so narrow.
_SMALL_KERNEL = 9300
# Gathered patches at once: few enough for a cache, enough to outweigh the sum they are added to.
_PATCH_BYTES, _PATCHES_PER_KERNEL = 20 * 2**20, 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k C F"], stride: int
) -> Float[Array, "B H2 W2 F"]:
    """Convolve maps with a square kernel of odd side k, zero-padded by ``k // 2`` on all sides.

    Args:
        x: maps.
        kernel: of the same dtype.
        stride: step in pixels.

    Returns:
        Maps of ``(H - 1) // stride + 1`` rows, the dtype of ``x``.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_forward_on_cpu, stride=stride),
        default=functools.partial(_xla_convolution, stride=stride),
    )


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple]:
    return convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.platform_dependent(
        *residuals,
        dy,
        cpu=functools.partial(_backward_on_cpu, stride=stride),
        default=functools.partial(_xla_backward, stride=stride),
    )


convolve.defvjp(_forward, _backward)


def _xla_convolution(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    padding = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _xla_backward(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(functools.partial(_xla_convolution, stride=stride), x, kernel)[1](dy)


def _forward_on_cpu(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    size = kernel.shape[0]
    if size > 1 and min(x.shape[1:3]) >= max(_SMALL_MAP, size):
        return _xla_convolution(x, kernel, stride=stride)
    return _product_of_patches(x, kernel, stride, (size // 2, size // 2))


def _product_of_patches(
    x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]
) -> jax.Array:
    """Convolve by one matrix product of all patches with the kernel."""
    patches = _patches(x, kernel.shape[0], stride, padding)
    rows = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return rows.reshape(*patches.shape[:3], -1)


def _patches(x: jax.Array, size: int, stride: int, padding: tuple[int, int]) -> jax.Array:
    """Gather the patch of every output pixel, [B, H2, W2, k * k * C]."""
    if size == 1:
        return x[:, ::stride, ::stride]
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    last = [(side - size) // stride * stride + 1 for side in x.shape[1:3]]
    taps = [
        x[:, i : i + last[0] : stride, j : j + last[1] : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(taps, axis=-1)


def _backward_on_cpu(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int
) -> tuple[jax.Array, jax.Array]:
    return _input_gradient(x, kernel, dy, stride), _kernel_gradient(x, kernel, dy, stride)


def _input_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
    if stride == 1:
        return _forward_on_cpu(dy, kernel[::-1, ::-1].swapaxes(2, 3), stride=1)
    if stride == 2 and kernel.shape[0] in (1, 3) and not any(side % 2 for side in x.shape[1:3]):
        return _input_gradient_by_phases(kernel, dy)
    _, pull_back = jax.vjp(lambda x: _xla_convolution(x, kernel, stride=stride), x)
    return pull_back(dy)[0]


def _input_gradient_by_phases(kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """Return the input's gradient for stride 2: even and odd rows and columns apart.

    An even row of the input meets the kernel's middle row alone; an odd one meets its last row at
    the output row before and its first row at the one after. So a 2x2 convolution of ``dy`` gives
    the four phases, without the zeros that a dilated ``dy`` is filled with.
    """
    batch, height, columns, _ = dy.shape
    kernel = kernel.swapaxes(2, 3)  # [k, k, F, C]
    channels = kernel.shape[-1]
    if kernel.shape[0] == 1:
        first = _product_of_patches(dy, kernel, 1, (0, 0))
        return jax.lax.pad(first, jnp.zeros((), dy.dtype), [(0, 0, 0), *[(0, 1, 1)] * 2, (0, 0, 0)])
    zero = jnp.zeros_like(kernel[0, 0])
    rows = ((1, None), (2, 0))  # by phase: the kernel's row at this row of dy and at the next
    phases = [
        [
            zero if None in (rows[r][i], rows[c][j]) else kernel[rows[r][i], rows[c][j]]
            for r in range(2)
            for c in range(2)
        ]
        for i in range(2)
        for j in range(2)
    ]
    gathered = jnp.concatenate([jnp.concatenate(p, axis=-1) for p in phases])  # [4 * F, 4 * C]
    gathered = gathered.reshape(2, 2, -1, 4 * channels)
    if height < _LARGE_MAP:
        dx = _product_of_patches(dy, gathered, 1, (0, 1))
    else:
        dx = jax.lax.conv_general_dilated(
            dy, gathered, (1, 1), [(0, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    dx = dx.reshape(batch, height, columns, 2, 2, channels)
    return dx.swapaxes(2, 3).reshape(batch, 2 * height, 2 * columns, channels)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
    """Return the kernel's gradient, as matrix products of gathered patches with ``dy``."""
    size, width = kernel.shape[0], dy.shape[-1]
    columns = size * size * x.shape[-1]
    if size > 1 and kernel.size < _SMALL_KERNEL:
        _, pull_back = jax.vjp(lambda kernel: _xla_convolution(x, kernel, stride=stride), kernel)
        return pull_back(dy)[0]

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        patches = _patches(x, size, stride, (size // 2, size // 2)).reshape(-1, columns)
        rows = dy.reshape(-1, width)
        # Few rows and many columns suit the product best; the transpose of the result is small.
        if columns < width:
            return _contract_rows(patches, rows)
        return _contract_rows(rows, patches).T

    batch, pixels = x.shape[0], math.prod(dy.shape[1:3])
    item = x.dtype.itemsize
    most = max(_PATCH_BYTES, _PATCHES_PER_KERNEL * kernel.size * item)
    images = _largest_divisor(batch, max(most // (pixels * columns * item), 1))
    if size == 1 or images == batch:
        gradient = product(x, dy)
    else:
        # A few images at a time: their patches stay in the cache.
        def step(i: jax.Array, total: jax.Array) -> jax.Array:
            part = [jax.lax.dynamic_slice_in_dim(a, i * images, images) for a in (x, dy)]
            return total + product(*part)

        zero = jnp.zeros((columns, width), x.dtype)
        gradient = jax.lax.fori_loop(0, batch // images, step, zero)
    return gradient.reshape(kernel.shape)


def _contract_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def _largest_divisor(number: int, most: int) -> int:
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)
