"""The queries of a search: reference pictures, images of the gallery and texts, composed.

    composer = QueryComposer(trained, stored)
    query = composer.compose([Query(image="dress.jpg", text="in red"), Query(item="a/1.jpg")])

A query's result does not depend on the queries that are composed together with it. Batches have a
few sizes, and texts a few widths, so that `QueryComposer.warm_up` can compile all programs.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from cmap_jax import scoring
from cmap_jax.encoding import BATCH, TEXT_WIDTH, BatchEncoder
from cmap_jax.models.variant_checks import check_halves
from cmap_jax.numerics import NORM_FLOOR
from cmap_jax.processing.tokenizing import check_captions
from cmap_jax.processing.unread_texts import check_lengths
from cmap_jax.retrieval.batch_sizes import BatchSizes
from cmap_jax.retrieval.index_files.quantization import FLOAT32
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.trained import Trained

MOST_TOKENS = 128  # a text's; the widths of longer ones would be without end
_SIZES = (1, 8, BATCH)  # queries composed at once, before `warm_up` chooses others


@dataclasses.dataclass(frozen=True)
class Query:
    """A query: reference pictures, images of the gallery, a text; at least one of them.

    Attributes:
        image: a reference picture, as `Trained.encode_images` takes it, or a list or tuple of
            several, whose embeddings are averaged.
        item: the id of an image of the gallery, or several ids, as further references.
        text: one caption, or a tuple of two. A blank one is none.
    """

    image: Any = None
    item: str | Sequence[str] | None = None
    text: str | tuple[str, ...] | None = None


class _Parts(NamedTuple):
    """A query, taken apart."""

    images: list[Any]
    items: list[str]
    captions: tuple[str, ...]

    @property
    def halves(self) -> tuple[bool, bool]:
        """Whether there is a reference, and whether there is a text."""
        return bool(self.images or self.items), bool(self.captions)


class QueryComposer:
    """Composes queries against a stored index by the model that it was made with."""

    def __init__(self, trained: Trained, stored: StoredIndex):
        """Compile nothing yet.

        Args:
            trained: the model.
            stored: an index whose images may be references.
        """
        self._trained, self._stored = trained, stored
        self._sizes = BatchSizes(_SIZES)
        # An embedding that depends on a batch's padding would depend on its other texts.
        self._encoder = BatchEncoder(
            trained.model.with_texts_alone(),
            text_width=trained.tokenizer.width or TEXT_WIDTH,
            text_limit=trained.text_limit,
        )

    def compose(self, queries: Sequence[Query]) -> scoring.ComposedQuery:
        """Compose B queries.

        Raises:
            ImageReadError: pictures cannot be read; lists all of them.
            ValueError: no queries; a query without a half that the method needs, or with one that
                it does not read; an id that the gallery lacks; a text of more than `MOST_TOKENS`
                or of `Trained.text_limit`.
            TypeError: a text or an id that is no string.
        """
        if not len(queries):
            raise ValueError("no queries to compose")
        parts = [self._take_apart(query) for query in queries]
        references = self._references(parts)
        groups = collections.defaultdict(list)
        for number, part in enumerate(parts):
            groups[part.halves].append(number)
        composed = []
        for (has_image, has_text), numbers in groups.items():
            pyramid = np.stack([references[n] for n in numbers], axis=1) if has_image else None
            texts = [parts[n].captions for n in numbers] if has_text else None
            composed.append(self._compose_alike(pyramid, texts))
        order = np.argsort(np.concatenate([*groups.values()]))
        return _in_order(composed, order)

    def warm_up(self, sizes: Iterable[int]) -> scoring.ComposedQuery:
        """Compile all that batches of these sizes need, and compose in no other sizes from now on.

        Args:
            sizes: numbers of queries; those above 32 are composed 32 at a time.

        Returns:
            One of the queries that were composed for it, which means nothing.
        """
        self._sizes = BatchSizes(min(size, BATCH) for size in sizes)
        takes, model = self._trained.takes, self._trained.model
        shape = len(model.levels), 1, self._trained.config.model.embed_dim
        pyramid = np.zeros(shape, np.float32)
        widths = self._encoder.widths(most_tokens(self._trained))
        texts = [np.zeros((1, width), np.int32) for width in widths]
        inputs = [(pyramid, None)] * takes.image
        inputs += [(None, text) for text in texts] * takes.text
        inputs += [(pyramid, text) for text in texts] * takes.both
        for size in self._sizes:
            if takes.image or takes.both:
                self._trained.encode_references([np.zeros((8, 8, 3), np.uint8)], size)
            for references, tokens in inputs:
                lengths = None if tokens is None else np.ones(1, np.int32)
                query = self._encoder.compose(
                    self._trained.variables, references, tokens, lengths, size=size
                )
        return query

    def _take_apart(self, query: Query) -> _Parts:
        """Return a query's parts; raises as `compose`."""
        captions = () if query.text is None else _captions(query.text)
        parts = _Parts(_as_list(query.image), _as_list(query.item), captions)
        has_image, has_text = parts.halves
        variant, takes = self._trained.config.model.variant, self._trained.takes
        check_halves(variant, has_image, has_text)
        if has_image and has_text and not takes.both:
            unread, read = ("images", "a text") if takes.text else ("texts", "an image")
            raise ValueError(f"the method {variant} does not read {unread}: give {read} alone")
        for item in parts.items:
            self._position(item)
        return parts

    def _position(self, item: str) -> int:
        """Return the position of an image of the gallery."""
        if not isinstance(item, str):
            raise TypeError(f"an item's id is a string, not {item!r}")
        position = self._stored.position_of(item)
        if position is None:
            raise ValueError(f"no image of the gallery has the id {item!r}")
        return position

    def _references(self, parts: Sequence[_Parts]) -> list[np.ndarray]:
        """Return each query's reference as the composer takes it, [L, D] float32.

        The entry of a query without references is empty.
        """
        # The gallery's embedding of an image is the reference's only if it is kept as it was
        # computed, and if the method embeds both alike. Else the picture is encoded again, so that
        # an image of the gallery is the same query as its file.
        is_stored = self._stored.manifest.dtype == FLOAT32
        is_stored &= not self._trained.model.references_differ
        pictures = [list(part.images) for part in parts]
        stored = [[self._position(item) for item in part.items] for part in parts]
        if not is_stored:
            for own, positions in zip(pictures, stored, strict=True):
                # A path object reads from buckets too.
                own += [epath.Path(self._stored.item_at(p).image) for p in positions]
            stored = [[] for _ in parts]
        encoded = iter(self._encode([image for own in pictures for image in own]))
        references = []
        for own, positions in zip(pictures, stored, strict=True):
            rows = [next(encoded) for _ in own]
            if positions:
                rows += list(self._stored.rows(np.array(positions)).swapaxes(0, 1))
            references.append(average(np.stack(rows, axis=1)) if rows else np.empty(0))
        return references

    def _encode(self, images: Sequence[Any]) -> list[np.ndarray]:
        """Return the embedding of each image for the composer, [L, D] float32."""
        if not images:
            return []
        parts = [
            self._trained.encode_references(images[rows], size)
            for rows, size in self._sizes.parts(len(images))
        ]
        return list(np.concatenate(parts, axis=1).swapaxes(0, 1))

    def _compose_alike(
        self, pyramid: np.ndarray | None, texts: list[tuple[str, ...]] | None
    ) -> scoring.ComposedQuery:
        """Compose queries that all have the same halves."""
        tokens = lengths = None
        if texts is not None:
            tokens, lengths = self._trained.tokenize(texts)
            check_lengths(texts, lengths, MOST_TOKENS)
        count = pyramid.shape[1] if texts is None else len(texts)
        composed = [
            self._encoder.compose(
                self._trained.variables,
                None if pyramid is None else pyramid[:, rows],
                *((None, None) if texts is None else (tokens[rows], lengths[rows])),
                size=size,
            )
            for rows, size in self._sizes.parts(count)
        ]
        return _in_order(composed, np.arange(count))


def most_tokens(trained: Trained) -> int:
    """Return the most tokens of a query's text."""
    return min(MOST_TOKENS, trained.text_limit or MOST_TOKENS)


def joined(parts: Sequence[scoring.ComposedQuery]) -> scoring.ComposedQuery:
    """Concatenate batches of queries, on the host."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)


def average(pyramid: Float[np.ndarray, "L R D"]) -> Float[np.ndarray, "L D"]:
    """Return the reference that stands for several: their mean direction, at their mean norm.

    See docs/method.md, section 1, several references.

    Args:
        pyramid: R references as the composer takes them, l2-normalised or features of any norm.
    """
    if pyramid.shape[1] == 1:
        return pyramid[:, 0]
    norms = np.linalg.norm(pyramid, axis=-1, keepdims=True)
    mean = (pyramid / np.maximum(norms, NORM_FLOOR)).mean(axis=1)
    length = np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), NORM_FLOOR)
    return (mean / length * norms.mean(axis=1)).astype(np.float32)


def _as_list(value: Any) -> list[Any]:
    """Return one value or several as a list; None is none."""
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None else [value]


def _captions(text: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the captions of a text that are not blank."""
    captions = [text] if isinstance(text, str) else text
    is_sequence = isinstance(captions, list | tuple)
    if not is_sequence or not all(isinstance(caption, str) for caption in captions):
        raise TypeError(f"a text is a string or a tuple of two, not {text!r}")
    captions = check_captions(captions)
    return tuple(caption for caption in captions if caption.strip())


def _in_order(parts: Sequence[scoring.ComposedQuery], order: np.ndarray) -> scoring.ComposedQuery:
    """Concatenate batches of queries and return the queries numbered by ``order``, [B] int."""
    return jax.tree.map(lambda leaf: leaf[:, order], joined(parts))
