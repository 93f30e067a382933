"""Data of `preservation.py`: a data set in one file, and its training and evaluation in memory.

`prepare` writes all that the runs of some seeds read: the pictures, each batch of training as rows
of pictures and texts, and the evaluation. It needs TensorFlow, `load` does not.
"""

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

import harness  # noqa: F401 - puts the root of the repository on the path
import numpy as np
from PIL import Image

from cmap_jax.files import read_bytes, write_bytes, write_json
from cmap_jax.processing.images import ImagePreprocessing, load_square
from cmap_jax.protocols import PROTOCOLS
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
    """

    config: str
    argument: str
    split: str
    changes: dict[str, Any]
    longest: int


SETS = {
    "photographs": Set("fashion200k", "debug", "val", {"train.epochs": 24}, 3),
    "garments": Set("garments", "", "test", {}, 1),
}


def prepare(name: str, source: str, folder: pathlib.Path, seeds: int) -> None:
    """Write a data set's files into a folder.

    Args:
        name: a key of `SETS`.
        source: the data set's own folder.
        folder: receives ``<name>.npz`` and ``<name>.config.json``.
        seeds: number of seeds, from 0, whose batches are written.
    """
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
    files = [_encode(loader.source.where(i), loader.preprocessing) for i in ids]
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


def _encode(path: str, preprocessing: ImagePreprocessing) -> bytes:
    """Return a file of a picture's square: its own file if it is the square, else a new one."""
    square = load_square(path, preprocessing)
    content = read_bytes(path)
    if np.array_equal(_decode(content), np.asarray(square)):
        return content
    file = io.BytesIO()
    square.save(file, "WEBP", lossless=True, quality=100, method=4)
    return file.getvalue()


def _decode(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


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
        squares: all pictures, uint8 [N, R, R, 3].
        tokens: all texts of training, int32 [M, T].
        lengths: their lengths, int32 [M].
        steps_per_epoch: batches of an epoch.
        split: the evaluation, as `cmap_jax.evaluation.evaluator.Evaluator` takes it.
    """

    config: Any
    squares: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    steps_per_epoch: int
    split: "Split"
    arrays: dict[str, np.ndarray]

    def batches(self, seed: int) -> dict[str, np.ndarray]:
        """Return a seed's batches: ``images`` [S, B, 2], ``crops`` [S, B, 2, 3], ``texts``."""
        return {name: self.arrays[f"{name}_{seed}"] for name in ("images", "crops", "texts")}


def load(name: str, folder: pathlib.Path) -> Data:
    """Read what `prepare` wrote."""
    config = read_config_file(folder / f"{name}.config.json")
    with np.load(folder / f"{name}.npz") as file:
        arrays = dict(file)
    about = json.loads(arrays.pop("about").tobytes())
    encoded, offsets = arrays.pop("encoded").tobytes(), arrays.pop("offsets")
    files = [encoded[a:b] for a, b in itertools.pairwise(offsets)]
    squares = np.stack(list(map(_decode, files)))
    return Data(
        config=config,
        squares=squares,
        tokens=arrays.pop("tokens").astype(np.int32),
        lengths=arrays.pop("lengths").astype(np.int32),
        steps_per_epoch=about["steps_per_epoch"],
        split=Split(about, squares, config),
        arrays=arrays,
    )


class Split:
    """A split's evaluations with pictures in memory; see `Evaluator.__call__` for its methods."""

    def __init__(self, about: dict, squares: np.ndarray, config: Any):
        """Cut the centre of each picture, and read the evaluations."""
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
        crops = np.broadcast_to(
            center_crop(SimpleNamespace(resize=config.data.resize, crop=config.data.crop)),
            (len(rows), 3),
        )
        self.pixels = cut(squares, rows, crops, config.data.crop)

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
            batch = {"image": self.pixels[index], "index": index.astype(np.int32)}
            yield self._pad(batch, len(index))

    def query_batches(self, queries: Sequence[Query]) -> Iterator[dict]:
        """Yield the queries in padded batches."""
        tokens, lengths = self.encode([query.captions for query in queries])
        references = np.array([self.positions[q.reference] for q in queries], np.int32)
        for start in range(0, len(queries), self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = {
                "reference": references[rows],
                "text_tokens": tokens[rows],
                "text_lengths": lengths[rows],
            }
            yield self._pad(batch, len(references[rows]))

    def encode(self, texts: Sequence[tuple[str, ...]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens [N, T] and lengths [N] of texts of the split, int32."""
        found = [self._tokens[text] for text in texts]
        tokens = np.zeros((len(found), self.sizes.tokens), np.int32)
        for row, ids in zip(tokens, found, strict=True):
            row[: len(ids)] = ids
        return tokens, np.array([len(ids) for ids in found], np.int32)

    def load(self, image_ids: Sequence[str]) -> tuple[list[int], np.ndarray]:
        """Return the rows of the pictures that can be read, which are all, and their pixels."""
        return list(range(len(image_ids))), self.pixels[[self.positions[i] for i in image_ids]]

    def _pad(self, batch: dict, count: int) -> dict:
        pad = functools.partial(_pad_rows, size=self.batch_size)
        return {name: pad(rows) for name, rows in batch.items()} | {
            "mask": np.arange(self.batch_size) < count
        }


def _pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def _evaluation(fields: dict) -> Evaluation:
    """Return an evaluation from the result of `_plain`."""
    queries = []
    for query in fields["queries"]:
        known = {f.name: query[f.name] for f in dataclasses.fields(Query)}
        queries.append(
            Query(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})
        )
    galleries = {name: tuple(ids) for name, ids in fields["galleries"].items()}
    return Evaluation(PROTOCOLS[fields["protocol"]], galleries, tuple(queries), fields["skipped"])
