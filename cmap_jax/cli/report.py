"""Write a report on a trained model: one HTML file to show to others, and the same as Markdown.

cmap report runs/fashioniq
cmap report runs/fashioniq --dir fashion-iq --images /photographs --out shown/fashioniq.html
cmap report runs/fashioniq --stored

Where results, rankings or shortcuts are missing, the model is evaluated first.
"""

import argparse
import datetime
import shlex
from typing import TYPE_CHECKING, Any

from etils import epath

from cmap_jax.cli import report_pictures
from cmap_jax.cli.arguments import path
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.devices import check_devices
from cmap_jax.cli.evaluated import (
    SPELLING,
    add_evaluated,
    config_of,
    evaluated_words,
    evaluations_of,
    protocol_of,
)
from cmap_jax.remedies import spelled

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from cmap_jax.evaluation.results_file import StoredResults

__all__ = ["SPELLING", "add_arguments", "run"]
_ROWS = 6  # queries of a picture
_COMPARED = 64  # queries on which the modified and the preserved part are compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("workdir", type=path, help="the folder of the model")
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        type=path,
        help="default: report.html in the workdir; Markdown and its pictures are written beside it",
    )
    add_evaluated(parser)
    parser.add_argument(
        "--stored", action="store_true", help="evaluate nothing: show the results that are stored"
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="show queries of this protocol; default: the first"
    )
    parser.add_argument("--count", type=int, default=_ROWS, help="queries in each picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of queries")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate where needed, gather everything, and write."""
    from cmap_jax.reporting.writing import check_report, write_report

    if arguments.count < 1 or arguments.seed < 0:
        raise ValueError("--count must be 1 or more, and --seed 0 or more")
    out = arguments.out or str(epath.Path(arguments.workdir) / "report.html")
    check_devices()
    config = config_of(arguments)
    check_report(out)
    use_compilation_cache(None)
    document = _gather(arguments, config)
    write_report(document, out)
    print(f"{out}\n{epath.Path(out).with_suffix('.md')}")
    return 0


def _gather(arguments: argparse.Namespace, config: "ConfigDict") -> Any:
    """Return the report's document."""
    from cmap_jax.evaluation.results_file import read_results, results_path
    from cmap_jax.reporting.document import Document
    from cmap_jax.reporting.sections import Material, sections_of
    from cmap_jax.workdir import description as workdir_lib
    from configs import default

    workdir = arguments.workdir
    file = results_path(workdir, config.data.name)
    stored = read_results(file) if file.exists() else None
    if stored is None and arguments.stored:
        raise ValueError(f"{workdir} has no results of {config.data.name} yet: leave out --stored")
    datasets = _read_data(arguments, config, must=stored is None)
    if not isinstance(datasets, str):
        protocol_of(datasets, arguments.protocol)  # refused before the long work
    stored, remarks = _evaluated(arguments, config, datasets, stored)
    shown = report_pictures.shown(arguments, datasets, stored)
    description = workdir_lib.read_description(workdir)
    overlap = {n: r.overlap for n, r in stored.result.protocols.items() if r.overlap}
    material = Material(
        description=description,
        origin=workdir_lib.read_origin(workdir),
        stored=stored,
        remarks=remarks,
        overlap=overlap,
        curves=report_pictures.curves(workdir),
        grids=report_pictures.grids(arguments, datasets, shown),
        heatmaps=report_pictures.heatmaps(arguments, config, datasets, shown),
        doctor=_examine(config, description, datasets),
        defaults=default.get_config().to_dict(),
        commands=_commands(arguments, description, has_overlap=bool(overlap)),
        here=_here(),
    )
    name = epath.Path(workdir).absolute().name
    first = next(iter(stored.result.protocols.values()))
    headline = first.protocol.headline_name
    low, high = first.intervals[headline]
    subtitle = (
        f"{description.config.model.variant}, step {stored.step:,} · {first.protocol.name} · "
        f"{headline} {first.numbers[headline]:.2f} (95% interval {low:.1f} to {high:.1f})"
    )
    return Document(name, subtitle, sections_of(material))


def _read_data(arguments: argparse.Namespace, config: "ConfigDict", *, must: bool) -> Any:
    """Return the data sets, or in words why they cannot be read.

    Data that the user names, and data without which there are no results, must be there.
    """
    from cmap_jax.cli import run as run_lib

    named = (arguments.data, arguments.dir, arguments.images, arguments.features)
    try:
        return run_lib.read_for_evaluation(config, arguments.workdir)
    except (OSError, ValueError) as error:
        if must or any(value is not None for value in named):
            raise
        reason = spelled(" ".join(str(error).split()), SPELLING)
        print(f"The data cannot be read, and the report lacks what needs them: {reason}")
        return f"The data could not be read when this report was written: {reason}"


def _evaluated(
    arguments: argparse.Namespace,
    config: "ConfigDict",
    datasets: Any,
    stored: "StoredResults | None",
) -> "tuple[StoredResults, list[str]]":
    """Return results, evaluated now unless the stored ones are complete, and what they lack."""
    from cmap_jax.cli import run as run_lib
    from cmap_jax.evaluation.overlap import has_parts
    from cmap_jax.evaluation.results_file import read_results, results_path
    from cmap_jax.models.cmap import CMAP

    if isinstance(datasets, str):
        missing = _stale(arguments.workdir, stored)
    else:
        missing = _missing(arguments, datasets, stored)
    if missing is None:
        return stored, []
    if arguments.stored or isinstance(datasets, str):
        return stored, [f"Beware: {missing}."]
    print(f"Evaluating, since {missing} (--stored shows what is stored) ...")
    config.eval.rankings = config.eval.shortcuts = True
    config.eval.overlap = _COMPARED if has_parts(CMAP.from_config(config)) else 0
    run_lib.evaluate(config, arguments.workdir, datasets)
    return read_results(results_path(arguments.workdir, config.data.name)), []


def _missing(
    arguments: argparse.Namespace, datasets: Any, stored: "StoredResults | None"
) -> str | None:
    """Return in words why stored results are not enough for a report; None: they are."""
    from cmap_jax.evaluation.results_file import read_rankings

    if stored is None:
        return "there are no results yet"
    if stale := _stale(arguments.workdir, stored):
        return stale
    for evaluation in evaluations_of(datasets):
        name = evaluation.protocol.name
        result = stored.result.protocols.get(name)
        if result is None:
            return f"there are no results of {name}"
        if dict(result.conditions) != evaluation.conditions():
            return f"the results of {name} are of other queries or another gallery"
        if not result.shortcuts:
            return f"there are no shortcuts of {name}"
        if read_rankings(arguments.workdir, result) is None:
            return f"there are no rankings of {name} that belong to its results"
    return None


def _stale(workdir: str, stored: "StoredResults") -> str | None:
    """Return in words that other variables are the best now than were evaluated, or None."""
    from cmap_jax.workdir.description import BEST, saved_steps

    best = saved_steps(workdir, BEST)
    if not best or stored.step in best:
        return None
    return (
        f"the results are of step {stored.step:,}, and the best variables are now of step "
        f"{max(best):,}"
    )


def _examine(config: "ConfigDict", description: Any, datasets: Any) -> Any:
    """Return the doctor's report on the data, or in words why there is none."""
    from input_pipeline.doctor.examine import examine

    if isinstance(datasets, str):
        return datasets
    print(f"Examining {config.data.directory} ...")
    try:
        return examine(
            config.data.name,
            config.data.directory,
            image_directory=config.data.image_directory,
            vocabulary=description.tokenizer,
            near_names=config.data.near_names,
        )
    except ValueError as error:
        return f"The doctor did not examine the data: {error}."


def _commands(arguments: argparse.Namespace, description: Any, *, has_overlap: bool) -> list[str]:
    """Return the command lines that make the model and these results again."""
    from cmap_jax.workdir.description import CONFIG, CONVERTED_FROM, read_origin

    name = shlex.quote(arguments.workdir)
    again = shlex.quote(f"{arguments.workdir.rstrip('/')}-again")
    commit = read_origin(arguments.workdir).git_commit
    lines = ["# the code", f"git checkout {commit}"] if commit else []
    if CONVERTED_FROM in description.facts:
        source = shlex.quote(str(description.facts[CONVERTED_FROM]))
        comment = "# the model, converted; with the tokenizer and the options of that time"
        lines += [comment, f"cmap convert {source} --out {again}"]
    else:
        config = shlex.quote(str(epath.Path(arguments.workdir) / CONFIG))
        train = f"python main.py --config={config} --workdir={again}"
        lines += ["# the model, with the config below", train]
    evaluated = " ".join(["", *evaluated_words(arguments)])
    compared = f" --overlap {_COMPARED}" if has_overlap else ""
    measure = f"{evaluated} --shortcuts --rankings{compared}"
    lines += ["# the results, and those of the model made again"]
    lines += [f"cmap evaluate {name}{measure}", f"cmap evaluate {again}{measure}"]
    shown = f" --protocol {shlex.quote(arguments.protocol)}" if arguments.protocol else ""
    shown += f" --count {arguments.count} --seed {arguments.seed}"
    return [*lines, "# this report", f"cmap report {name}{evaluated}{shown}"]


def _here() -> dict[str, str]:
    """Return where and when this report is written, by name."""
    from cmap_jax.workdir.description import hardware, versions

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"written on": today, **hardware(), **versions()}
