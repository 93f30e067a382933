"""Export a trained model for others: safetensors, a model card, StableHLO programs.

cmap export runs/garments --out garments-cmap
cmap export runs/garments --out garments-cmap --license apache-2.0
cmap evaluate garments-cmap --dir data/garments
"""

import argparse
import re
import shlex

from etils import epath

from cmap_jax.cli.arguments import path
from cmap_jax.cli.devices import check_devices
from cmap_jax.files import check_can_write
from cmap_jax.workdir import description as workdir_lib

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("workdir", type=path, help="the workdir of the trained model")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", type=path, help="the new folder to write"
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="the licence that the card states, as hubs call it, such as apache-2.0 or "
        "cc-by-nc-4.0; default: none is stated",
    )
    parser.add_argument(
        "--no-programs",
        action="store_true",
        help="write no StableHLO, as for a method whose code cannot be exported",
    )


def run(arguments: argparse.Namespace) -> int:
    """Export the model; an error leaves no folder behind."""
    _check(arguments)
    check_devices()
    from cmap_jax.cli.results_table import results_table
    from cmap_jax.exporting.folder import results_of, write_export
    from cmap_jax.exporting.model_card import model_card
    from cmap_jax.exporting.programs import export_programs
    from cmap_jax.trained import load

    trained = load(arguments.workdir)
    results, others = results_of(trained)
    programs = {} if arguments.no_programs else export_programs(trained)
    card = model_card(
        trained,
        name=epath.Path(arguments.out).absolute().name,
        license_id=arguments.license,
        results=results,
        tables=[results_table(stored) for stored in results.values()],
        programs=list(programs),
    )
    write_export(arguments.out, trained, card, results, programs)
    workdir, out = shlex.quote(arguments.workdir), shlex.quote(arguments.out)
    print(f"{arguments.out} holds the model of {arguments.workdir}, step {trained.step:,}:")
    print(f"{'programs':11}{', '.join(programs) or 'none'}")
    print(f"{'results':11}{', '.join(results) or 'none'}")
    if others:
        print(
            f"{'left out':11}{', '.join(others)}: of other weights than the exported ones; cmap "
            f"evaluate {workdir} measures these"
        )
    if not arguments.license:
        print(f"{'licence':11}none is stated; state one with --license before you publish it")
    print(f"{'next':11}hf upload NAME/{epath.Path(arguments.out).absolute().name} {out}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse impossible arguments before anything is read."""
    if arguments.license is not None and not _LICENSE.fullmatch(arguments.license):
        raise ValueError(
            f"--license {arguments.license!r}: give an identifier in lower case, such as apache-2.0"
        )
    workdir_lib.read_description(arguments.workdir)
    workdir_lib.check_has_weights(arguments.workdir)
    out = workdir_lib.absolute(arguments.out)
    if out.exists():
        raise FileExistsError(f"{arguments.out} exists; name a new folder with --out")
    check_can_write(arguments.out)
