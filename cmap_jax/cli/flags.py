"""The flags of main.py; a mistake in them is answered with one line."""

import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from cmap_jax.cli import config_files
from cmap_jax.cli.arguments import expand_fields, expand_flags
from cmap_jax.cli.errors import UsageError, expected_errors
from cmap_jax.config_fields import flatten

MODES = ("train", "evaluate", "describe")
_HELP = re.compile(r"--?(h|help|helpshort|helpfull|\?)")
_OVERRIDE = re.compile(r"^--?(?:no)?config\.(?P<path>[\w.]+)")

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File with the configuration, such as configs/garments.py or configs/garments.py:debug, or a "
    "workdir's config.json; default: the config of --workdir. --config.any.field=value overrides a "
    "field.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; default: runs/<config name>. A run that it holds is continued, with its "
    "own config if no --config is given.",
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train; evaluate: the model in --workdir, on the data set of --config if that is given too; "
    "describe: print a model's parameters, memory and FLOP.",
)
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder for compiled programs, which later runs reuse; default: a folder in the user's cache; "
    '"off": none.',
)
VERBOSE = flags.DEFINE_boolean(
    "verbose", False, "Also log all parameters, settings, metrics and speeds."
)

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for a run of several processes."
)
PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "Number of processes of the run.")
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Index of this process, from 0.")
CLUSTER = flags.DEFINE_boolean(
    "cluster",
    False,
    "Take these three from the cluster: Cloud TPU, SLURM, Open MPI or Kubernetes; see "
    "docs/scaling.md.",
)


def parse(argv: Sequence[str]) -> list[str]:
    """Parse the command line, or end the program with one line that names the mistake.

    Without --config, and always in evaluate mode, the config is the workdir's; there a --config
    beside --workdir names the data set. Overrides change the config that results.

    Args:
        argv: the program's name, then the flags.

    Returns:
        The program's name alone: there are no positional arguments.
    """
    argv = list(argv)
    program = os.path.basename(argv[0])
    with expected_errors(program, status=2):
        if any(_HELP.fullmatch(argument) for argument in argv[1:]):
            print(usage(program, _value(argv, "config")))
            sys.exit(0)
        argv = _with_config(expand_flags(argv))
        # Read before absl does: ml_collections would report the file's errors much later.
        config = config_files.read(_value(argv, "config"))
        try:
            rest = flags.FLAGS(argv)
        except Exception as error:  # absl and ml_collections raise errors of many classes
            raise UsageError(_explain(error, argv, config)) from error
        if rest[1:]:
            raise UsageError(f"unexpected argument {rest[1]!r}; flags begin with --")
        expand_fields(CONFIG.value)
        flags.FLAGS["config"].value = _fill_pretrained(CONFIG.value, argv)
    return rest


def read_config(config_file: str, overrides: Sequence[str]) -> ConfigDict:
    """Return a config with overrides, for a command that has flags of its own beside these.

    Args:
        config_file: a --config value.
        overrides: arguments such as "--config.train.epochs=2".

    Raises:
        UsageError: no such config or field, or an impossible value; names it.
    """
    config = config_files.read(_readable(config_file))
    argv, values = ["cmap", *overrides], flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except Exception as error:  # absl and ml_collections raise errors of many classes
        raise UsageError(_explain(error, argv, config)) from error
    if rest[1:]:
        raise UsageError(f"unexpected argument {rest[1]!r}; write --config.field=value")
    expand_fields(values.config)
    return _fill_pretrained(values.config, argv)


def _fill_pretrained(config: ConfigDict, argv: Sequence[str]) -> ConfigDict:
    """Return a config with what its ``model.pretrained`` stands for; fields in argv stay."""
    if not config.model.pretrained:
        return config
    # Imported here since it loads JAX: --help and a mistyped flag are answered before that.
    from cmap_jax.convert.hugging_face import fill_pretrained

    typed = frozenset(match["path"] for a in argv if (match := _OVERRIDE.match(a)))
    return fill_pretrained(config, typed)


def usage(program: str, config_file: str | None = None) -> str:
    """Return the text of --help: the flags, and the names of all configs or one config's fields.

    Args:
        program: the name by which the program was started.
        config_file: a --config value whose fields are listed; None lists the configs.

    Raises:
        UsageError: ``config_file`` is not a config.
    """
    examples = (
        "--config=configs/garments.py",
        "--mode=evaluate --workdir=runs/garments",
        "--mode=describe --config=configs/fashioniq.py",
    )
    # Flags that other packages define have no use here and are left out.
    own = [flag.name for flag in flags.FLAGS.flags_by_module_dict()[__name__]]
    parts = [
        "Train, evaluate or describe a model.",
        "\n".join(f"  {command(program)} {example}" for example in examples),
        *map(_flag_help, own),
    ]
    if config_file is None:
        more = f"{command(program)} --config=configs/garments.py --help"
        parts.append(
            textwrap.fill(f"Configs: {', '.join(config_files.names())}", 96) + f"\nFields: {more}"
        )
    else:
        fields = flatten(config_files.read(_readable(config_file)))
        parts.append("\n".join(f"--config.{name}={value}" for name, value in fields.items()))
    return "\n\n".join(parts)


def command(program: str) -> str:
    """Return the command without its flags: "python main.py" for "main.py", else the program."""
    return f"python {program}" if program.endswith(".py") else program


def _flag_help(name: str) -> str:
    flag, indent = flags.FLAGS[name], " " * 4
    value = f"={'|'.join(MODES)}" if name == "mode" else "" if flag.boolean else "=..."
    words = flag.help.removeprefix(f"<{'|'.join(MODES)}>: ")
    text = textwrap.fill(words, 96, initial_indent=indent, subsequent_indent=indent)
    return f"--{name}{value}\n{text}"


def default_workdir(config_file: str) -> str:
    """Return the workdir of a --config value that comes without --workdir.

    It is runs/<config name>[-<argument>], or the workdir that holds the config if it is a stored
    one: that run continues.
    """
    if own := config_files.workdir_of(config_file):
        return own
    path, _, argument = config_file.partition(":")
    parts = [pathlib.Path(path).stem, *argument.split(",")]
    return os.path.join("runs", "-".join(filter(None, parts)))


def _value(argv: Sequence[str], name: str) -> str | None:
    """Return a flag's value as typed, before absl parses it; the last of several counts."""
    typed = None
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            typed = value if equals else next(iter(argv[i + 1 : i + 2]), None)
    return typed


def _with_config(argv: Sequence[str]) -> list[str]:
    """Return the arguments with both --config and --workdir, as ml_collections can read them.

    Raises:
        UsageError: no config or run is named, or the one named does not exist.
        FileNotFoundError, ValueError: not a workdir, or a broken one.
    """
    config_file, folder = _value(argv, "config"), _value(argv, "workdir")
    if _value(argv, "mode") == "evaluate":
        return _with_workdir_config(argv)
    if config_file is not None:
        return _replaced(argv, _readable(config_file), folder or default_workdir(config_file))
    if folder is None and any(_OVERRIDE.match(a) for a in argv):
        raise UsageError("overrides need a config: --config=configs/garments.py")
    if folder is None:
        raise UsageError(
            "which config? For example --config=configs/garments.py; --help lists flags and configs"
        )
    # Imported here since it loads JAX: --help and a mistyped flag are answered before that.
    from cmap_jax.workdir import description as workdir_lib

    if workdir_lib.read_config(folder) is None:
        raise UsageError(
            f"which config? {folder} is not a workdir that holds one; name one, such as "
            "--config=configs/garments.py"
        )
    return _replaced(argv, config_files.from_workdir(folder), folder)


def _with_workdir_config(argv: Sequence[str]) -> list[str]:
    """Return the arguments of evaluate mode with --config reading the workdir's config."""
    config_file, folder = _value(argv, "config"), _value(argv, "workdir")
    if folder is None and config_file is None:
        raise UsageError("evaluate which run? Give --workdir=...")
    data_config = None
    if folder is None:
        config_files.find(config_file)
        folder = default_workdir(config_file)
    elif config_file is not None:
        data_config = _readable(config_file)
        config_files.read(data_config)
    from cmap_jax.workdir import description as workdir_lib

    workdir_lib.read_description(folder)  # raises for a folder that is not a workdir
    return _replaced(argv, config_files.from_workdir(folder, data_config), folder)


def _readable(config_file: str) -> str:
    """Return a --config value as ml_collections can read it.

    Raises:
        UsageError: no such file, or a JSON file that is broken.
    """
    config_file = config_files.find(config_file)
    if not config_files.is_json(config_file):
        return config_file
    config_files.check_json(config_file)
    return config_files.from_workdir(config_file)


def _replaced(argv: Sequence[str], config_file: str, folder: str) -> list[str]:
    """Return the arguments with these values of --config and --workdir, before all others."""
    program, *typed = argv
    others = iter(typed)
    kept = []
    for argument in others:
        if argument in ("--config", "-config", "--workdir", "-workdir"):
            next(others, None)  # skips the flag's value
        elif not re.match("--?(config|workdir)=", argument):
            kept.append(argument)
    return [program, f"--config={config_file}", f"--workdir={folder}", *kept]


def _explain(error: Exception, argv: Sequence[str], config: ConfigDict) -> str:
    """Return one line with the mistake in the command line and its remedy."""
    if "before a value for --config" in str(error):
        return "--config must come before the overrides of its fields: put it first"
    for path in (match["path"] for a in argv if (match := _OVERRIDE.match(a))):
        if problem := config_files.unknown_field(path):
            return problem
        if isinstance(error, flags.IllegalFlagValueError) and f"config.{path}=" in str(error):
            typed = str(error).partition(f"config.{path}=")[2].partition(":")[0]
            return f"config.{path} takes {config_files.expected_type(config, path)}, not {typed!r}"
    return " ".join(str(error).split())
