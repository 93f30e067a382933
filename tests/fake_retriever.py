"""A gallery of plain colours and a retriever over it that compiles nothing, for tests of a service.

A query is the mean colour of its references, to which a text adds the colour that it names. The
score is the dot product with an image's colour, so that the right order is known.
"""

import io
import pathlib
import threading
import types
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from small import small_config

from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import Halves
from cmap_jax.processing.images import ImagePreprocessing, preprocess_image
from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.filters import Fields
from cmap_jax.retrieval.retriever import Hit, Query
from cmap_jax.scoring import Branch, ComposedQuery

COLORS = {
    "red": (220, 10, 10),
    "green": (10, 220, 10),
    "blue": (10, 10, 220),
    "yellow": (200, 200, 10),
    "grey": (90, 90, 90),
    "black": (2, 2, 2),
}
PREPROCESSING = ImagePreprocessing(resize=32, crop=32)


def encoded(color: tuple[int, ...], size=(40, 60), image_format="JPEG", **options) -> bytes:
    """A picture of one colour, as a file's content."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, image_format, **options)
    return stream.getvalue()


def write_gallery(folder: pathlib.Path) -> list[Item]:
    """Write a picture a colour; ids have slashes, spaces, signs and letters of other scripts."""
    items = []
    for number, (name, color) in enumerate(COLORS.items()):
        path = folder / f"{name}.jpg"
        path.write_bytes(encoded(color))
        item_id = f"colours/{name} & ü%2F?.jpg" if number % 2 else f"{name}/image"
        metadata = {"name": name, "price": 10.0 * number, "tags": ["plain", name[0]]}
        items.append(Item(item_id, str(path), metadata))
    return items


class FakeIndex:
    """The parts of a `StoredIndex` that a service uses."""

    def __init__(self, items: Sequence[Item], generation: str):
        self.items = list(items)
        self.manifest = types.SimpleNamespace(generation=generation, fingerprint="fake")

    def __len__(self) -> int:
        return len(self.items)

    def position_of(self, name: str) -> int | None:
        name.encode()  # as the real one: what is no text is an error
        return next((i for i, item in enumerate(self.items) if item.id == name), None)

    def column(self, name: str) -> list:
        return [item.metadata.get(name) for item in self.items]


class FakeRetriever:
    """Finds colours; notes what it was asked for, and waits while ``gate`` is closed.

    Attributes:
        composed: numbers of queries that were composed together.
        searched: a tuple for each search: number of queries, k, filter.
        warmed: arguments of each `warm_up`.
        gate: an event that searches wait for.
        is_asked: an event that the first search sets.
        fault: raised by searches; None for none.
        closed: an event that `close` sets.
    """

    def __init__(
        self, items: Sequence[Item], generation: str = "generation-000001", takes=(1, 1, 1)
    ):
        self.index = FakeIndex(items, generation)
        self.trained = types.SimpleNamespace(
            takes=Halves(*map(bool, takes)),
            preprocessing=PREPROCESSING,
            model=CMAP.from_config(small_config("sum", image_name="vectors")),
            config=types.SimpleNamespace(model=types.SimpleNamespace(variant="sum")),
        )
        self.fields = Fields(
            {"name": "text", "price": "number", "tags": "texts"}, self.index.column, len(self.index)
        )
        colors = [COLORS[item.metadata["name"]] for item in items]
        self._gallery = np.array(colors, np.float32).reshape(-1, 3) / 255
        self.composed: list[int] = []
        self.searched: list[tuple] = []
        self.warmed: list[tuple] = []
        self.gate = threading.Event()
        self.gate.set()
        self.is_asked = threading.Event()
        self.fault: Exception | None = None
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()

    def warm_up(self, batch_sizes: Sequence[int], k: int) -> None:
        self.warmed.append((tuple(batch_sizes), k))

    def compose(self, queries: Sequence[Query]) -> ComposedQuery:
        self.is_asked.set()
        self.gate.wait()
        self.composed.append(len(queries))
        rows = np.array([self._vector(query) for query in queries], np.float32)
        return ComposedQuery((Branch(rows[None]),), branch_names=("sum",), levels=("high",))

    def _vector(self, query: Query) -> np.ndarray:
        if query.text == "poison":
            raise ValueError("the text 'poison' cannot be composed")
        if query.text == "crash":
            raise RuntimeError("a secret of the inside")
        pictures = query.image if isinstance(query.image, list) else [query.image]
        pictures = [] if query.image is None else pictures
        references = [
            preprocess_image(image, PREPROCESSING).astype(np.float32)[12:20, 12:20].mean((0, 1))
            / 255
            for image in pictures
        ]
        references += [self._gallery[self.index.position_of(name)] for name in query.item or []]
        vector = np.mean(references, axis=0) if references else np.zeros(3, np.float32)
        named = [word for word in (query.text or "").split() if word in COLORS]
        return vector + sum(np.array(COLORS[word], np.float32) / 255 for word in named)

    def search_composed(
        self, query: ComposedQuery, k: int, where: Mapping | None = None
    ) -> list[list[Hit]]:
        numerator = np.asarray(query.branches[0].numerator)[0]
        self.searched.append((len(numerator), k, where))
        if self.fault is not None:
            raise self.fault
        allowed = self.fields.mask(where)
        hits = []
        for scores in numerator @ self._gallery.T:
            order = [int(p) for p in np.argsort(-scores, kind="stable")]
            order = [p for p in order if allowed is None or allowed[p]][:k]
            hits.append([self._hit(position, float(scores[position])) for position in order])
        return hits

    def search_batch(self, queries: Sequence[Query], k: int = 10, where=None) -> list[list[Hit]]:
        return self.search_composed(self.compose(queries), k, where)

    def _hit(self, position: int, score: float) -> Hit:
        item = self.index.items[position]
        return Hit(item.id, score, {"sum/high": score}, item.metadata, item.image, position)
