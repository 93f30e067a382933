"""Whether a run may continue in a workdir, and whether a checkpoint is one of that run."""

import hashlib
import json
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from cmap_jax.config_fields import FIELDS, Kind, differences, flatten
from cmap_jax.files import read_json
from cmap_jax.workdir import renamed_fields
from cmap_jax.workdir.description import (
    CONFIG,
    CONVERTED_FROM,
    is_exported,
    read_config,
    read_description,
)


def mark_of_run(config: ConfigDict) -> str:
    """Return 16 characters that differ between runs whose configs differ in a fixed field.

    Checkpoints carry this mark. Fields of `Kind.ENVIRONMENT`, which may change when a run
    continues, have no effect on it, and neither have fields that earlier versions lack, where they
    have the value that describes those versions.
    """
    environment = {path for path, field in FIELDS.items() if field.kind == Kind.ENVIRONMENT}
    kept = {
        f"config.{path}": renamed_fields.as_marked(path, value)
        for path, value in flatten(config.to_dict()).items()
        if path not in environment and not renamed_fields.is_as_before(path, value)
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def function_of_model(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of ``config.model`` that say which function a model's weights compute.

    Fields that this library does not know, such as a plug-in's, are among them. Fields that earlier
    versions lack are not, where they have the value that describes those versions.
    """
    return {
        path: value
        for path, value in flatten(config.model.to_dict(), "model").items()
        if (path not in FIELDS or FIELDS[path].kind == Kind.MODEL)
        and not renamed_fields.is_as_before(path, value)
    }


def check_same_run(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Refuse to continue in a workdir that belongs to a run with another config or seed.

    Raises:
        ValueError: lists the fields that differ and may not.
    """
    old = read_config(workdir)
    if old is None:
        return
    is_converted = CONVERTED_FROM in read_description(workdir).facts
    if is_converted or is_exported(workdir):
        raise ValueError(
            f"{os.fspath(workdir)} holds {'a converted' if is_converted else 'an exported'} model "
            "and no run that could continue; start one from it in another folder: --workdir=... "
            f"--config.init_from={os.fspath(workdir)}"
        )
    if renamed_fields.has_old_names(read_json(epath.Path(workdir) / CONFIG)):
        raise ValueError(
            f"{os.fspath(workdir)} holds a run of an earlier version of cmap_jax, which cannot "
            f"continue; start one from it in another folder: --workdir=... "
            f"--config.init_from={os.fspath(workdir)}"
        )
    new = renamed_fields.translate(config.to_dict())
    lines = differences(old.to_dict(), new, Kind.RUN)
    if lines:
        raise ValueError(
            f"{os.fspath(workdir)} holds a run with another config:\n  "
            + "\n  ".join(lines)
            + "\nChoose another folder with --workdir=..., or set these fields back to continue it"
        )
