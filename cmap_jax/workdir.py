"""A self-describing model on disk: everything that a use of it needs, and nothing of the data.

WORKDIR/config.json        the whole config
        vocabulary.txt     the words, one a line in id order
        model.json         preprocessing, protocol, data facts, versions, commit
        checkpoints/       the latest states of the run, to continue from
        best/              the variables with the best recall, to use
        damaged/           checkpoints that could not be read, where there were any
        run.lock           while a run is at work here
        evaluation.json    what the best variables reach, by protocol; evaluation-<name>.json on
                           another data set
        rankings/          each query's best images, where asked for

trained = load("runs/garments")
pyramid = trained.encode_images(["dress.jpg"])
text = trained.encode_text(["is red and longer"])
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from cmap_jax.fingerprint import fingerprint
from cmap_jax.models.cmap import CMAP
from cmap_jax.processing import images as images_lib
from cmap_jax.processing.files import complete_folder, read_json, write_json, write_text
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import Protocol

CONFIG, VOCABULARY, MODEL, EVALUATION = (
    "config.json",
    "vocabulary.txt",
    "model.json",
    "evaluation.json",
)
CHECKPOINTS, BEST, RANKINGS = "checkpoints", "best", "rankings"
CONVERTED_FROM = "converted_from"  # the fact that marks a workdir without a run
_FORMAT = 3  # of model.json; raised when a reader of the old one would misread the new one
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "nltk")
_BATCH = 64  # images encoded at once
# In the middle of a run: what says how and where it is computed, and not what.
_MAY_CHANGE = (
    "config.data.cache_gb",
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
        vocabulary: the words.
        preprocessing: what is done to an image.
        protocols: what chose the best checkpoint comes first.
        facts: of the training data, such as the number of skipped images.
    """

    config: ConfigDict
    vocabulary: Vocabulary
    preprocessing: ImagePreprocessing
    protocols: tuple[Protocol, ...]
    facts: Mapping[str, Any]


def write_description(workdir: str | os.PathLike, description: Description) -> None:
    """Write everything but the weights; ``config.json`` comes last and makes it a workdir."""
    workdir = epath.Path(workdir)
    description.vocabulary.save(workdir / VOCABULARY)
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


def write_model(
    workdir: str | os.PathLike, description: Description, model: CMAP, variables: Any
) -> None:
    """Write a workdir that holds a model and no run; it appears when it is complete.

    Raises:
        ValueError: the variables are not those of the model.
        OSError: the folder is there already and not empty, or cannot be written.
    """
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), **CMAP.example_inputs(64)))
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (expected, variables)]
    if shapes[0] != shapes[1]:
        raise ValueError("the variables are not those of the model")
    with complete_folder(absolute(workdir)) as scratch:
        with ocp.CheckpointManager(scratch / BEST) as manager:
            mark = mark_of_run(description.config)
            manager.save(0, args=variables_to_save(variables, mark))
        write_description(scratch, description)


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
    vocabulary = Vocabulary.load(workdir / VOCABULARY)
    if len(vocabulary) != config.model.text.vocabulary_size:
        raise ValueError(
            f"{workdir / VOCABULARY} has {len(vocabulary)} words, but the model was made for "
            f"{config.model.text.vocabulary_size}: it belongs to another model"
        )
    return Description(
        config,
        vocabulary,
        ImagePreprocessing.from_dict(about["preprocessing"]),
        tuple(Protocol.from_dict(fields) for fields in about["protocols"]),
        about["facts"],
    )


def read_config(workdir: str | os.PathLike) -> ConfigDict | None:
    """Return a workdir's config, or None if there is none."""
    path = epath.Path(workdir) / CONFIG
    return ConfigDict(_lists_to_tuples(read_json(path))) if path.exists() else None


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Tell whether a run in the workdir has saved a state to continue from."""
    return bool(saved_steps(workdir))


def saved_steps(workdir: str | os.PathLike) -> list[int]:
    """Return the steps of which a run in the workdir has saved a state, in no order."""
    folder = epath.Path(workdir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


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


class Trained:
    """A trained model, ready to use.

    Attributes:
        config: the whole config of its run.
        model: the Flax module.
        variables: its parameters and statistics.
        vocabulary: the words it knows.
        preprocessing: what is done to an image.
        protocol: what chose these weights.
        step: training steps that these weights have seen.
    """

    def __init__(self, description: Description, model: CMAP, variables: Any, step: int):
        """See `load`."""
        self.config = description.config
        self.model = model
        self.variables = variables
        self.vocabulary = description.vocabulary
        self.preprocessing = description.preprocessing
        self.protocol = description.protocols[0]
        self.step = step

    def encode_text(self, texts: Sequence[str | Sequence[str]]) -> jax.Array:
        """Encode texts, each one caption or a sequence of one or two, to [B, D] float32."""
        if isinstance(texts, str):
            raise TypeError("encode_text takes a sequence of texts: [text]")
        tokens, lengths = self.vocabulary.encode_batch(texts)
        return self._encode_text(self.variables, tokens, lengths)

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        """Encode images to their pyramid, [L, B, D] float32.

        Args:
            images: paths, PIL images, encoded bytes or uint8 arrays [H, W, 3], as
                `cmap_jax.processing.images.read_image` takes them.
        """
        if isinstance(images, str | os.PathLike):
            raise TypeError("encode_images takes a sequence of images: [image]")
        if not len(images):
            raise ValueError("no images to encode")
        pyramids = []
        for start in range(0, len(images), _BATCH):
            pixels = np.stack(
                [
                    images_lib.preprocess_image(image, self.preprocessing)
                    for image in images[start : start + _BATCH]
                ]
            )
            pyramids.append(np.asarray(self._encode_images(self.variables, pixels)))
        return np.concatenate(pyramids, axis=1)

    @functools.cached_property
    def _encode_text(self) -> Any:
        return jax.jit(lambda v, t, n: self.model.apply(v, t, n, method="encode_text"))

    @functools.cached_property
    def _encode_images(self) -> Any:
        return jax.jit(lambda v, x: self.model.apply(v, x, method="encode_images"))


def load(workdir: str | os.PathLike) -> Trained:
    """Load the best variables of a workdir. Needs neither the data nor TensorFlow.

    Raises:
        FileNotFoundError: not a workdir, or one without a checkpoint yet.
        ValueError: files that are broken or do not fit one another; says which.
    """
    description = read_description(workdir)
    model = CMAP.from_config(description.config)
    step, variables = read_variables(workdir, model, description.preprocessing.crop)
    return Trained(description, model, variables, step)


def variables_to_save(variables: Any, mark: str) -> ocp.args.Composite:
    """Return what a checkpoint of ``best/`` holds, for an Orbax manager."""
    about = {"run": mark, "fingerprint": fingerprint(variables)}
    return ocp.args.Composite(
        variables=ocp.args.StandardSave(variables), about=ocp.args.JsonSave(about)
    )


def check_variables(workdir: str | os.PathLike, step: int, mark: str, like: Any) -> None:
    """Refuse a checkpoint of ``best/`` that is damaged or another run's.

    Args:
        workdir: the workdir.
        step: which of the checkpoints.
        mark: the run's.
        like: arrays of the same shapes, where they are to be read to.

    Raises:
        ValueError: says why.
    """
    expected = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    # A manager of its own: one that has read in this way refuses to write in the other.
    with ocp.CheckpointManager(absolute(workdir) / BEST) as manager:
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        if manager.restore(step, args=args)["about"]["run"] != mark:
            raise ValueError("they belong to another run")
        _read_verified(manager, step, "variables", expected)


def read_variables(
    workdir: str | os.PathLike,
    model: CMAP,
    image_size: int,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[int, Any]:
    """Return the step and the best variables of a workdir; the latest if none is best yet.

    Args:
        workdir: the workdir.
        model: what the variables belong to.
        image_size: side of its images.
        sharding: where the variables are put; None: on one device of this process.

    Raises:
        FileNotFoundError: there is no checkpoint yet.
        ValueError: one that is damaged, or does not fit the model; names it.
    """
    expected = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(image_size))
    )
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    expected = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), expected
    )
    for folder, item in ((BEST, "variables"), (CHECKPOINTS, "state")):
        path = absolute(workdir) / folder
        if not path.is_dir():
            continue
        with ocp.CheckpointManager(path) as manager:
            step = manager.latest_step()
            if step is None:
                continue
            try:
                return step, _read_verified(manager, step, item, expected)
            except (ValueError, KeyError, OSError, jax.errors.JaxRuntimeError) as error:
                raise ValueError(
                    f"{path / str(step)} cannot be read as the model that {CONFIG} describes: "
                    f"{error}"
                ) from error
    raise FileNotFoundError(f"{os.fspath(workdir)} has no checkpoint yet")


def _read_verified(manager: ocp.CheckpointManager, step: int, item: str, expected: Any) -> Any:
    """Read an item's arrays, or the part of them that is expected, and compare fingerprints."""
    restore = ocp.args.PyTreeRestore(
        expected,
        restore_args=ocp.checkpoint_utils.construct_restore_args(expected),
        # A state holds the optimiser's part too.
        partial_restore=item == "state",
    )
    args = ocp.args.Composite(**{item: restore, "about": ocp.args.JsonRestore()})
    restored = manager.restore(step, args=args)
    known = restored["about"]["fingerprint"]
    wanted = fingerprint(restored[item])
    if wrong := [name for name, value in wanted.items() if known.get(name) != value]:
        raise ValueError(f"it is damaged: {', '.join(wrong[:3])} is not what was saved")
    return restored[item]


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
