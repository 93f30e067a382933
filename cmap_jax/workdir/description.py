"""A self-describing model on disk: everything that a use of it needs, and nothing of the data.

WORKDIR/config.json        the whole config
        vocabulary.txt     the words, one a line in id order (or another tokenizer's files)
        parameters.txt     name, shape and size of every parameter
        model.json         preprocessing, protocol, data facts, versions, commit
        checkpoints/       the latest states of the run, to continue from
        best/              the variables with the best recall, to use
        damaged/           checkpoints that could not be read, where there were any
        run.lock           while a run is at work here
        evaluation.json    what the best variables reach, by protocol; evaluation-<name>.json on
                           another data set
        rankings/          each query's best images, where asked for

`cmap_jax.workdir.weights` writes and reads the weights; `cmap_jax.trained` loads it all for use.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from cmap_jax.files import read_json, write_json, write_text
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizers import tokenizer_class
from cmap_jax.processing.tokenizing import Tokenizer
from cmap_jax.protocols import Protocol
from cmap_jax.workdir import renamed_fields

CONFIG, MODEL, EVALUATION = "config.json", "model.json", "evaluation.json"
PARAMETERS = "parameters.txt"
CHECKPOINTS, BEST, RANKINGS = "checkpoints", "best", "rankings"
CONVERTED_FROM = "converted_from"  # the fact that marks a workdir without a run
_FORMAT = 3  # of model.json; raised when a reader of the old one would misread the new one
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "nltk")
# In the middle of a run: what says how and where it is computed, and not what. That data in another
# place are the same, and read in the same way, is checked by their words, facts and preprocessing.
_MAY_CHANGE = (
    "config.data.cache_gb",
    "config.data.directory",
    "config.data.image_directory",
    "config.data.near_names",
    "config.data.read_as",
    "config.data.unreadable_texts",
    "config.distributed.heartbeat_timeout_seconds",
    "config.mesh.data",
    "config.mesh.fsdp",
    "config.model.remat",
)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a workdir says of itself besides the weights.

    Attributes:
        config: the whole config.
        tokenizer: texts to token ids.
        preprocessing: how a picture is read, and what is done to it.
        protocols: what chose the best checkpoint comes first.
        facts: of the training data, such as the number of skipped images.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    preprocessing: ImagePreprocessing
    protocols: tuple[Protocol, ...]
    facts: Mapping[str, Any]


def write_description(workdir: str | os.PathLike, description: Description) -> None:
    """Write everything but the weights; ``config.json`` comes last and makes it a workdir."""
    workdir = epath.Path(workdir)
    description.tokenizer.save(workdir)
    write_json(
        workdir / MODEL,
        {
            "format": _FORMAT,
            "preprocessing": description.preprocessing.to_dict(),
            "protocols": [protocol.to_dict() for protocol in description.protocols],
            "facts": dict(description.facts),
            "versions": _versions(),
            "git_commit": _git_commit(),
        },
    )
    write_json(workdir / CONFIG, description.config.to_dict())


def read_description(workdir: str | os.PathLike) -> Description:
    """Read a workdir's description.

    Raises:
        FileNotFoundError: not a workdir; says what is missing.
        ValueError: a broken file, a newer format, or files that do not fit one another.
    """
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    if config is None:
        raise FileNotFoundError(
            f"{workdir} is not a workdir: it has no {CONFIG}. Train one with python main.py "
            f"--config=configs/garments.py --workdir={workdir}"
        )
    about = read_json(workdir / MODEL)
    if about.get("format") != _FORMAT:
        raise ValueError(
            f"{workdir / MODEL} has format {about.get('format')}, this version of cmap_jax reads "
            f"{_FORMAT}"
        )
    tokenizer = tokenizer_class(config.model.text.tokenizer).load(workdir)
    if len(tokenizer) != config.model.text.vocabulary_size:
        raise ValueError(
            f"{workdir}: its tokenizer has {len(tokenizer)} words, but the model was made for "
            f"{config.model.text.vocabulary_size}: it belongs to another model"
        )
    return Description(
        config=config,
        tokenizer=tokenizer,
        preprocessing=ImagePreprocessing.from_dict(about["preprocessing"]),
        protocols=tuple(Protocol.from_dict(fields) for fields in about["protocols"]),
        facts=about["facts"],
    )


def read_config(workdir: str | os.PathLike) -> ConfigDict | None:
    """Return a workdir's config, or None if there is none."""
    path = epath.Path(workdir) / CONFIG
    return read_config_file(path) if path.exists() else None


def read_config_file(path: str | os.PathLike) -> ConfigDict:
    """Return the config in a JSON file as `write_description` writes it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or no object; names the file.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)}: a config is a JSON object, not {content!r:.40}")
    return ConfigDict(_lists_to_tuples(renamed_fields.translate(content)))


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Tell whether a run in the workdir has saved a state to continue from."""
    return bool(saved_steps(workdir))


def unfinished(workdir: str | os.PathLike) -> tuple[int, int] | None:
    """Return the last saved step of a run and that of its end; None where it is there, or no run.

    Raises:
        FileNotFoundError, ValueError: as `read_description`.
    """
    description = read_description(workdir)
    if CONVERTED_FROM in description.facts or "training_items" not in description.facts:
        return None
    train = description.config.train
    total = train.epochs * (description.facts["training_items"] // train.batch_size)
    last = max(saved_steps(workdir), default=0)
    return (last, total) if last < total else None


def check_has_weights(workdir: str | os.PathLike) -> None:
    """Refuse a workdir whose run has saved nothing yet, before data are read for it.

    Raises:
        FileNotFoundError: says so.
    """
    if not saved_steps(workdir, BEST) and not saved_steps(workdir):
        raise FileNotFoundError(
            f"{os.fspath(workdir)} has no checkpoint yet: its run has not come to the end of an "
            "epoch. Run it again to continue"
        )


def saved_steps(workdir: str | os.PathLike, part: str = CHECKPOINTS) -> list[int]:
    """Return the steps of which a run in the workdir has saved a state, in no order.

    Args:
        workdir: the workdir.
        part: `CHECKPOINTS`, or `BEST` for the steps of its best variables.
    """
    folder = epath.Path(workdir) / part
    # Orbax knows which are complete; in a bucket, which cannot rename, it marks those.
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def absolute(workdir: str | os.PathLike) -> epath.Path:
    """Return a workdir's absolute path, as Orbax needs it; one in a bucket is that already."""
    path = os.fspath(workdir)
    return epath.Path(path if "://" in path else os.path.abspath(path))


def _lists_to_tuples(value: Any) -> Any:
    """Undo what JSON does to tuples."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(v) for key, v in value.items()}
    return tuple(_lists_to_tuples(v) for v in value) if isinstance(value, list) else value


def mark_of_run(config: ConfigDict) -> str:
    """Return what tells the checkpoints of one config and seed from those of others."""
    fields = dict(_flatten(config.to_dict()))
    kept = {name: value for name, value in fields.items() if name not in _MAY_CHANGE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _flatten(fields: Mapping, prefix: str = "config") -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", value


def differing_fields(old: Mapping, new: Mapping, prefix: str = "config") -> Iterator[str]:
    """Return a line for every field in which two configs differ.

    A field that is None in ``new`` and is filled from the data counts as equal.
    """
    filled = ("config.model.text.vocabulary_size",)
    for key in dict.fromkeys([*old, *new]):
        name, a, b = f"{prefix}.{key}", old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differing_fields(a, b, name)
        elif a != b and not (name in filled and b is None):
            yield f"{name}: {a!r} there, {b!r} now"


def check_same_run(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Refuse to go on in a workdir that belongs to another config or seed.

    Raises:
        ValueError: lists the differing fields.
    """
    old = read_config(workdir)
    if old is None:
        return
    if CONVERTED_FROM in read_description(workdir).facts:
        raise ValueError(
            f"{os.fspath(workdir)} holds a converted model and no run that could go on; start one "
            f"from it in another folder: --workdir=... --config.init_from={os.fspath(workdir)}"
        )
    if renamed_fields.has_old_names(read_json(epath.Path(workdir) / CONFIG)):
        raise ValueError(
            f"{os.fspath(workdir)} holds a run of an earlier version of cmap_jax, which cannot go "
            f"on; start one from it in another folder: --config.init_from={os.fspath(workdir)}"
        )
    lines = [
        line
        for line in differing_fields(old.to_dict(), config.to_dict())
        if line.partition(":")[0] not in _MAY_CHANGE
    ]
    if lines:
        raise ValueError(
            f"{os.fspath(workdir)} holds a run with another config:\n  "
            + "\n  ".join(lines)
            + "\nChoose another folder with --workdir=..., or set these fields back to resume it"
        )


def write_results(
    workdir: str | os.PathLike,
    content: Mapping[str, Any],
    rankings: Mapping[str, Sequence[Mapping]],
) -> None:
    """Write a file of results and, where there are any, the rankings.

    The results on the data set that the model was trained on are ``evaluation.json``; those on
    another one are ``evaluation-<name>.json``, beside it.

    Args:
        workdir: the workdir.
        content: what `cmap_jax.evaluation.results.results_to_dict` returns.
        rankings: a record a query for each protocol.
    """
    workdir = epath.Path(workdir)
    for protocol, records in rankings.items():
        if records:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            write_text(workdir / RANKINGS / f"{protocol.replace('/', '-')}.jsonl", lines)
    write_json(results_file(workdir, content["facts"]["data"]["name"]), content)


def results_file(workdir: str | os.PathLike, data_name: str) -> epath.Path:
    """Return the place of the results on a data set."""
    workdir = epath.Path(workdir)
    own = read_config(workdir).data.name == data_name
    return workdir / (EVALUATION if own else f"evaluation-{data_name}.json")


def read_results(workdir: str | os.PathLike, data_name: str) -> dict[str, Any]:
    """Return the results on a data set, as `write_results` wrote them."""
    return read_json(results_file(workdir, data_name))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("cmap_jax", *_PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
            continue
    return versions


def _git_commit() -> str | None:
    """Return the commit of the checkout that this code runs from, if it is one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
