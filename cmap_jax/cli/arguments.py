"""Arguments that several subcommands share, and the expansion of paths in flags and fields.

``~`` and variables in a path are expanded here, before any other code reads the path:

    --workdir=~/runs/x    cmap doctor folder '$DATA/catalogue'    config.data.directory = "~/data"
"""

import argparse
import functools
import operator
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from cmap_jax.config_fields import FIELDS
from cmap_jax.files import expand

PATH_FLAGS = ("config", "workdir", "compilation_cache")  # flags of main.py


def expand_flags(argv: Sequence[str]) -> list[str]:
    """Return main.py's arguments with the paths in `PATH_FLAGS` expanded; fields are left alone.

    Raises:
        ValueError: a path names a user or a variable that does not exist; names the flag.
    """
    flag = re.compile(rf"--?({'|'.join(PATH_FLAGS)})(=.*)?", re.DOTALL)
    expanded, name = [], ""  # name of the flag whose value is the next argument; else empty
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
    """Expand all paths of a config in place.

    Raises:
        ValueError: a path names a user or a variable that does not exist; names the field.
    """
    for path, field in FIELDS.items():
        if not field.is_path:
            continue
        *parents, name = path.split(".")
        here = functools.reduce(operator.getitem, parents, config)
        if here[name]:
            here[name] = _expand(here[name], f"config.{path}")


def _expand(value: str, name: str) -> str:
    try:
        return expand(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def path(text: str) -> str:
    """Expand ``~`` and variables; the ``type`` of every argument that takes a path.

    Raises:
        argparse.ArgumentTypeError: a user or a variable that does not exist; names it.
    """
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_text(parser: argparse.ArgumentParser) -> None:
    """Add the argument ``--text``, the captions of a query."""
    parser.add_argument(
        "--text",
        metavar="CAPTION",
        action="append",
        default=[],
        help="the change that is wanted; may be given twice",
    )


def check_text(captions: Sequence[str]) -> None:
    """Refuse more captions than a query has.

    Raises:
        ValueError: names the flag.
    """
    # Only commands with the flag need the module.
    from cmap_jax.processing.tokenizing import MAX_CAPTIONS

    if len(captions) > MAX_CAPTIONS:
        raise ValueError(f"--text is given {len(captions)} times; a query has at most two")


def add_near_names(parser: argparse.ArgumentParser, default: str | None = "fail") -> None:
    """Add the flag ``--near-names``, which sets ``config.data.near_names`` to "accept".

    Args:
        parser: the subcommand's parser, which gets the flag.
        default: the field's value without the flag; None to leave it as the config has it.
    """
    parser.add_argument(
        "--near-names",
        action="store_const",
        const="accept",
        default=default,
        help="use files with similar names for missing images: names that differ only in letter "
        "case, extension, Unicode form, percent-encoding, leading zeros or outer spaces",
    )


def add_backend_arguments(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add ``--backend`` and ``--set``, whose values `settings_from` reads.

    Args:
        parser: the parser of a subcommand.
        meaning: help of ``--backend``, which says when the backend is used.
    """
    parser.add_argument("--backend", metavar="NAME", help=meaning)
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of the backend; may be given several times",
    )


def settings_from(assignments: Sequence[str]) -> dict[str, str]:
    """Return the settings of a search backend that the flags ``--set NAME=VALUE`` assign.

    Raises:
        ValueError: one without a value; names it.
    """
    if unset := [text for text in assignments if "=" not in text]:
        raise ValueError(f"--set {unset[0]}: give a name and a value, NAME=VALUE")
    return dict(text.partition("=")[::2] for text in assignments)
