"""The files that --config names: Python with a `get_config`, or a workdir's config.json."""

import difflib
import json
import pathlib
import runpy
import traceback
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from cmap_jax.cli.errors import UsageError
from cmap_jax.config_fields import FIELDS, flatten
from cmap_jax.workdir import renamed_fields

# `configs` lies beside `cmap_jax`, in a checkout and in an installation.
_FOLDER = pathlib.Path(__file__).parents[2] / "configs"
_FROM_WORKDIR = pathlib.Path(__file__).with_name("from_workdir.py")
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
_NOT_LISTED = ("__init__", "default", "towers")  # modules of the folder that are not for --config


def names() -> list[str]:
    """Return the config files of the package as a user types them, "configs/garments.py"."""
    return [f"configs/{p.name}" for p in sorted(_FOLDER.glob("*.py")) if p.stem not in _NOT_LISTED]


def find(config_file: str) -> str:
    """Return a --config value with the path of its file.

    The package's own configs, such as ``configs/garments.py``, are found from any folder.

    Raises:
        UsageError: there is no such file; names the nearest ones.
    """
    path, colon, argument = config_file.partition(":")
    if is_json(path) and colon:
        raise UsageError(f"{path} is a stored config, which takes no argument after a colon")
    if pathlib.Path(path).is_file():
        return config_file
    if path in names():
        return f"{_FOLDER.parent / path}{colon}{argument}"
    if (pathlib.Path(path) / "config.json").is_file():
        raise UsageError(f"{path} is a folder; its config is --config={path}/config.json")
    near = difflib.get_close_matches(path, names(), 1, 0.6)
    near = near or [n for n in names() if pathlib.Path(n).stem == pathlib.Path(path).stem]
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
    raise UsageError(f"no config file {path}; {hint}")


def is_json(config_file: str | None) -> bool:
    """Return whether a --config value names a stored config, a JSON file."""
    return config_file is not None and config_file.endswith(".json")


def workdir_of(config_file: str) -> str | None:
    """Return the workdir that holds a stored config; None for a file outside any workdir."""
    path = pathlib.Path(config_file)
    return str(path.parent) if path.name == "config.json" and _has_model(path.parent) else None


def from_workdir(source: str, data_config: str | None = None) -> str:
    """Return a --config value that reads the config of a workdir or a JSON file.

    Args:
        source: path of the workdir, or of the JSON file.
        data_config: a --config value whose data set replaces the stored one; None to keep it.
    """
    plain = data_config is None and not source.startswith("[")
    return f"{_FROM_WORKDIR}:{source if plain else json.dumps([source, data_config])}"


def read(config_file: str) -> ConfigDict:
    """Return the config of a Python file, called with the argument after its colon.

    Raises:
        UsageError: no such file, or no whole config in it; names the line that raised.
    """
    path, colon, argument = find(config_file).partition(":")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UsageError(f"{path} is not a config file: it has no get_config")
        config = get_config(argument) if colon else get_config()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(_explain(error, path)) from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path}: its get_config must return a ConfigDict, not {config!r:.80}")
    # A workdir that an earlier version wrote may hold fields that no longer exist: accept those.
    if path != str(_FROM_WORKDIR):
        _check_fields(config, path)
    return config


def read_hyper(config_file: str) -> Callable[[Any], Any] | None:
    """Return a function that calls the ``get_hyper`` of a Python file; None where it has none.

    The function raises UsageError where ``get_hyper`` raises or returns no list of dicts.

    Raises:
        UsageError: no such file, or it raises when it is read; names the line.
    """
    path = find(config_file).partition(":")[0]
    if is_json(path):
        return None
    try:
        get_hyper = runpy.run_path(path).get("get_hyper")
    except Exception as error:
        raise UsageError(_explain(error, path)) from error
    if get_hyper is None:
        return None

    def call(hyper: Any) -> Any:
        try:
            settings = get_hyper(hyper)
        except Exception as error:
            raise UsageError(_explain(error, path)) from error
        if not isinstance(settings, list) or not all(isinstance(row, dict) for row in settings):
            raise UsageError(
                f"{path}: its get_hyper must return a list of dicts, not {settings!r:.80}"
            )
        return settings

    return call


def check_json(path: str) -> None:
    """Refuse a stored config that is broken, or has a field that does not exist.

    Raises:
        UsageError: names the file and the mistake.
    """
    _check_fields(read(from_workdir(path)), path)


def unknown_field(path: str) -> str | None:
    """Return a message if a path such as "train.epochs" names no field; None if it does."""
    if names := renamed_fields.new_names(path):
        return f"config.{path} is now {' and '.join(f'config.{name}' for name in names)}"
    parts = path.split(".")
    for depth in range(1, len(parts) + 1):
        part = ".".join(parts[:depth])
        if part not in FIELDS and not any(field.startswith(f"{part}.") for field in FIELDS):
            near = difflib.get_close_matches(path, FIELDS, 3, 0.5)
            near += [f for f in FIELDS if f.split(".")[-1] == parts[-1] and f not in near]
            hint = ", ".join(f"config.{name}" for name in near)
            return f"there is no field config.{part}" + (f"; nearest: {hint}" if hint else "")
    return None


def expected_type(config: ConfigDict, path: str) -> str:
    """Return the type of a field in words, such as "a whole number"."""
    *parents, name = path.split(".")
    here = config
    for part in parents:
        here = here[part]
    kind = here.get_type(name)
    return _TYPES.get(kind, f"a {kind.__name__}")


def _has_model(folder: pathlib.Path) -> bool:
    return (folder / "model.json").is_file()


def _check_fields(config: ConfigDict, path: str) -> None:
    """Refuse a config with a field that is not in the table, or without one that is."""
    fields = flatten(config)
    for field in fields:
        if problem := unknown_field(field):
            raise UsageError(f"{path}: {problem}")
    missing = [field for field in FIELDS if field not in fields]
    if missing:
        raise UsageError(
            f"{path} lacks config.{missing[0]}"
            + (f" and {len(missing) - 1} other fields" if len(missing) > 1 else "")
            + ": begin with configs/default.py's get_config, and change what differs"
        )


def _explain(error: Exception, path: str) -> str:
    """Return the error that a config file raised, with its line in the file."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    ours = path == str(_FROM_WORKDIR) or frames[-1].filename != path
    if ours and isinstance(error, ValueError | OSError):  # its message is for the user
        return text
    lines = [frame.lineno for frame in frames if frame.filename == path]
    number = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
    where = f" in line {number}" if number else ""
    return f"{path} raises {type(error).__name__}{where}: {text}"
