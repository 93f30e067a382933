"""The `cmap` command: one subcommand a file of this package.

cmap convert model_best.pth --vocab vocab.pkl --out runs/released
"""

import argparse
import os
import sys
from collections.abc import Sequence

# Before TensorFlow and JAX load: their chatter is not ours to show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from cmap_jax.cli import compare, convert, doctor, evaluate, show, submit

_SUBCOMMANDS = (convert, doctor, show, evaluate, compare, submit)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status."""
    parser = argparse.ArgumentParser(prog="cmap", description="Composed image retrieval.")
    subparsers = parser.add_subparsers(title="subcommands", required=True, metavar="SUBCOMMAND")
    for module in _SUBCOMMANDS:
        summary = module.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(
            module.__name__.rpartition(".")[2], help=summary, description=summary
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("cmap: interrupted\n")
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("CMAP_TRACEBACK"):
            raise
        sys.stderr.write(f"cmap: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
