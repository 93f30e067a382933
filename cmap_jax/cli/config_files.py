"""Config files as --config names them: Python with a `get_config`, or a workdir's config.json."""

import difflib
import pathlib
import runpy
import traceback
from typing import Any

from ml_collections import ConfigDict

from cmap_jax.cli.errors import UsageError
from cmap_jax.workdir import renamed_fields

# In a checkout and where the package is installed alike.
_FOLDER = pathlib.Path(__file__).parents[2] / "configs"
_FROM_WORKDIR = _FOLDER / "from_workdir.py"
_KNOWN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_NOT_OF_DATA = ("__init__", "default", "from_workdir")


def names() -> list[str]:
    """Return the config files that come with the package, as they are typed."""
    return [f"configs/{p.name}" for p in sorted(_FOLDER.glob("*.py")) if p.stem not in _NOT_OF_DATA]


def find(config_file: str) -> str:
    """Return a --config value with the path of its file.

    One of the package's own configs, ``configs/garments.py``, is found from any folder.

    Raises:
        UsageError: there is no such file; names those that come near.
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
    """Tell whether a --config value is a stored config."""
    return config_file is not None and config_file.endswith(".json")


def workdir_of(config_file: str) -> str | None:
    """Return the workdir that a stored config describes, or None."""
    path = pathlib.Path(config_file)
    return str(path.parent) if path.name == "config.json" and _has_model(path.parent) else None


def from_workdir(source: str, data_config: str | None = None) -> str:
    """Return the --config value that reads a workdir's config, or a stored one.

    Args:
        source: the workdir, or the JSON file.
        data_config: a config on whose data set it is to be evaluated, or None.
    """
    other = "" if data_config is None else f"|{data_config}"
    return f"{_FROM_WORKDIR}:{source}{other}"


def read(config_file: str) -> ConfigDict:
    """Run a config file, with the argument after its colon.

    Raises:
        UsageError: there is none, or it does not give a whole config; says which line raised.
    """
    path, colon, argument = find(config_file).partition(":")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UsageError(f"{path} is no config file: it has no get_config")
        config = get_config(argument) if colon else get_config()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(_explain(error, path)) from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path}: its get_config must return a ConfigDict, not {config!r:.80}")
    # A workdir that an earlier version wrote may have fields that no longer exist.
    if path != str(_FROM_WORKDIR):
        _check_fields(config, path)
    return config


def check_json(path: str) -> None:
    """Refuse a stored config that is broken, or has a field that does not exist.

    Raises:
        UsageError: says what is wrong with it.
    """
    _check_fields(read(from_workdir(path)), path)


def unknown_field(config: ConfigDict, path: str) -> str | None:
    """Return a line about the first part of a field's path that does not exist, or None."""
    if names := renamed_fields.new_names(path):
        return f"config.{path} is now {' and '.join(f'config.{name}' for name in names)}"
    here: Any = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(here, ConfigDict) or part not in here:
            everywhere = list(flatten(config))
            near = difflib.get_close_matches(path, everywhere, 3, 0.5)
            near += [f for f in everywhere if f.split(".")[-1] == parts[-1] and f not in near]
            hint = ", ".join(f"config.{name}" for name in near)
            where = "config." + ".".join(parts[: depth + 1])
            return f"there is no field {where}" + (f"; nearest: {hint}" if hint else "")
        here = here[part]
    return None


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return a config's values by path, "train.epochs"."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value
    return values


def expected_type(config: ConfigDict, path: str) -> str:
    """Return the name of the type that a field takes."""
    *parents, name = path.split(".")
    here = config
    for part in parents:
        here = here[part]
    kind = here.get_type(name)
    return _KNOWN.get(kind, f"a {kind.__name__}")


def _has_model(folder: pathlib.Path) -> bool:
    return (folder / "model.json").is_file()


def _check_fields(config: ConfigDict, path: str) -> None:
    """Refuse a config with fields that nothing reads, or without some that are read."""
    whole = runpy.run_path(str(_FOLDER / "default.py"))["get_config"]()
    for field in flatten(config):
        if problem := unknown_field(whole, field):
            raise UsageError(f"{path}: {problem}")
    missing = [field for field in flatten(whole) if unknown_field(config, field)]
    if missing:
        raise UsageError(
            f"{path} lacks config.{missing[0]}"
            + (f" and {len(missing) - 1} other fields" if len(missing) > 1 else "")
            + ": begin with configs/default.py's get_config, and change what differs"
        )


def _explain(error: Exception, path: str) -> str:
    """Return what a config file raised, and where in it."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    ours = path == str(_FROM_WORKDIR) or frames[-1].filename != path
    if ours and isinstance(error, ValueError | OSError):  # meant for people
        return text
    lines = [frame.lineno for frame in frames if frame.filename == path]
    number = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
    where = f" in line {number}" if number else ""
    return f"{path} raises {type(error).__name__}{where}: {text}"
