"""main.py as it is started from a shell, and the same within the test's own process."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
import unittest.mock
import warnings

ROOT = pathlib.Path(__file__).parents[1]

# Code generation that takes a third of the time and gives slower code. Tests compute little, and
# parallel workers leave no idle core for the compilation of one module in parts.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)


def run(
    *arguments: str, timeout: float = 600, cwd=None, xla_flags: str = QUICK_TO_COMPILE
) -> subprocess.CompletedProcess:
    """Run main.py as from a shell, without the test run's JAX settings."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    environment["PYTHONPATH"] = str(ROOT)
    environment["XLA_FLAGS"] = xla_flags
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=cwd or ROOT,
    )


def call(*arguments: str) -> subprocess.CompletedProcess:
    """Do in this process what main.py does, with the test run's devices and compilation cache.

    It takes no start of an interpreter and no imports, which are seconds for JAX and TensorFlow.
    """
    from absl import flags as absl_flags
    from absl import logging

    from cmap_jax.cli import flags, train

    verbosity, filters = logging.get_verbosity(), list(logging.get_absl_handler().filters)
    out, err, status = io.StringIO(), io.StringIO(), 0
    line = ["main.py", *arguments]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        unittest.mock.patch.object(sys, "argv", line),  # ml_collections looks for overrides there
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            flags.parse(line)
            train._main(line)
        except SystemExit as ended:
            status = ended.code
        finally:
            absl_flags.FLAGS.unparse_flags()
            for name in [name for name in absl_flags.FLAGS if name.startswith("config.")]:
                delattr(absl_flags.FLAGS, name)  # one was defined for each override
            logging.set_verbosity(verbosity)
            logging.get_absl_handler().filters[:] = filters
    return subprocess.CompletedProcess(line, status, out.getvalue(), err.getvalue())
