"""Data of `preservation.py`: a data set in one file, and its training and evaluation in memory.

`prepare` writes all that the runs of some seeds read: the pictures, each batch of training as rows
of pictures and texts, and the evaluation. It needs TensorFlow, `load` does not.
"""

import copy
import dataclasses
import functools
import importlib
import io
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax
import harness  # noqa: F401 - puts the root of the repository on the path
import jax
import numpy as np

from cmap_jax.files import read_bytes, write_bytes, write_json
from cmap_jax.models.composers import find_variant
from cmap_jax.processing.image_files import open_as
from cmap_jax.processing.images import ImagePreprocessing, load_square
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.training.frozen_encoder import FrozenEncoder
from cmap_jax.workdir.description import read_config_file
from input_pipeline.images.augmentation import center_crop, cut
from input_pipeline.records import Evaluation, Query


class Set(NamedTuple):
    """A data set.

    Attributes:
        config: module of its config.
        argument: the config's argument.
        split: the split that is evaluated.
        changes: config fields to change.
        longest: the longest run, in times of the config's epochs.
        quality: pictures are stored as JPEGs of this quality; None: without loss.
    """

    config: str
    argument: str
    split: str
    changes: dict[str, Any]
    longest: int
    quality: int | None = None


_WEIGHTS = "weights"
_AT_ONCE = 128  # pictures that are encoded at once
_SMALL = {"data.resize": 128, "data.crop": 128, "data.augment": False}
SETS = {
    "photographs": Set("fashion200k", "debug", "val", {"train.epochs": 24}, 3),
    "garments": Set("garments", "", "test", {}, 1),
    # A frozen encoder with the weights of ImageNet, whose features are made once.
    "pretrained": Set("fashion200k", "pretrained", "val", _SMALL, 1, quality=92),
}


def prepare(name: str, source: str, folder: pathlib.Path, seeds: int) -> None:
    """Write a data set's files into a folder.

    Args:
        name: a key of `SETS`.
        source: the data set's own folder.
        folder: receives ``<name>.npz`` and ``<name>.config.json``.
        seeds: number of seeds, from 0, whose batches are written.
    """
    from cmap_jax.training.initial_weights import read_initial_weights
    from input_pipeline import create_datasets

    config = _config(name, source)
    batches = {}
    for seed in range(seeds):
        config.seed = seed
        datasets = create_datasets(config)
        batches[seed] = _batches(datasets.train, config.train.epochs * SETS[name].longest)
    evaluation = datasets.evaluations[SETS[name].split]
    loader = datasets.train._loader
    ids = list(dict.fromkeys([*datasets.train._source.image_ids(), *evaluation.image_ids]))
    rows = dict(zip(loader.keys(ids), range(len(ids)), strict=True))
    texts, arrays = _Texts(datasets.train.text_width), {}
    for seed, plan in batches.items():
        keys = np.array([[rows[k] for pair in b["image"] for k in pair] for b in plan], np.uint16)
        arrays[f"images_{seed}"] = keys.reshape(len(plan), -1, 2)
        arrays[f"crops_{seed}"] = np.stack([b["crop"] for b in plan]).astype(np.uint8)
        arrays[f"texts_{seed}"] = np.stack([texts.rows(b) for b in plan]).astype(np.uint16)
    tokens, lengths = texts.arrays()
    quality = SETS[name].quality
    files = [_encode(loader.source.where(i), loader.preprocessing, quality) for i in ids]
    if config.model.image.frozen:
        arrays |= _flatten(FrozenEncoder.from_initial(config, read_initial_weights(config)).weights)
    config.model.text.vocabulary_size = len(datasets.tokenizer)
    write_json(folder / f"{name}.config.json", config.to_dict())
    about = {
        "images": ids,
        "steps_per_epoch": datasets.train.steps_per_epoch,
        "sizes": dataclasses.asdict(evaluation.sizes),
        "evaluations": [_plain(e, datasets.tokenizer) for e in evaluation.evaluations],
    }
    out = io.BytesIO()
    np.savez_compressed(
        out,
        encoded=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        tokens=tokens,
        lengths=lengths,
        **arrays,
    )
    write_bytes(folder / f"{name}.npz", out.getvalue())


def _config(name: str, source: str) -> Any:
    """Return the config of the runs on a data set."""
    module = importlib.import_module(f"configs.{SETS[name].config}")
    config = module.get_config(SETS[name].argument)
    config.data.directory = source
    config.data.cache_gb = 0.0
    config.update_from_flattened_dict(SETS[name].changes)
    return config


def _batches(train: Any, epochs: int) -> list[dict]:
    """Return the plan of all batches of some epochs; no image is decoded."""
    return list(train._plan(0, epochs * train.steps_per_epoch))


class _Texts:
    """Numbers the different texts of all batches."""

    def __init__(self, width: int):
        self._width, self._numbers = width, {}

    def rows(self, batch: dict) -> list[int]:
        """Return the number of each of a batch's texts."""
        keys = zip(batch["text_tokens"], batch["text_lengths"], strict=True)
        numbers = self._numbers
        return [
            numbers.setdefault((tuple(tokens.tolist()), int(length)), len(numbers))
            for tokens, length in keys
        ]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens [N, T] and lengths [N], by number."""
        tokens, lengths = zip(*self._numbers, strict=True)
        return np.array(tokens, np.uint16), np.array(lengths, np.uint8)


def _encode(path: str, preprocessing: ImagePreprocessing, quality: int | None) -> bytes:
    """Return a file of a picture's square: its own file if it is the square, else a new one."""
    square = load_square(path, preprocessing)
    content = read_bytes(path)
    if np.array_equal(_decode(content), np.asarray(square)):
        return content
    file = io.BytesIO()
    if quality is None:
        square.save(file, "WEBP", lossless=True, quality=100, method=4)
    else:
        square.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def _flatten(weights: Any) -> dict[str, np.ndarray]:
    """Return arrays by path."""
    flat = flax.traverse_util.flatten_dict(weights, sep="/")
    return {f"{_WEIGHTS}/{name}": np.asarray(x) for name, x in flat.items()}


def _decode(content: bytes) -> np.ndarray:
    return np.asarray(open_as(io.BytesIO(content)).convert("RGB"))


def _plain(evaluation: Evaluation, tokenizer: Any) -> dict:
    """Return an evaluation for JSON, with the token ids of its queries."""
    fields = dataclasses.asdict(evaluation) | {"protocol": evaluation.protocol.name}
    for query in fields["queries"]:
        query["tokens"] = list(map(int, tokenizer.encode(query["captions"])))
    return fields


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set in memory.

    Attributes:
        config: the config of its runs.
        pictures: all pictures, uint8 [N, R, R, 3]; or their features by level, [N, ...] float32.
        tokens: all texts of training, int32 [M, T].
        lengths: their lengths, int32 [M].
        steps_per_epoch: batches of an epoch.
        split: the evaluation, as `cmap_jax.evaluation.evaluator.Evaluator` takes it.
    """

    config: Any
    pictures: Any
    tokens: np.ndarray
    lengths: np.ndarray
    steps_per_epoch: int
    split: "Split"
    arrays: dict[str, np.ndarray]

    def batches(self, seed: int) -> dict[str, np.ndarray]:
        """Return a seed's batches: ``images`` [S, B, 2], ``crops`` [S, B, 2, 3], ``texts``."""
        return {name: self.arrays[f"{name}_{seed}"] for name in ("images", "crops", "texts")}

    def take(self, variant: str) -> "Data":
        """Return the data with the levels of the pictures' features that a method reads."""
        if not isinstance(self.pictures, dict):
            return self
        levels = find_variant(variant).levels
        pictures = {level: self.pictures[level] for level in levels}
        split = copy.copy(self.split)
        split.pictures = {level: self.split.pictures[level] for level in levels}
        return dataclasses.replace(self, pictures=pictures, split=split)


def load(name: str, folder: pathlib.Path) -> Data:
    """Read what `prepare` wrote."""
    config = read_config_file(folder / f"{name}.config.json")
    with np.load(folder / f"{name}.npz") as file:
        arrays = dict(file)
    about = json.loads(arrays.pop("about").tobytes())
    encoded, offsets = arrays.pop("encoded").tobytes(), arrays.pop("offsets")
    files = [encoded[a:b] for a, b in itertools.pairwise(offsets)]
    pictures = np.stack(list(map(_decode, files)))
    weights = {n: arrays.pop(n) for n in list(arrays) if n.startswith(_WEIGHTS)}
    if weights:
        pictures = _features(config, weights, pictures)
    return Data(
        config=config,
        pictures=pictures,
        tokens=arrays.pop("tokens").astype(np.int32),
        lengths=arrays.pop("lengths").astype(np.int32),
        steps_per_epoch=about["steps_per_epoch"],
        split=Split(about, pictures, config),
        arrays=arrays,
    )


def _features(config: Any, weights: dict, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features that a frozen encoder makes of pictures, by level."""
    tree = flax.traverse_util.unflatten_dict(weights, sep="/")[_WEIGHTS]
    variables = {kind: {"image_encoder": {"backbone": x}} for kind, x in tree.items()}
    encoder = FrozenEncoder.from_variables(config, variables)
    encode = jax.jit(encoder.features)
    padded = _pad_rows(pictures, -(-len(pictures) // _AT_ONCE) * _AT_ONCE)
    parts = [
        jax.tree.map(np.asarray, encode(encoder.weights, padded[start : start + _AT_ONCE]))
        for start in range(0, len(padded), _AT_ONCE)
    ]
    return {level: np.concatenate([p[level] for p in parts])[: len(pictures)] for level in parts[0]}


class Split:
    """A split's evaluations with pictures in memory; see `Evaluator.__call__` for its methods."""

    def __init__(self, about: dict, pictures: Any, config: Any):
        """Cut the centre of each picture, unless they are features, and read the evaluations."""
        self.evaluations = tuple(map(_evaluation, about["evaluations"]))
        self.sizes = SimpleNamespace(**about["sizes"])
        ids = {}
        for evaluation in self.evaluations:
            ids |= evaluation.image_ids()
        self.image_ids = tuple(ids)
        self.positions = {image: row for row, image in enumerate(self.image_ids)}
        self.batch_size = config.eval.batch_size
        self._tokens = {
            tuple(q["captions"]): q["tokens"] for e in about["evaluations"] for q in e["queries"]
        }
        known = {image: row for row, image in enumerate(about["images"])}
        rows = np.array([known[i] for i in self.image_ids])
        if isinstance(pictures, dict):
            self.pictures = rows_of(pictures, rows)
        else:
            sizes = SimpleNamespace(resize=config.data.resize, crop=config.data.crop)
            crops = np.broadcast_to(center_crop(sizes), (len(rows), 3))
            self.pictures = cut(pictures, rows, crops, config.data.crop)

    def is_usable(self) -> np.ndarray:
        """Tell that all pictures can be used."""
        return np.ones(len(self.image_ids), bool)

    def leave_out(self, image_ids: Sequence[str]) -> None:
        """Refuse to leave out anything."""
        if image_ids:
            raise ValueError(f"{len(image_ids)} pictures are missing")

    def image_batch_count(self) -> int:
        """Return the number of `image_batches`."""
        return -(-len(self.image_ids) // self.batch_size)

    def image_batches(self) -> Iterator[dict]:
        """Yield the pictures in padded batches."""
        for start in range(0, len(self.image_ids), self.batch_size):
            index = np.arange(start, min(start + self.batch_size, len(self.image_ids)))
            batch = {"image": rows_of(self.pictures, index), "index": index.astype(np.int32)}
            yield self._pad(batch, len(index))

    def query_batches(self, queries: Sequence[Query]) -> Iterator[dict]:
        """Yield the queries in padded batches."""
        tokens, lengths = self.encode([query.captions for query in queries])
        references = np.array([self.positions[q.reference] for q in queries], np.int32)
        for start in range(0, len(queries), self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = {
                "reference": references[rows],
                "more_references": np.empty((len(references[rows]), 0), np.int32),
                "text_tokens": tokens[rows],
                "text_lengths": lengths[rows],
            }
            yield self._pad(batch, len(references[rows]))

    def encode(self, texts: Sequence[tuple[str, ...]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens [N, T] and lengths [N] of texts of the split, int32."""
        known = [self._tokens[text] for text in texts]
        tokens = np.zeros((len(known), self.sizes.tokens), np.int32)
        for row, ids in zip(tokens, known, strict=True):
            row[: len(ids)] = ids
        return tokens, np.array([len(ids) for ids in known], np.int32)

    def load(self, image_ids: Sequence[str]) -> tuple[list[int], np.ndarray]:
        """Return the rows of the pictures that can be read, which are all, and the pictures."""
        rows = np.array([self.positions[i] for i in image_ids])
        return list(range(len(image_ids))), rows_of(self.pictures, rows)

    def _pad(self, batch: dict, count: int) -> dict:
        pad = functools.partial(_pad_rows, size=self.batch_size)
        return jax.tree.map(pad, batch) | {"mask": np.arange(self.batch_size) < count}


def rows_of(pictures: Any, rows: Any) -> Any:
    """Return some pictures, or the features of some."""
    return jax.tree.map(lambda array: array[rows], pictures)


def _pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def _evaluation(fields: dict) -> Evaluation:
    """Return an evaluation from the result of `_plain`."""
    queries = []
    for query in fields["queries"]:
        known = {f.name: query[f.name] for f in dataclasses.fields(Query) if f.name in query}
        queries.append(
            Query(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})
        )
    galleries = {name: tuple(ids) for name, ids in fields["galleries"].items()}
    return Evaluation(PROTOCOLS[fields["protocol"]], galleries, tuple(queries), fields["skipped"])
