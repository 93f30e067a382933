"""main.py as it is started from a shell."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]

# XLA compiles in half the time to slower code: what a test needs that computes little.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def run(
    *arguments: str, timeout: float = 600, cwd=None, xla_flags: str = QUICK_TO_COMPILE
) -> subprocess.CompletedProcess:
    """Run main.py as from a shell: without the test run's JAX settings."""
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
