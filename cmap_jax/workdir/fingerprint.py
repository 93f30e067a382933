"""Checksums of the arrays of a state, to verify a checkpoint when it is read.

A checksum is computed on the array's own devices, or by NumPy for an array on a CPU. It does not
depend on how the array is sharded: it is a sum of integers modulo 2^32, equal in any order.
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
    """Return a 64-bit checksum for each array of a tree, keyed by the array's path ("params/w")."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    with jax.enable_x64(any(x.dtype.itemsize == 8 for _, x in named)):
        # One program is compiled for each shape; a parameter shares it with its moments and with
        # layers of the same shape. The programs run one after the other: on a CPU that emulates
        # several devices, collectives of concurrent programs can deadlock for want of threads.
        halves = [_sum_on_host(x) if is_on_host(x) else jax.device_get(_sum(x)) for _, x in named]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(low) | int(high) << 32
        for (path, _), (low, high) in zip(named, halves, strict=True)
    }


def check_fingerprint(tree: Any, expected: Mapping[str, int]) -> None:
    """Refuse arrays whose checksums are not the expected ones.

    Args:
        tree: the arrays that were read, all of those that were saved or a subset.
        expected: the `fingerprint` of the arrays that were saved.

    Raises:
        ValueError: names up to three arrays that differ.
    """
    wrong = [name for name, number in fingerprint(tree).items() if expected.get(name) != number]
    if wrong:
        raise ValueError(f"it is damaged: {', '.join(wrong[:3])} is not what was saved")


def digest(tree: Any) -> str:
    """Return 16 hexadecimal characters that identify the content of a tree's arrays."""
    numbers = json.dumps(fingerprint(tree), sort_keys=True)
    return hashlib.sha256(numbers.encode()).hexdigest()[:16]


def is_on_host(x: np.ndarray | jax.Array) -> bool:
    """Return whether this process's CPU memory holds all of an array, so that NumPy can read it."""
    if isinstance(x, np.ndarray):
        return True
    on_cpu = all(device.platform == "cpu" for device in x.devices())
    return on_cpu and (x.is_fully_addressable or x.is_fully_replicated)


def _sum_on_host(x: np.ndarray | jax.Array) -> tuple[np.uint32, np.uint32]:
    """Return the result of `_sum`, computed by NumPy without compiling a program."""
    values = np.asarray(x).ravel()
    words = values.view(f"uint{8 * min(values.itemsize, 4)}").astype(np.uint32)
    position = np.arange(words.size, dtype=np.uint32)
    low, high = _weigh(words, position)
    return np.sum(low, dtype=np.uint32), np.sum(high, dtype=np.uint32)


def _weigh(bits: Any, position: Any) -> tuple[Any, Any]:
    """Multiply each word by two weights that depend on its position; uint32, NumPy or JAX."""
    first = position * np.uint32(0x9E3779B1) | np.uint32(1)
    second = (position ^ position >> np.uint32(15)) * np.uint32(0x85EBCA77) | np.uint32(1)
    return bits * first, (bits ^ bits >> np.uint32(16)) * second


@jax.jit
def _sum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the low and the high half of an array's checksum, two uint32 scalars."""
    if x.dtype.itemsize == 8:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)  # a last axis of two
    else:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    low, high = _weigh(bits, position)
    return jnp.sum(low, dtype=jnp.uint32), jnp.sum(high, dtype=jnp.uint32)
