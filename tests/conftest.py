"""Settings of the whole test run, made before JAX starts, and fixtures that many files use."""

import contextlib
import gc
import os
import pathlib
import shutil
import tempfile
import unittest.mock
import warnings

from command_line import QUICK_TO_COMPILE

# Everything sharded is tested on eight virtual CPU devices.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 "
    + QUICK_TO_COMPILE
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# A worker has one core: more threads of NumPy and PyTorch would spin and wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests of the training loop compile the same programs again and again. All parallel workers and the
# processes that tests start share one compilation cache, apart from the user's own. It is removed
# at the end, unless CMAP_TEST_CACHE names a folder, which then serves several runs of pytest.
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
_KEPT_CACHE = os.environ.get("CMAP_TEST_CACHE")
if not _IS_WORKER:
    cache = _KEPT_CACHE or tempfile.mkdtemp(prefix="cmap_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# The time that an example takes depends on the load of the machine.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# Tracing allocates millions of objects that live on: full collections cost time and free little.
gc.set_threshold(50_000, 50, 100)

# Files whose tests compile most, the most expensive first.
_EXPENSIVE = (
    "test_train_loop.py",
    "test_main.py",
    "test_parity.py",
    "test_training.py",
    "test_initial_weights.py",
    "test_evaluator.py",
    "test_gradients.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the expensive files, lest one worker still runs them when the others are idle."""
    rank = {name: number for number, name in enumerate(_EXPENSIVE)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_sessionfinish():
    """Remove the compilation cache."""
    if not (_IS_WORKER or _KEPT_CACHE):
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@contextlib.contextmanager
def _shallow_resnet():
    from cmap_jax.models.encoders import resnet

    with unittest.mock.patch.dict(resnet.DEPTHS, {18: ((0, 1, 1, 1), False)}):
        yield


@pytest.fixture
def shallow():
    """Leave ResNet-18 one block in each of its last three stages, which halves compilation.

    For tests of something else than the network. Other processes have the whole ResNet-18.
    """
    with _shallow_resnet():
        yield


@pytest.fixture(scope="module")
def shallow_module():
    """Leave ResNet-18 three blocks, as `shallow` does, in all tests and fixtures of a file."""
    with _shallow_resnet():
        yield


@pytest.fixture
def x64():
    """Compute in float64 within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def real_data():
    """Return the folder of real annotations and photographs, or skip the test."""
    folder = os.environ.get("CMAP_REAL_DATA")
    if not folder:
        pytest.skip("CMAP_REAL_DATA names no folder")
    return pathlib.Path(folder)


@pytest.fixture
def failing_reads():
    """Collect the coroutines that Orbax drops after a failed read, before another test runs."""
    yield
    _collect()


@pytest.fixture(scope="module")
def module_of_failing_reads():
    """Do the same once for a module, whose tests ignore what the coroutines say: it takes long."""
    yield
    _collect()


def _collect() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
