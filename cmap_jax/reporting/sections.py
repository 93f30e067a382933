"""The content of a report, a function a section.

All numbers come from the workdir's files; nothing is computed here.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmap_jax.config_fields import flatten
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.evaluation.results_rows import columns_of, header, labelled, notes, rows_of
from cmap_jax.files import format_json
from cmap_jax.protocols import Protocol
from cmap_jax.reporting.document import (
    Block,
    Command,
    Folded,
    Notes,
    Paragraph,
    Picture,
    Section,
    Table,
)
from cmap_jax.reporting.published import PUBLISHED, Published, why_not_comparable
from cmap_jax.workdir.description import CONVERTED_FROM, Description, Origin

_EXAMPLES = 5  # items of a finding that are listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """All that a report tells of.

    Attributes:
        description: the model.
        origin: software and machine of its training.
        stored: the results.
        remarks: sentences that come before the results.
        overlap: measures of overlapping regions by protocol and name; empty where not measured.
        curves: the picture of the curves, or the reason why there is none.
        grids: pictures of queries, or the reason why there are none.
        heatmaps: pictures of heat maps, or the reason why there are none.
        doctor: the `input_pipeline.doctor` report on the data, or the reason why there is none.
        defaults: a config's fields as they are without any choice.
        commands: command lines, each below the comment that says what it is for.
        here: software and machine of this report, by name.
    """

    description: Description
    origin: Origin
    stored: StoredResults
    remarks: Sequence[str]
    overlap: Mapping[str, Mapping[str, float]]
    curves: Picture | str
    grids: Sequence[Picture] | str
    heatmaps: Sequence[Picture] | str
    doctor: Any
    defaults: Mapping[str, Any]
    commands: Sequence[str]
    here: Mapping[str, str]


def sections_of(material: Material) -> list[Section]:
    """Return all sections of a report in their order."""
    parts = [
        Section("Results", list(_results(material.stored, material.remarks))),
        Section("Queries", _pictures(material.grids)),
        Section("Regions", list(_regions(material))),
        Section("Curves", _pictures(material.curves)),
        Section("Data", list(_data(material.doctor, material.stored))),
        Section("Config", list(_config(material))),
        Section("Reproduction", list(_reproduction(material))),
    ]
    return [part for part in parts if part.blocks]


_SHORTCUTS = (
    "“Text alone” and “image alone” are the same model with the other half of each query taken "
    "away: a method that composes must be clearly above both."
)
_ORACLES = (
    "Lines in brackets are computed from the data: the most that a guess can reach which knows the "
    "named part of each query."
)
_COUNTING = (
    "Intervals are of 95%, by resampling annotations. Ties count in nobody's favor: a rank is the "
    "mean over the orders of images with equal scores."
)


def _results(stored: StoredResults, remarks: Sequence[str]) -> Iterator[Block]:
    """Yield remarks, a table for each protocol, notes on all of them, and the rules."""
    if remarks:
        yield Notes(remarks)
    results = stored.result.protocols
    lines, unknown = [], []
    for name, result in results.items():
        columns = columns_of(result.protocol)
        rows = rows_of(name, stored)
        if name not in PUBLISHED:
            unknown.append(name)
        elif reason := why_not_comparable(name, stored):
            lines.append(f"{name}: the published numbers are not shown, since {reason}.")
        else:
            rows += _published_rows(PUBLISHED[name], columns)
        yield Table(header(columns), rows, caption=f"{labelled(name, stored)}, percent")
    if unknown:
        lines.append(f"No published numbers are known to this library of {', '.join(unknown)}.")
    if any(half for result in results.values() for half in result.shortcuts.values()):
        lines.append(_SHORTCUTS)
    if stored.facts.data_set.oracles:
        lines.append(_ORACLES)
    yield Notes([*notes(stored), *lines, _COUNTING])
    rules = [_rules(result.protocol) for result in results.values()]
    yield Table(_RULES, rules, numeric=False, caption="The rules behind the numbers")


def _published_rows(published: Published, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield a row for each method, and below it one for each category that it has numbers of."""
    everyone = {**published.methods}
    everyone |= {f"{name} (vision-language)": n for name, n in published.vision_language.items()}
    for name, numbers in everyone.items():
        yield [f"published: {name}", *_cells(numbers, columns), *[""] * 4]
        groups = dict.fromkeys(key.split("/")[0] for key in numbers if "/" in key)
        for category in groups:
            yield [f"  {category}", *_cells(numbers, columns, f"{category}/"), *[""] * 4]


def _cells(numbers: Mapping[str, float], columns: Sequence[str], prefix: str = "") -> list[str]:
    values = (numbers.get(prefix + column) for column in columns)
    return ["" if value is None else f"{value:.2f}" for value in values]


_RULES = (
    *("protocol", "gallery", "captions", "right images", "the reference is", "averaging"),
    *("headline", "version"),
)


def _rules(protocol: Protocol) -> list[str]:
    """Return the cells below `_RULES`."""
    mean = ", ".join(protocol.headline)
    return [
        *(protocol.name, protocol.gallery, protocol.captions, protocol.correct),
        *(protocol.reference, protocol.averaging),
        *(f"{protocol.headline_name}, the mean of {mean}", str(protocol.version)),
    ]


def _pictures(pictures: Picture | Sequence[Picture] | str) -> list[Block]:
    """Return pictures, or the reason why there are none."""
    if isinstance(pictures, str):
        return [Paragraph(pictures)]
    return [pictures] if isinstance(pictures, Picture) else list(pictures)


def _regions(material: Material) -> Iterator[Block]:
    """Yield overlaps of the preserved and the modified regions, and heat maps, where measured."""
    for protocol, numbers in material.overlap.items():
        measures = {name: value for name, value in numbers.items() if name != "queries"}
        rows = [[name.replace("_", " "), f"{value:.3f}"] for name, value in measures.items()]
        counted = f" ({numbers['queries']:,} queries)" if "queries" in numbers else ""
        caption = f"Preserved and modified regions, {protocol}{counted}"
        yield Table(["", "value"], rows, caption=caption)
    yield from _pictures(material.heatmaps)


def _data(doctor: Any, stored: StoredResults) -> Iterator[Block]:
    """Yield the data of the evaluation, and the doctor's findings."""
    data, facts = stored.facts.data, stored.facts.data_set
    rows = [
        ["data set", data.name or "not recorded"],
        ["annotations", data.directory or "not recorded"],
        ["images", data.image_directory or "found inside the same folder"],
        ["read as", data.read_as or "not recorded"],
        ["resized to, cropped to", f"{data.resize} x {data.resize}, {data.crop} x {data.crop}"],
        ["unusable images left out", f"{facts.images_skipped:,}"],
        *([part, digest] for part, digest in facts.digests.items()),
    ]
    yield Table([], rows, numeric=False, caption="Data of these results, with their digests")
    if isinstance(doctor, str):
        yield Paragraph(doctor)
        return
    yield Paragraph(f"The doctor's verdict on {doctor.directory}: {doctor.verdict()}.")
    if doctor.counts:
        counts = [
            [c.things, f"{c.actual:,}", f"{c.published:,}", "" if c.agrees else "differs"]
            for c in doctor.counts
        ]
        yield Table(["", "here", "published", ""], counts, caption="Counts")
    if doctor.findings:
        findings = [[f.severity, f.title, f.fix] for f in doctor.findings]
        header = ["severity", "finding", "remedy"]
        yield Table(header, findings, numeric=False, caption="The doctor's findings")
        if examples := "\n\n".join(_examples(doctor.findings)):
            yield Folded("Examples of each finding", examples)


def _examples(findings: Sequence[Any]) -> Iterator[str]:
    for finding in findings:
        if finding.items:
            left = len(finding.items) - _EXAMPLES
            more = [f"  ... and {left:,} more"] if left > 0 else []
            lines = [f"  {item}" for item in finding.items[:_EXAMPLES]]
            yield "\n".join([finding.title, *lines, *more])


def _config(material: Material) -> Iterator[Block]:
    """Yield the fields that differ from their defaults, and the whole config."""
    config = material.description.config.to_dict()
    fields = {path: _shown(value) for path, value in flatten(config).items()}
    defaults = {path: _shown(value) for path, value in flatten(material.defaults).items()}
    rows = [
        [f"config.{path}", value, defaults.get(path, "no such field")]
        for path, value in fields.items()
        if defaults.get(path) != value
    ]
    if rows:
        caption = "Fields that differ from configs/default.py"
        yield Table(["field", "value", "default"], rows, numeric=False, caption=caption)
    yield Folded("The whole config (config.json)", format_json(config))


def _shown(value: Any) -> str:
    # A config in a file has lists where one in memory has tuples.
    return json.dumps(value, default=str, ensure_ascii=False)


def _reproduction(material: Material) -> Iterator[Block]:
    """Yield commands, seeds, hardware and versions."""
    description, origin = material.description, material.origin
    yield Command("\n".join(material.commands))
    facts, config = description.facts, description.config
    rows = [["seed of values, order, augmentation and dropout", str(config.seed)]]
    if config.data.name == "garments":
        rows.append(["seed of the rendered garments", str(config.data.garments.seed)])
    if CONVERTED_FROM in facts:
        rows.append(["converted from", _shown(facts[CONVERTED_FROM])])
    rows += [
        ["step of the evaluated variables", f"{material.stored.step:,}"],
        ["digest of the variables", material.stored.facts.variables or "not recorded"],
        ["commit", origin.git_commit or "not recorded"],
    ]
    yield Table([], rows, numeric=False, caption="Seeds and variables")
    hardware = [[name, value] for name, value in origin.hardware.items()] or [
        ["hardware", "not recorded: the workdir was written by an earlier version"]
    ]
    yield Table([], hardware, numeric=False, caption="Hardware of the training's latest start")
    versions = [[name, value] for name, value in origin.versions.items()]
    yield Table([], versions, numeric=False, caption="Versions at the training's latest start")
    yield Table([], list(material.here.items()), numeric=False, caption="This report")
