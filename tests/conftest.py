"""Settings of the whole test run, made before JAX starts."""

import gc
import os
import shutil
import tempfile
import warnings

from command_line import QUICK_TO_COMPILE

# Everything sharded is tested on eight devices, which the CPU plays.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 "
    + QUICK_TO_COMPILE
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

# The loop's tests compile the same programs again and again; processes that tests start find them
# here too, and leave the user's own cache alone. Parallel workers share the main process's.
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not _IS_WORKER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cmap_jax_tests_")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1.0"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_sessionfinish():
    """Leave nothing behind."""
    if not _IS_WORKER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


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


@pytest.fixture
def failing_reads():
    """Collect what Orbax drops where a read fails, lest it complain in other tests."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
