"""Other algorithms for XLA's CPU back end, with the same values as the plain ones of `layers`.

Accelerators get the plain code and its automatic gradient. XLA's CPU back end is fast at matrix
products and at plain convolutions of large maps, and slow at four things, which have a second form
here (`benchmarks/README.md` has the measurements by layer):

- 1x1 convolutions, convolutions of small maps and weight gradients, written as matrix products;
- depthwise convolutions, written as sums of shifted maps, each times its weight;
- the gradient of batch normalisation, written out;
- maximum pooling, whose gradient is a scatter, written as a comparison of shifted maps.

`with_cpu_form` joins a plain function and its CPU form.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmap_jax.numerics import at_least_float32

# Below this number of rows and columns, a product of gathered patches beats XLA's convolution.
_SMALL_MAP = 8
# From this number of rows on, XLA's convolution beats the product in the gradient of stride 2.
_LARGE_MAP = 16
# For a kernel of fewer weights, XLA's own gradient beats a matrix product that is so narrow.
_SMALL_KERNEL = 9300
# Most bytes of patches that are gathered at once, to fit into a cache; or this multiple of the
# kernel's bytes where it is more, since every product is added to an array of the kernel's size.
_PATCH_BYTES, _PATCHES_PER_KERNEL = 20 * 2**20, 4


def with_cpu_form(
    *, backward: Callable[..., Any], forward: Callable[..., Any] | None = None, arrays: int
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a plain function another algorithm on CPU.

    The decorated function has the plain function's values and gradients. Programs for a CPU hold
    the other algorithm, and programs for accelerators the plain function.

    Args:
        backward: returns the gradients on CPU, one an array; takes the arrays, the cotangent of the
            result, then the static arguments.
        forward: returns the values on CPU; takes the plain function's arguments. None: the plain
            function itself.
        arrays: number of leading arguments that are arrays; the others are static.
    """

    def decorate(plain: Callable[..., Any]) -> Callable[..., Any]:
        static = range(arrays, len(inspect.signature(plain).parameters))

        @functools.wraps(plain)
        def values(*arguments: Any) -> Any:
            inputs, settings = arguments[:arrays], arguments[arrays:]
            if forward is None:
                return plain(*arguments)
            return jax.lax.platform_dependent(
                *inputs,
                cpu=lambda *inputs: forward(*inputs, *settings),
                default=lambda *inputs: plain(*inputs, *settings),
            )

        function = jax.custom_vjp(values, nondiff_argnums=tuple(static))

        def run_forward(*arguments: Any) -> tuple[Any, tuple]:
            return function(*arguments), arguments[:arrays]

        def run_backward(*arguments: Any) -> Any:
            *settings, inputs, cotangent = arguments

            def automatic(*operands: Any) -> Any:
                pull_back = jax.vjp(lambda *inputs: plain(*inputs, *settings), *operands[:-1])[1]
                return pull_back(operands[-1])

            return jax.lax.platform_dependent(
                *inputs,
                cotangent,
                cpu=lambda *operands: backward(*operands, *settings),
                default=automatic,
            )

        function.defvjp(run_forward, run_backward)
        return function

    return decorate


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return the maps of `layers.convolve`, by a matrix product where that is faster."""
    size = kernel.shape[0]
    padding = (size // 2, size // 2)
    if size > 1 and min(x.shape[1:3]) >= max(_SMALL_MAP, size):
        return _xla_convolution(x, kernel, stride, padding)
    return _product_of_patches(x, kernel, stride, padding)


def convolution_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of `convolve` with respect to the maps and the kernel."""
    return _input_gradient(x, kernel, dy, stride), _kernel_gradient(x, kernel, dy, stride)


def _xla_convolution(
    x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


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


def _input_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
    if stride == 1:
        return convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3), 1)
    if stride == 2 and kernel.shape[0] in (1, 3) and not any(side % 2 for side in x.shape[1:3]):
        return _input_gradient_by_phases(kernel, dy)
    padding = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    _, pull_back = jax.vjp(lambda x: _xla_convolution(x, kernel, stride, padding), x)
    return pull_back(dy)[0]


def _input_gradient_by_phases(kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """Return the input's gradient for stride 2, separately for even and odd rows and columns.

    An even row of the input meets the kernel's middle row alone; an odd one meets its last row at
    the output row before and its first row at the one after. So a 2x2 convolution of ``dy`` gives
    the four phases, without the zeros of a dilated ``dy``.
    """
    batch, height, columns, _ = dy.shape
    kernel = kernel.swapaxes(2, 3)  # [k, k, F, C]
    channels = kernel.shape[-1]
    if kernel.shape[0] == 1:
        first = _product_of_patches(dy, kernel, 1, (0, 0))
        return jax.lax.pad(first, jnp.zeros((), dy.dtype), [(0, 0, 0), *[(0, 1, 1)] * 2, (0, 0, 0)])
    zero = jnp.zeros_like(kernel[0, 0])
    rows = ((1, None), (2, 0))  # for each phase, the kernel's row at this row of dy and the next
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
        dx = _xla_convolution(dy, gathered, 1, (0, 1))
    dx = dx.reshape(batch, height, columns, 2, 2, channels)
    return dx.swapaxes(2, 3).reshape(batch, 2 * height, 2 * columns, channels)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
    """Return the kernel's gradient, as matrix products of gathered patches with ``dy``."""
    size, width = kernel.shape[0], dy.shape[-1]
    columns, padding = size * size * x.shape[-1], (size // 2, size // 2)
    if size > 1 and kernel.size < _SMALL_KERNEL:
        _, pull_back = jax.vjp(lambda kernel: _xla_convolution(x, kernel, stride, padding), kernel)
        return pull_back(dy)[0]

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        patches = _patches(x, size, stride, padding).reshape(-1, columns)
        rows = dy.reshape(-1, width)
        # A product is fastest with few rows and many columns, and transposing the result is cheap.
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
        # A few images at a time, so that their patches stay in the cache.
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


def convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return the maps of `layers.convolve_depthwise`, as a sum over the kernel's positions.

    XLA fuses the sum into one pass over the maps. Its own convolution in groups takes 6 to 26
    times as long, and the gradients of that one 2 to 180 times; `benchmarks/README.md` has them by
    layer.
    """
    size = kernel.shape[0]
    outs = [-(-side // stride) for side in x.shape[1:3]]
    missing = [
        max((out - 1) * stride + size - side, 0)
        for out, side in zip(outs, x.shape[1:3], strict=True)
    ]
    padding = [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)]
    # Without the barrier, whatever computes the maps may be computed anew for every position.
    padded = jnp.pad(jax.lax.optimization_barrier(at_least_float32(x)), padding)
    spans = [(out - 1) * stride + 1 for out in outs]
    taps = (
        padded[:, i : i + spans[0] : stride, j : j + spans[1] : stride] * kernel[i, j, 0]
        for i in range(size)
        for j in range(size)
    )
    return functools.reduce(jnp.add, taps).astype(x.dtype)


def depthwise_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of `convolve_depthwise` with respect to the maps and the kernel."""
    dy = jax.lax.optimization_barrier(dy)
    return jax.vjp(lambda x, kernel: convolve_depthwise(x, kernel, stride), x, kernel)[1](dy)


def batch_norm_gradients(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients of `layers.normalize_by_batch`, in a third of the automatic one's time.

    Args:
        x: the batch, [..., C] float32 or float64.
        scale: standard deviation of the result, [C].
        bias: mean of the result, [C]; no gradient depends on it.
        cotangents: cotangents of the normalised batch, the mean and the variance; the last two are
            ignored.
        epsilon: constant that is added to the variance.

    Returns:
        The gradients of x, scale and bias.
    """
    del bias
    dy, axes = cotangents[0], tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    # The forward pass computes both too, and the compiler removes the repetition.
    mean = jnp.mean(x, axes)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), axes) + epsilon)
    dbias = jnp.sum(dy, axes)
    dscale = inverse * jnp.sum(dy * (x - mean), axes)
    # dx = scale / sigma * (dy - mean(dy) - x_hat * mean(dy * x_hat)), collected by dy, x and 1
    slope, pull = inverse * scale, inverse * dscale / count
    dx = slope * dy - (slope * pull) * x + slope * (mean * pull - dbias / count)
    return dx, dscale, dbias


def max_pool(x: jax.Array) -> jax.Array:
    """Return the maps of `layers.max_pool`, by comparing shifted maps: rows, then columns.

    The gradient of XLA's own pooling is a scatter, which takes six times as long.
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


def max_pool_gradient(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    """Return the gradient of `max_pool`."""
    return jax.vjp(max_pool, x)[1](dy)
