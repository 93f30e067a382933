"""The flags of main.py, and errors about them that fit on a line."""

import contextlib
import difflib
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from cmap_jax import workdir as workdir_lib

MODES = ("train", "evaluate", "describe")
_OVERRIDE = re.compile(r"^--?(?:no)?config\.(?P<path>[\w.]+)")

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File with the configuration, such as configs/garments.py or configs/garments.py:debug. "
    "A field is overridden with --config.any.field=value.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default runs/<config name>. An existing one is continued."
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train; evaluate: what stands in --workdir; describe: a model's parameters, memory and FLOP.",
)
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder for compiled programs, so that the next start is quick; default in the user's cache "
    'folder; "off" for none.',
)
VERBOSE = flags.DEFINE_boolean(
    "verbose", False, "Also log every parameter, all settings, each curve's values and speeds."
)

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of several processes that are one run: HOST:PORT of process 0."
)
PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "How many processes the run has.")
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Which of them this is, from 0.")
CLUSTER = flags.DEFINE_boolean(
    "cluster",
    False,
    "Ask the cluster for these three: Cloud TPU, SLURM, Open MPI, Kubernetes. See docs/scaling.md.",
)


class UsageError(ValueError):
    """The command line is wrong; the message is for the person who typed it."""


def parse(argv: Sequence[str]) -> list[str]:
    """Parse the command line, or end the program with one line about what is wrong with it.

    In evaluate mode the config is that of the workdir, so that overrides apply to it; a --config
    beside --workdir says on which data set.
    """
    argv = list(argv)
    try:
        if _value(argv, "mode") == "evaluate":
            argv = _with_workdir_config(argv)
        if config_file := _value(argv, "config"):
            _read(config_file)  # ml_collections would put off the error to the first use
        rest = flags.FLAGS(argv)
        if rest[1:]:
            raise UsageError(f"unexpected argument {rest[1]!r}; flags begin with --")
        if CONFIG.value is None:
            raise UsageError("which config? For example --config=configs/garments.py")
    except Exception as error:  # ml_collections raises whatever the config file raises
        end_with(_explain(error, argv))
    return rest


def end_with(message: str, status: int = 2) -> NoReturn:
    """Write a message to standard error and end the program."""
    sys.stderr.write(f"main.py: {message}\n")
    sys.exit(status)


@contextlib.contextmanager
def expected_errors() -> Iterator[None]:
    """End the program with a line about what a person can mend, in place of a traceback.

    Set CMAP_TRACEBACK=1 to see the traceback all the same.
    """
    try:
        yield
    except KeyboardInterrupt:
        end_with("interrupted", status=130)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("CMAP_TRACEBACK"):
            raise
        end_with(str(error), status=1)


def workdir(config_file: str | None = None) -> str:
    """Return --workdir or its default, runs/<config name>, with the config's argument if any."""
    if WORKDIR.value:
        return WORKDIR.value
    filename = config_file or config_flags.get_config_filename(flags.FLAGS["config"])
    return default_workdir(filename)


def default_workdir(config_file: str) -> str:
    """Return runs/<config name>[-<argument>] for a --config value."""
    path, _, argument = config_file.partition(":")
    parts = [pathlib.Path(path).stem, *argument.split(",")]
    return os.path.join("runs", "-".join(filter(None, parts)))


def _value(argv: Sequence[str], name: str) -> str | None:
    """Return a flag's value as typed, before absl parses it."""
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            return value if equals else next(iter(argv[i + 1 : i + 2]), None)
    return None


def _with_workdir_config(argv: list[str]) -> list[str]:
    """Return the arguments with --config reading the workdir's own config."""
    config_file, folder = _value(argv, "config"), _value(argv, "workdir")
    if folder is None and config_file is None:
        raise UsageError("evaluate which run? Give --workdir=...")
    data_set = ""
    if folder is None:
        folder = default_workdir(config_file)
    elif config_file is not None:
        _read(config_file)  # refuses what is no config
        data_set = f"|{config_file}"
    workdir_lib.read_description(folder)  # refuses what is no workdir, with the reason
    reader = pathlib.Path(__file__).parents[2] / "configs" / "from_workdir.py"
    program, *others = argv
    for name in ("config", "workdir"):
        for at, argument in enumerate(others):
            if argument.lstrip("-").partition("=")[0] == name:
                del others[at : at + (1 if "=" in argument else 2)]
                break
    return [program, f"--config={reader}:{folder}{data_set}", f"--workdir={folder}", *others]


def _explain(error: Exception, argv: Sequence[str]) -> str:
    """Return one line that says what is wrong with the command line, and the remedy."""
    config_file = _value(argv, "config")
    try:
        config = _read(config_file) if config_file else None
    except Exception as error_of_file:
        return str(error_of_file)
    if config is None and any(_OVERRIDE.match(a) for a in argv):
        return "overrides need a config: --config=configs/garments.py"
    for argument in argv:
        match = _OVERRIDE.match(argument)
        if match is None:
            continue
        path = match["path"]
        problem = _unknown_field(config, path)
        if problem:
            return problem
        if isinstance(error, flags.IllegalFlagValueError) and f"config.{path}=" in str(error):
            typed = str(error).partition(f"config.{path}=")[2].partition(":")[0]
            return f"config.{path} takes {_expected(config, path)}, not {typed!r}"
    return " ".join(str(error).split())


def _read(config_file: str) -> ConfigDict:
    """Run a config file, with the argument after its colon."""
    path, colon, argument = config_file.partition(":")
    if not os.path.isfile(path):
        raise UsageError(f"no config file {path}")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise UsageError(f"{path} is no config file: it has no get_config")
    return get_config(argument) if colon else get_config()


def _unknown_field(config: ConfigDict, path: str) -> str | None:
    """Return a line about the first part of a field's path that does not exist, or None."""
    here: Any = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(here, ConfigDict) or part not in here:
            everywhere = _all_fields(config)
            near = difflib.get_close_matches(path, everywhere, 3, 0.5)
            near += [f for f in everywhere if f.split(".")[-1] == parts[-1] and f not in near]
            hint = ", ".join(f"config.{name}" for name in near)
            where = "config." + ".".join(parts[: depth + 1])
            return f"there is no field {where}" + (f"; nearest: {hint}" if hint else "")
        here = here[part]
    return None


def _all_fields(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            names += _all_fields(value, f"{prefix}{key}.")
        else:
            names.append(prefix + key)
    return names


def _expected(config: ConfigDict, path: str) -> str:
    """Return the name of the type that a field takes."""
    *parents, name = path.split(".")
    here = config
    for part in parents:
        here = here[part]
    kind = here.get_type(name)
    known = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return known.get(kind, f"a {kind.__name__}")
