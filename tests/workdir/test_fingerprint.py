"""An array's checksum does not depend on its sharding, and changes with every bit."""

import jax
import ml_dtypes
import numpy as np
import pytest

from cmap_jax import sharding
from cmap_jax.workdir import fingerprint


@pytest.mark.parametrize("dtype", [np.float32, np.int32, ml_dtypes.bfloat16, np.int8, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4, 7)])
def test_host_and_device_agree(shape, dtype):
    values = np.random.default_rng(0).normal(size=shape) * 100
    with jax.enable_x64(dtype == np.float64):
        array = jax.numpy.asarray(values.astype(dtype))
        assert array.dtype == dtype
        expected = jax.device_get(fingerprint._sum(array))
        assert fingerprint._sum_on_host(array) == expected


def test_a_hand_computed_number():
    """Words 3 and 5 at positions 0 and 1; no carry passes from one half to the other."""
    low = 3 * 1 + 5 * (0x9E3779B1 | 1)
    high = 3 * 1 + 5 * (0x85EBCA77 | 1)
    expected = low % 2**32 | high % 2**32 << 32
    assert fingerprint.fingerprint({"a": jax.numpy.int32([3, 5])}) == {"a": expected}


def test_split_arrays_have_the_number_of_whole_ones():
    mesh = sharding.make_mesh()
    values = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    split = jax.device_put(values, sharding.split_over_devices(mesh))
    whole = jax.device_put(values, sharding.replicated(mesh))
    assert fingerprint.fingerprint([split]) == fingerprint.fingerprint([whole])
    values = values.copy()  # a JAX array on a CPU may share the memory of its NumPy source
    values[3, 1] = np.nextafter(values[3, 1], 9)
    assert fingerprint.fingerprint([jax.numpy.asarray(values)]) != fingerprint.fingerprint([whole])
