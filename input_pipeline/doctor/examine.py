"""The examination of a data folder, before training reads it.

    report = examine("fashion_iq", "fashion-iq")
    report.verdict()             # "ready", or "training would fail: ..."
    report.findings              # problems, the worst first, each with its remedy

Images are judged by the check that training makes itself, so that the images reported here are the
ones that training refuses, or leaves out under ``missing_images="skip"``.
"""

import collections
import re
import time
from collections.abc import Collection, Iterator, Sequence, Set

from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.processing.tokenizing import Tokenizer
from cmap_jax.remedies import spelled
from input_pipeline import prepared, storage
from input_pipeline.doctor import published
from input_pipeline.doctor.findings import (
    Annotation,
    Finding,
    caption_findings,
    gallery_findings,
    leak_findings,
    list_annotations,
    number,
    read_splits,
    repeated_row_findings,
    same_image_findings,
    word_findings,
)
from input_pipeline.doctor.image_findings import (
    duplicate_findings,
    image_findings,
    near_name_findings,
    trait_findings,
)
from input_pipeline.doctor.judgments import judgment_findings
from input_pipeline.doctor.report import ProtocolShare, Report, Share
from input_pipeline.images.check import check_images, find_traits
from input_pipeline.readers.data_set import DataSet
from input_pipeline.reading import read_folder
from input_pipeline.records import DataError, Evaluation, Records
from input_pipeline.registry import DATA_SETS, find_data_set

# The arguments of `cmap doctor` for some of the config's fields.
SPELLING = {
    "data.directory": "the argument DIR",
    "data.image_directory": "--images",
    "data.near_names=accept": "--near-names",
}
BATCH_SIZE = 128  # that of the configs

_SEVERITIES = ("error", "warning", "note")


def examine(
    name: str,
    directory: str,
    image_directory: str | None = None,
    vocabulary: Tokenizer | None = None,
    near_names: str = "fail",
) -> Report:
    """Examine a data set: annotations, every image file, and what follows for training.

    Nothing is written, and nothing is rendered.

    Args:
        name: an entry of `registry.DATA_SETS`, or an alias.
        directory: the folder of the annotations.
        image_directory: the folder of the images; None: inside ``directory``.
        vocabulary: a model's tokenizer, to check the captions with; None: the words of the training
            captions.
        near_names: "fail", or "accept" to take files with near names for missing images.

    Raises:
        ValueError: no such data set, or one that is prepared.
    """
    data_set = find_data_set(name)
    if prepared.is_prepared(directory):
        raise ValueError(
            f"{directory} holds a prepared data set; the doctor looks at raw ones, before they are "
            "prepared"
        )
    started = time.perf_counter()
    try:
        records = _read(data_set, directory, image_directory, near_names)
    except (ValueError, OSError) as error:
        return Report(
            name=data_set.name,
            directory=directory,
            findings=(_reading_finding(error, data_set, directory),),
        )
    reasons = check_images(records)
    usable = [image for i, image in records.images.items() if i not in reasons]
    annotations = list_annotations(records)
    tokenizer = vocabulary or Vocabulary.build(records.vocabulary_captions, records.extra_special)
    readings = read_splits(records, annotations, tokenizer)
    counts = tuple(data_set.counts(records, directory)) if data_set.counts else ()
    items = Share(len(records.train), _items_without(records, set(reasons)))
    findings = [
        *_training_findings(data_set, items.total),
        *image_findings(
            records,
            reasons,
            _folders(directory, records.image_directory),
            lambda folder: _read(data_set, directory, folder, near_names),
        ),
        *near_name_findings(records),
        *trait_findings(records, find_traits(records, [i.id for i in usable])),
        *published.count_findings(data_set.name, counts),
        *repeated_row_findings(records, annotations),
        *gallery_findings(records),
        *judgment_findings(records),
        *duplicate_findings(records, usable, annotations),
        *same_image_findings(annotations),
        *leak_findings(records),
        *caption_findings(records, annotations, readings, tokenizer),
        *word_findings(records, readings, vocabulary),
        *_rendering_findings(data_set, directory),
    ]
    return Report(
        name=data_set.name,
        directory=directory,
        layout=records.layout,
        image_directory=records.image_directory,
        counts=counts,
        images=_share(records.images, reasons),
        needed=_share(records.image_ids(), reasons),
        triplets=_usable_triplets(annotations, reasons),
        items=items,
        protocols=tuple(
            _protocol_share(evaluation, set(reasons))
            for evaluations in (*records.evaluations.values(), records.unlabelled.values())
            for evaluation in evaluations
        ),
        findings=tuple(sorted(findings, key=lambda f: _SEVERITIES.index(f.severity))),
        seconds=time.perf_counter() - started,
    )


def _read(
    data_set: DataSet, directory: str, image_directory: str | None, near_names: str = "fail"
) -> Records:
    if data_set.rendering is not None and not image_directory:
        # Training asks for the settings in its config, and refuses a folder with others. Nothing
        # is drawn: the folder has settings, so it is complete.
        data_set.rendering.render(directory, **_rendered_fields(data_set, directory))
    return read_folder(data_set.name, directory, image_directory, near_names)


def _rendered_fields(data_set: DataSet, directory: str) -> dict[str, int | float]:
    """Return the fields of ``config.data.<name>`` with which a folder was rendered."""
    settings = data_set.rendering.read_settings(directory)
    return {key: settings[key] for key in data_set.rendering.settings}


def _reading_finding(error: Exception, data_set: DataSet, directory: str) -> Finding:
    """Return what is wrong with annotations that cannot be read, and what to do about it."""
    if isinstance(error, OSError) and error.filename:
        title = f"{error.filename}: {error.strerror}"
    else:
        title = spelled(str(error), SPELLING)
    if not isinstance(error, FileNotFoundError):
        fix = "mend that place"
        if data_set.published:
            fix += ", or take the file from its publisher again"
    elif data_set.rendering is not None:
        fix = (
            "training renders them into a folder that is empty or not there: python main.py "
            f"--config=configs/{data_set.name}.py --config.data.directory={directory}"
        )
    elif others := _other_layouts(data_set, directory):
        fix = f"what lies there looks like {' or '.join(others)}"
    else:
        fix = "give the folder of the annotations; if it is this one, restore what is missing there"
    return Finding(kind="annotations", severity="error", title=title, count=1, items=(), fix=fix)


def _other_layouts(data_set: DataSet, directory: str) -> dict[str, None]:
    """Return the commands for the layouts found at or below a folder, but not the one tried."""
    commands = {}
    if storage.is_folder(directory):
        marks = {other: d.mark for other, d in DATA_SETS.items() if d.mark}
        for path in storage.walk(directory):
            for other, mark in marks.items():
                match = re.fullmatch(rf"(?:(.*)/)?(?:{mark})", path)
                if match and (match[1] or other != data_set.name):
                    folder = storage.join(directory, match[1]) if match[1] else directory
                    commands[f"cmap doctor {other} {folder}"] = None
    return commands


def _folders(directory: str, image_directory: str) -> tuple[str, ...]:
    """Return the folders to search for lost images; one that is inside the other is left out."""
    inside = f"{image_directory}/".startswith(f"{directory.rstrip('/')}/")
    return (directory,) if inside else (directory, image_directory)


def _share(ids: Collection[str], reasons: Collection[str]) -> Share:
    return Share(len(ids), sum(i not in reasons for i in ids))


def _items_without(records: Records, missing: Set[str]) -> int:
    try:
        return len(records.train.without(missing))
    except DataError:  # no pair can be drawn from the captions that are left
        return 0


def _usable_triplets(annotations: Sequence[Annotation], reasons: Collection[str]) -> Share:
    train = [a for a in annotations if a.split == "train"]
    usable = sum(not any(i in reasons for i in (a.reference, *a.targets)) for a in train)
    return Share(len(train), usable)


def _protocol_share(evaluation: Evaluation, missing: Set[str]) -> ProtocolShare:
    left = evaluation.without(missing)
    answers_public = any(q.targets for q in evaluation.queries)
    return ProtocolShare(
        evaluation.protocol.name,
        Share(len(evaluation.queries), len(left.queries)),
        Share(sum(map(len, evaluation.galleries.values())), sum(map(len, left.galleries.values()))),
        _best(evaluation, left) if answers_public else None,
    )


def _best(evaluation: Evaluation, left: Evaluation) -> float:
    """Return `ProtocolShare.best`.

    Args:
        evaluation: the complete evaluation.
        left: the same evaluation without the unusable images.
    """
    protocol = evaluation.protocol
    galleries = {category: set(ids) for category, ids in left.galleries.items()}
    groups: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for queries, at in ((evaluation.queries, 0), (left.queries, 1)):
        for q in queries:
            right = galleries[q.category].intersection(q.targets)
            if protocol.reference == "excluded":
                right.difference_update(q.references)
            group = q.category if protocol.averaging == "categories" else ""
            groups[group][at] += 1 if at == 0 else bool(right)
    shares = [100 * reachable / total for total, reachable in groups.values()]
    return sum(shares) / len(shares)


def _training_findings(data_set: DataSet, items: int) -> Iterator[Finding]:
    if items >= BATCH_SIZE or data_set.evaluation_only:
        return
    if items:
        yield Finding(
            kind="few_items",
            severity="warning",
            title=f"{number(items, 'training item')}, fewer than the configs' batch of "
            f"{BATCH_SIZE}",
            count=items,
            items=(),
            fix=f"--config.train.batch_size={items} or less",
        )
        return
    yield Finding(
        kind="nothing_to_train_on",
        severity="error",
        title="nothing to train on",
        count=0,
        items=(),
        fix=f"put {data_set.training_files or 'training annotations'} there, or only evaluate a "
        "model: python main.py --mode=evaluate --workdir=...",
    )


def _rendering_findings(data_set: DataSet, directory: str) -> Iterator[Finding]:
    if data_set.rendering is None:
        return
    fields = _rendered_fields(data_set, directory).items()
    yield Finding(
        kind=f"{data_set.name}_settings",
        severity="note",
        title=f"training must name the settings that these {data_set.name} were rendered with",
        count=1,
        items=(),
        fix=" ".join(f"--config.data.{data_set.name}.{key}={value}" for key, value in fields),
    )
