"""The `cmap` command: one subcommand for each file of this package that defines one.

cmap train --config=configs/garments.py
cmap convert model_best.pth --vocab vocab.pkl --out runs/released
"""

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

# Set before TensorFlow is imported, which reads them then: it logs errors alone, and does not use
# oneDNN, which announces itself.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


from cmap_jax.cli import errors, utf8
from cmap_jax.cli.termination import ending_on_sigterm

_TRAIN = "train"  # it takes the flags of main.py, which absl parses
_SUBCOMMANDS = (
    _TRAIN,
    "extract",
    "convert",
    "doctor",
    "show",
    "evaluate",
    "export",
    "compare",
    "sweep",
    "report",
    "submit",
    "index",
    "search",
    "explain",
    "serve",
    "demo",
    "triplets",
    "judged",
)
_TAKE_OVERRIDES = ("extract", "sweep")  # subcommands with main.py's --config.any.field=value

# Matches an error of argparse and captures the words that it did not recognise.
_UNKNOWN = re.compile(r"(?:unrecognized arguments|invalid choice): (.*?)(?: \(choose|$)")


# Matches an override of a config's field; argparse knows no flags with a part that varies.
_OVERRIDE = re.compile(r"--?(no)?config\.")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the flag or subcommand nearest to a mistyped one."""

    def error(self, message: str) -> NoReturn:
        """End the program with a message that suggests the nearest known words."""
        unknown = _UNKNOWN.search(message)
        words = (
            [word.partition("=")[0].strip("'") for word in unknown[1].split()] if unknown else []
        )
        near = [m for w in words for m in difflib.get_close_matches(w, self._known_words(), 1)]
        super().error(f"{message}; did you mean {' or '.join(near)}?" if near else message)

    def _known_words(self) -> list[str]:
        """Return all subcommands, and the flags of this parser and of its subparsers."""
        words = list(_SUBCOMMANDS)
        for action in self._actions:
            words += action.option_strings
            if isinstance(action.choices, dict):  # an action that holds subparsers
                words += [word for p in action.choices.values() for word in p._known_words()]
        return words


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status.

    Args:
        argv: the arguments without the program's name; None: those of this process.
    """
    if argv is None:
        utf8.use_utf8()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == [_TRAIN]:
        from cmap_jax.cli import train

        train.main(["cmap train", *argv[1:]])
    # Only the named subcommand is imported: the imports of the others take seconds.
    named = argv[:1] if argv and argv[0] in _SUBCOMMANDS else _SUBCOMMANDS
    overrides = []
    if argv[:1] and argv[0] in _TAKE_OVERRIDES:
        overrides = [word for word in argv if _OVERRIDE.match(word)]
    arguments = _parser(named).parse_args([word for word in argv if word not in overrides])
    arguments.overrides = overrides
    try:
        with ending_on_sigterm(), errors.expected_errors("cmap", arguments.spelling):
            return arguments.run(arguments)
    except SystemExit as ended:
        return ended.code


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser of the named subcommands; each is described by its module's docstring."""
    parser = _Parser(prog="cmap", description="Composed image retrieval.")
    subparsers = parser.add_subparsers(title="subcommands", required=True, metavar="SUBCOMMAND")
    for name in names:
        module = importlib.import_module(f"cmap_jax.cli.{name}")
        summary = module.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name != _TRAIN:
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run, spelling=getattr(module, "SPELLING", {}))
    return parser


if __name__ == "__main__":
    sys.exit(main())
