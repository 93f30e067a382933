"""Compiled programs are kept where they should be."""

import pathlib

import jax
import pytest

from cmap_jax.cli.compilation_cache import use_compilation_cache


@pytest.fixture
def setting():
    """JAX's own setting, put back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_folders(setting, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compilation_cache(None)
    assert setting() == str(tmp_path / "cmap_jax" / "compiled")
    use_compilation_cache("elsewhere")
    assert setting() == "elsewhere"
    use_compilation_cache(None)  # JAX's own setting goes first
    assert setting() == "elsewhere"
    use_compilation_cache("off")
    assert setting() is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    use_compilation_cache(None)
    assert pathlib.Path(setting()) == pathlib.Path.home() / ".cache" / "cmap_jax" / "compiled"
