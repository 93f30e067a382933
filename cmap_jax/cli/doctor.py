"""Examine a data folder: missing files and oddities, their effect on training, and remedies.

cmap doctor fashion_iq fashion-iq
cmap doctor fashion200k labels --images /data/fashion200k --json > report.json

The exit status is 1 where training would fail as things are.
"""

import argparse
import json

from cmap_jax.cli.arguments import add_near_names, path
from cmap_jax.cli.tables import table
from cmap_jax.processing.tokenizers import read_tokenizer
from input_pipeline.doctor import examine as doctor
from input_pipeline.registry import DATA_SETS, find_data_set

SPELLING = doctor.SPELLING
_SHOWN = 3  # examples of a finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("dataset", metavar="DATASET", help=f"one of {', '.join(DATA_SETS)}")
    parser.add_argument(
        "directory", metavar="DIR", type=path, help="the folder with the annotations"
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        type=path,
        help="the folder with the images, where not inside DIR",
    )
    parser.add_argument(
        "--vocabulary",
        "--tokenizer",
        type=path,
        metavar="FOLDER|FILE",
        help="a model's tokenizer, to list what it cannot read of the captions: a workdir, its "
        "vocabulary.txt, a CLIP or SigLIP folder, or bpe_simple_vocab_16e6.txt.gz",
    )
    add_near_names(parser)
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Examine, print, and return 1 where training would fail."""
    find_data_set(arguments.dataset)  # a wrong name is refused before any file is read
    vocabulary = read_tokenizer(arguments.vocabulary) if arguments.vocabulary else None
    report = doctor.examine(
        arguments.dataset,
        arguments.directory,
        image_directory=arguments.images,
        vocabulary=vocabulary,
        near_names=arguments.near_names,
    )
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(page(report))
    return 0 if report.ready() else 1


def page(report: doctor.Report) -> str:
    """Return a report as text: numbers, problems with their remedies, and the verdict."""
    parts = [f"{report.name} in {report.directory}"]
    if report.layout:
        parts += [_overview(report), _counts(report), _protocols(report)]
    parts += [_finding(f) for f in report.findings]
    if report.layout:
        parts += [_skipping(report), _rate(report)]
    return "\n\n".join([*filter(None, parts), report.verdict()])


def _overview(report: doctor.Report) -> str:
    usable = f"{_share(report.triplets)} {_unit(report)} usable"
    training = f"{usable}; {report.items.total:,} items an epoch"
    needed = f"training and evaluation need {report.needed.total:,}"
    rows = [
        ("layout", report.layout),
        ("images", f"{_share(report.images)} usable in {report.image_directory}; {needed}"),
        ("training", training if report.triplets.total else "nothing to train on"),
    ]
    return "\n".join(f"{name:<10}{text}" for name, text in rows)


def _counts(report: doctor.Report) -> str:
    if not report.counts:
        return ""
    rows = [["counts", "found", "published", ""]]
    rows += [
        [c.what, f"{c.found:,}", f"{c.published:,}", "" if c.agrees else "differs"]
        for c in report.counts
    ]
    remarks = [f"{c.what}: {c.remark}." for c in report.counts if c.remark]
    return "\n".join([table(rows), *remarks])


def _protocols(report: doctor.Report) -> str:
    rows = [["evaluation", "queries", "usable", "gallery images", "usable", "best reachable"]]
    for p in report.protocols:
        counts = (p.queries.total, p.queries.usable, p.gallery.total, p.gallery.usable)
        best = "answers not public" if p.best is None else f"{p.best:.2f}%"
        rows.append([p.name, *(f"{count:,}" for count in counts), best])
    return table(rows)


def _finding(finding: doctor.Finding) -> str:
    lines = [f"{finding.severity:<9}{finding.title}"]
    lines += [f"  {item}" for item in finding.items[:_SHOWN]]
    if len(finding.items) > _SHOWN:
        lines.append(f"  ... and {len(finding.items) - _SHOWN:,} more")
    return "\n".join([*lines, f"  remedy: {finding.fix}"])


def _skipping(report: doctor.Report) -> str:
    lost = report.needed.total - report.needed.usable
    if not lost:
        return ""
    if not report.needed.usable or (report.items.total and not report.items.usable):
        return "--config.data.missing_images=skip would not help: nothing would be left."
    triplets = report.triplets.total - report.triplets.usable
    training = f", {triplets:,} of {report.triplets.total:,} training {_unit(report)}"
    return (
        f"--config.data.missing_images=skip would leave out {lost:,} images"
        f"{training if triplets else ''} and the queries that are not usable above; results are "
        "stamped with that."
    )


def _unit(report: doctor.Report) -> str:
    """Return what `Report.triplets` counts: "triplets", or "images" where they are drawn."""
    return find_data_set(report.name).training.unit


def _rate(report: doctor.Report) -> str:
    return (
        f"Looked at {report.images.total:,} files in {report.seconds:.1f} s, "
        f"{report.rate():,.0f} a second. All items of a finding: --json"
    )


def _share(share: doctor.Share) -> str:
    return f"{share.usable:,} of {share.total:,}"
