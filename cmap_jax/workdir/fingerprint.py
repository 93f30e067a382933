"""A number for the content of each array of a state, to recognise it by when it is read again.

It is computed where the arrays are, on a CPU by NumPy, and does not depend on how they are split
over devices: sums of integers, which wrap around and come out alike in any order.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(tree: Any) -> dict[str, int]:
    """Return a 64-bit number for each array of a tree, by its path."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    with jax.enable_x64(any(x.dtype.itemsize == 8 for _, x in named)):
        # One program a shape: a parameter and its moments, and like layers, share it. One at a
        # time: where the CPU plays several devices, programs whose parts wait for one another may
        # share too few threads, and wait for ever.
        halves = [_sum_on_host(x) if _is_on_host(x) else jax.device_get(_sum(x)) for _, x in named]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(low) | int(high) << 32
        for (path, _), (low, high) in zip(named, halves, strict=True)
    }


def check_fingerprint(tree: Any, expected: Mapping[str, int]) -> None:
    """Refuse arrays that are not those that ``expected`` was computed of, or some of them.

    Raises:
        ValueError: names them.
    """
    wrong = [name for name, found in fingerprint(tree).items() if expected.get(name) != found]
    if wrong:
        raise ValueError(f"it is damaged: {', '.join(wrong[:3])} is not what was saved")


def digest(tree: Any) -> str:
    """Return 16 characters that tell the content of a tree's arrays from any other content."""
    numbers = json.dumps(fingerprint(tree), sort_keys=True)
    return hashlib.sha256(numbers.encode()).hexdigest()[:16]


def _is_on_host(x: np.ndarray | jax.Array) -> bool:
    """Tell whether NumPy can read an array in place, as all of one CPU device's."""
    if isinstance(x, np.ndarray):
        return True
    on_cpu = all(device.platform == "cpu" for device in x.devices())
    return on_cpu and (x.is_fully_addressable or x.is_fully_replicated)


def _sum_on_host(x: np.ndarray | jax.Array) -> tuple[np.uint32, np.uint32]:
    """Return what `_sum` does, without a program to be compiled for the array's shape."""
    values = np.asarray(x).ravel()
    words = values.view(f"uint{8 * min(values.itemsize, 4)}").astype(np.uint32)
    place = np.arange(words.size, dtype=np.uint32)
    low, high = _weigh(words, place)
    return np.sum(low, dtype=np.uint32), np.sum(high, dtype=np.uint32)


def _weigh(bits: Any, place: Any) -> tuple[Any, Any]:
    """Multiply words by two numbers made of their places; uint32 arrays of NumPy or JAX."""
    first = place * np.uint32(0x9E3779B1) | np.uint32(1)
    second = (place ^ place >> np.uint32(15)) * np.uint32(0x85EBCA77) | np.uint32(1)
    return bits * first, (bits ^ bits >> np.uint32(16)) * second


@jax.jit
def _sum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum an array's bits, each word times two numbers made of its place."""
    if x.dtype.itemsize == 8:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)  # a last axis of two
    else:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    low, high = _weigh(bits, place)
    return jnp.sum(low, dtype=jnp.uint32), jnp.sum(high, dtype=jnp.uint32)
