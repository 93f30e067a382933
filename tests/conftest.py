"""Settings of the whole test run, made before JAX starts."""

import os

# Everything sharded is tested on eight devices, which the CPU plays.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    # Tests compile far more than they compute.
    " --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import jax
import pytest


@pytest.fixture
def x64():
    """Compute in float64 within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def real_data():
    """The folder of real annotations and photographs, or a skip."""
    folder = os.environ.get("CMAP_REAL_DATA")
    if not folder:
        pytest.skip("CMAP_REAL_DATA names no folder")
    import pathlib

    return pathlib.Path(folder)
