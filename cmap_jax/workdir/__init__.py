"""A self-describing model on disk; `cmap_jax.workdir.description` lists its files."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.workdir import (
        about,
        config_form,
        description,
        event_files,
        fingerprint,
        lock,
        lock_owner,
        renamed_fields,
        same_run,
        tensors,
        weights,
    )

__all__ = [
    "about",
    "config_form",
    "description",
    "event_files",
    "fingerprint",
    "lock",
    "lock_owner",
    "renamed_fields",
    "same_run",
    "tensors",
    "weights",
]
