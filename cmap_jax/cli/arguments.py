"""Arguments that several subcommands take, and the paths among all flags and fields.

    --workdir=~/runs/x    cmap doctor folder '$DATA/catalogue'    config.data.directory = "~/data"

are expanded here, before anything looks at them.
"""

import argparse
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from cmap_jax.files import expand

PATH_FLAGS = ("config", "workdir", "compilation_cache")  # main.py's
PATH_FIELDS = (
    "init_from",
    "model.image.init_from",
    "model.text.init_from",
    "data.directory",
    "data.image_directory",
)


def expand_flags(argv: Sequence[str]) -> list[str]:
    """Return main.py's arguments with the paths among them expanded, those of fields excepted.

    Raises:
        ValueError: no such user or variable; names the flag.
    """
    flag = re.compile(rf"--?({'|'.join(PATH_FLAGS)})(=.*)?", re.DOTALL)
    expanded, name = [], ""  # the name of a flag whose value is the next argument
    for argument in argv:
        match = flag.fullmatch(argument)
        if name:
            argument, name = _expand(argument, f"--{name}"), ""
        elif match and match[2]:
            argument = f"--{match[1]}={_expand(match[2][1:], f'--{match[1]}')}"
        elif match:
            name = match[1]
        expanded.append(argument)
    return expanded


def expand_fields(config: ConfigDict) -> None:
    """Expand the paths of a config in their places.

    Raises:
        ValueError: no such user or variable; names the field.
    """
    for field in PATH_FIELDS:
        *parents, name = field.split(".")
        here = config
        for parent in parents:
            here = here[parent]
        if here[name]:
            here[name] = _expand(here[name], f"config.{field}")


def _expand(value: str, name: str) -> str:
    try:
        return expand(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def path(text: str) -> str:
    """Return a path as typed, with ``~`` and variables expanded: the type of every path argument.

    Raises:
        argparse.ArgumentTypeError: no such user or variable; names it.
    """
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_near_names(parser: argparse.ArgumentParser, default: str | None = "fail") -> None:
    """Add the flag that stands for ``config.data.near_names=accept``.

    Args:
        parser: of the subcommand.
        default: what the field is without the flag; None where a config says it.
    """
    parser.add_argument(
        "--near-names",
        action="store_const",
        const="accept",
        default=default,
        help="take files with near names for missing images: of another letter case, extension, "
        "Unicode form, percent-encoding, with other leading zeros or outer spaces",
    )
