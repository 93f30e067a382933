"""Optional test dependencies: skip without them, or fail where they are required."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def require(module_name: str) -> ModuleType:
    """Import and return a module that only some tests need.

    Works at module level and inside a test. Where the module is not installed, the test module (or
    test) is skipped; with the environment variable ``CMAP_REQUIRE_OPTIONAL=1`` it fails instead, so
    that a run that is meant to be complete cannot pass by skipping. A module that is installed but
    breaks on import is an error in both cases.
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        reason = f"optional test dependency {module_name!r} is not installed ({error})"
    if os.environ.get("CMAP_REQUIRE_OPTIONAL") == "1":
        pytest.fail(reason + " and CMAP_REQUIRE_OPTIONAL=1", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
