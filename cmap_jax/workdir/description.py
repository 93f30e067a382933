"""A self-describing model on disk: all that is needed to use it, without the training data.

WORKDIR/config.json        the whole config
        vocabulary.txt     the words, one a line in id order (or another tokenizer's files)
        parameters.txt     name, shape and size of every parameter
        model.json         preprocessing, protocols, facts of the data, versions, commit, hardware
        checkpoints/       the latest training states, from which the run continues
        best/              the variables with the best recall on the val split
        model.safetensors  the variables of an exported model, in place of both; see
                           `cmap_jax.workdir.tensors`
        damaged/           checkpoints that could not be read, if there were any
        run.lock           the lock of a run, while it works here
        events.out.*       the curves of a run, for TensorBoard
        curves.png         the same curves as a picture
        pictures/          the best images of a few queries at each evaluation, by protocol
        evaluation.json    metrics of the best variables, by protocol; evaluation-<name>.json for
                           another data set
        heatmaps/          pictures of heat maps, which cmap report shows
        report.html, .md   the report on the model, with the folder report of its pictures
        rankings/          the first images of each query, with config.eval.rankings

This module reads and writes all but the weights, which `cmap_jax.workdir.weights` handles, and the
results, which `cmap_jax.evaluation.results_file` handles. `cmap_jax.workdir.same_run` decides
whether a run may continue in a workdir, and `cmap_jax.trained` loads a model for use.
"""

import collections
import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from cmap_jax.facts import DataFacts
from cmap_jax.files import check_regular_file, is_remote, read_json, write_json
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizers import tokenizer_class
from cmap_jax.processing.tokenizing import Tokenizer
from cmap_jax.protocols import Protocol
from cmap_jax.workdir import renamed_fields
from cmap_jax.workdir.config_form import check_form

CONFIG, MODEL = "config.json", "model.json"
PARAMETERS = "parameters.txt"
CURVES, PICTURES = "curves.png", "pictures"
CHECKPOINTS, BEST = "checkpoints", "best"
TENSORS = "model.safetensors"
CONVERTED_FROM = "converted_from"  # key of the fact that a workdir was converted, not trained
ZERO_SHOT = "zero_shot"  # key of the fact that a model was trained on no data set's triplets
# Version of model.json; increased when code that reads the old form would misread the new one.
_FORMAT = 3
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "nltk")


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of a workdir's files other than the weights.

    Attributes:
        config: the whole config.
        tokenizer: texts to token ids.
        preprocessing: how a picture is read, and what is done to it.
        protocols: what chose the best checkpoint comes first; none for a model that was not chosen
            by any.
        facts: of the training data, such as the number of skipped images.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    preprocessing: ImagePreprocessing
    protocols: tuple[Protocol, ...]
    facts: Mapping[str, Any]


def write_description(workdir: str | os.PathLike, description: Description) -> None:
    """Write all files but the weights; ``config.json`` is the last and makes it a workdir."""
    workdir = epath.Path(workdir)
    description.tokenizer.save(workdir)
    write_json(
        workdir / MODEL,
        {
            "format": _FORMAT,
            "preprocessing": description.preprocessing.to_dict(),
            "protocols": [protocol.to_dict() for protocol in description.protocols],
            "facts": dict(description.facts),
            "versions": versions(),
            "git_commit": _git_commit(),
            "hardware": hardware(),
        },
    )
    write_json(workdir / CONFIG, description.config.to_dict())


def read_description(workdir: str | os.PathLike) -> Description:
    """Read a workdir's description.

    Raises:
        FileNotFoundError: not a workdir; names the missing file.
        ValueError: a broken file, another format, or files of different models.
    """
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    if config is None:
        raise FileNotFoundError(
            f"{workdir} is not a workdir: it has no {CONFIG}. Train one with python main.py "
            f"--config=configs/garments.py --workdir={workdir}"
        )
    check_form(read_json(workdir / CONFIG), workdir / CONFIG)
    about = _read_model_file(workdir / MODEL)
    tokenizer = tokenizer_class(config.model.text.tokenizer).load(workdir)
    if len(tokenizer) != config.model.text.vocabulary_size:
        raise ValueError(
            f"{workdir}: its tokenizer has {len(tokenizer)} words, but the model was made for "
            f"{config.model.text.vocabulary_size}: it belongs to another model"
        )
    return Description(config=config, tokenizer=tokenizer, **about)


def _read_model_file(path: epath.Path) -> dict[str, Any]:
    """Return the fields of a `Description` that ``model.json`` holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format or form; names the file and the field.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: it is a JSON object, not {content!r:.40}")
    if content.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has format {content.get('format')!r:.40}, this version of cmap_jax reads "
            f"{_FORMAT}"
        )
    read = {
        "preprocessing": lambda fields: ImagePreprocessing.from_dict(dict(fields)),
        "protocols": lambda items: tuple(Protocol.from_dict(fields) for fields in items),
        "facts": lambda fields: DataFacts.from_dict(fields) and dict(fields),
    }
    parts = {}
    for name, parse in read.items():
        try:
            parts[name] = parse(content[name])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = "is missing" if name not in content else f"cannot be used: {error}"
            raise ValueError(f'{path}: its "{name}" {reason}') from error
    return parts


def read_config(workdir: str | os.PathLike) -> ConfigDict | None:
    """Return a workdir's config; None for a folder without one.

    Raises:
        ValueError: a broken file; or no workdir can have this path.
    """
    path = absolute(workdir) / CONFIG
    return read_config_file(path) if path.exists() else None


def read_config_file(path: str | os.PathLike) -> ConfigDict:
    """Return the config in a JSON file as `write_description` writes it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not an object; names the file.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)}: a config is a JSON object, not {content!r:.40}")
    return ConfigDict(_lists_to_tuples(renamed_fields.translate(content)))


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Return whether a run in the workdir has saved a state from which it can continue."""
    return bool(saved_steps(workdir))


def unfinished(workdir: str | os.PathLike) -> tuple[int, int] | None:
    """Return the last saved step and the total steps of a run that is not finished.

    The result is None for a finished run, and for a workdir that was converted or exported and
    holds no run.

    Raises:
        FileNotFoundError, ValueError: as `read_description`.
    """
    description = read_description(workdir)
    items = DataFacts.from_dict(description.facts).training_items
    if CONVERTED_FROM in description.facts or is_exported(workdir) or items is None:
        return None
    train = description.config.train
    total = train.epochs * (items // train.batch_size)
    last = max(saved_steps(workdir), default=0)
    return (last, total) if last < total else None


def check_has_weights(workdir: str | os.PathLike) -> None:
    """Refuse a workdir without a checkpoint, before data are read for its evaluation.

    Raises:
        FileNotFoundError: the run has not saved anything yet.
    """
    if not (saved_steps(workdir, BEST) or saved_steps(workdir) or is_exported(workdir)):
        raise FileNotFoundError(
            f"{os.fspath(workdir)} has no checkpoint yet: its run has not reached the end of an "
            "epoch. Run it again to continue"
        )


def is_exported(workdir: str | os.PathLike) -> bool:
    """Tell whether a workdir holds an exported model, and no run."""
    return (absolute(workdir) / TENSORS).exists()


def saved_steps(workdir: str | os.PathLike, part: str = CHECKPOINTS) -> list[int]:
    """Return the training steps of the checkpoints in a workdir, unsorted; empty without any.

    Args:
        workdir: a folder, local or in a bucket; it need not exist.
        part: `CHECKPOINTS` for the states of a run, `BEST` for its best variables.

    Raises:
        NotADirectoryError: there is something else in its place; names it.
        ValueError: a checkpoint's metadata are in no regular file; names it.
    """
    folder = absolute(workdir) / part
    if not folder.is_dir() and os.path.lexists(folder):
        raise NotADirectoryError(
            f"{folder}: a folder of checkpoints belongs here, or a link to one that exists; move "
            "it away"
        )
    if not is_remote(folder) and folder.is_dir():
        for checkpoint in folder.iterdir():  # Orbax reads these files when it opens the folder
            check_regular_file(checkpoint / "_CHECKPOINT_METADATA")
    # Orbax lists complete checkpoints only. In a bucket, where folders cannot be renamed, it marks
    # a complete one with a file.
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def absolute(workdir: str | os.PathLike) -> epath.Path:
    """Return a workdir's absolute path, as Orbax needs it; the URL of a bucket is unchanged.

    Raises:
        ValueError: the path has characters by which Orbax would read or write elsewhere.
    """
    path = os.fspath(workdir)
    path = path if is_remote(path) else os.path.abspath(path)
    if wrong := _MISTAKEN.search(path):
        raise ValueError(
            f"{ascii(path)[1:-1]}: no workdir can have {wrong[0]!a} in its path, which the "
            "storage library takes for a pattern or for another name: rename the folder, or make "
            "a link to it (ln -s) without it and give the link"
        )
    return epath.Path(path)


# Orbax searches for its files by patterns that begin with the path, in which brackets, stars and
# question marks match other names and a backslash nothing. A folder named "gs:" is taken for a
# bucket's scheme. Control characters break messages, and surrogates are no UTF-8.
_MISTAKEN = re.compile(r"[\[*?\\\x00-\x1f\x7f\ud800-\udfff]|(?<=/)(?:gs|s3|az):(?=/|$)")


def _lists_to_tuples(value: Any) -> Any:
    """Return a value read from JSON with tuples in place of lists."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(v) for key, v in value.items()}
    return tuple(_lists_to_tuples(v) for v in value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Origin:
    """The software and the machine of a run's latest start, or of a conversion.

    Attributes:
        versions: version by package, and that of Python.
        git_commit: commit of the checkout; None outside a checkout.
        hardware: the result of `hardware`; empty in workdirs of versions that did not record it.
    """

    versions: Mapping[str, str]
    git_commit: str | None
    hardware: Mapping[str, str]


def read_origin(workdir: str | os.PathLike) -> Origin:
    """Read the software and the machine that a workdir was written with.

    Raises:
        FileNotFoundError: not a workdir.
        ValueError: a broken file; names it.
    """
    path = epath.Path(workdir) / MODEL
    content = read_json(path)
    parts = {name: content.get(name) or {} for name in ("versions", "hardware")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ValueError(f'{path}: its "{name}" is a JSON object, not {part!r:.40}')
    return Origin(**parts, git_commit=content.get("git_commit"))


def hardware() -> dict[str, str]:
    """Return in words what this program computes on: devices, processes, processor."""
    devices = collections.Counter(device.device_kind for device in jax.devices())
    return {
        "devices": ", ".join(f"{count} x {kind}" for kind, count in devices.items()),
        "backend": jax.default_backend(),
        "processes": str(jax.process_count()),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """Return the processor's name; on Linux alone does the system tell more than its family."""
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        if match := re.search(r"^model name\s*: (.+)$", text, re.M):
            return match[1]
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the version of Python, and of each installed package that a result depends on."""
    numbers = {"python": platform.python_version()}
    for package in ("cmap_jax", *_PACKAGES):
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
            continue
    return numbers


def _git_commit() -> str | None:
    """Return the commit of the checkout that holds this code; None outside a checkout."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
