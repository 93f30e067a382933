"""The compiled programs that encode images and texts and compose queries.

The evaluator and `cmap_jax.trained.Trained` share them. `EncodePrograms` takes arrays of any shape;
`BatchEncoder` takes any number of rows and fills them up to the few shapes that it compiles for:

    encoder = BatchEncoder(model)
    gallery = encoder.encode_images(variables, pixels, BATCH)        # [N, H, W, 3] -> [L, N, D]
    pyramid = encoder.encode_references(variables, pixels, BATCH)    # the composer's input
    query = encoder.compose(variables, pyramid, tokens, lengths)     # N queries

Searches and training have programs of their own.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring, sharding
from cmap_jax.models.cmap import CMAP

# Compiling a program takes longer than encoding padding.
BATCH = 32  # rows of images or texts encoded at once
ONE_BY_ONE = 4  # up to this number of images, encoding each alone is faster than a padded batch
TEXT_WIDTH = 32  # tokens; wider texts are padded to 64, 128, ...

Array = np.ndarray | jax.Array


class ImageEmbeddings(NamedTuple):
    """The embeddings of images.

    Attributes:
        gallery: as a gallery has them, [L, B, D] float32.
        references: as the composer takes them, [L, B, D] float32; None where both are the same.
    """

    gallery: Array
    references: Array | None

    @property
    def for_composer(self) -> Array:
        """The embeddings as the composer takes them, [L, B, D]."""
        return self.gallery if self.references is None else self.references


class EncodePrograms:
    """The compiled programs of a model, one for each shape of the arguments."""

    def __init__(self, model: CMAP, mesh: Mesh | None = None):
        """Compile nothing yet; the programs are kept from call to call.

        Args:
            model: the Flax module whose methods are compiled.
            mesh: devices over which the results are replicated, which lets every process read
                them; None: the results stay on the arguments' device.
        """

        def encode_images(variables: Any, images: jax.Array) -> jax.Array:
            return model.apply(variables, images, method="encode_images")

        def encode_references(variables: Any, images: jax.Array) -> jax.Array:
            return model.apply(variables, images, method="encode_references")

        def encode_both(variables: Any, images: jax.Array, rows: dict[str, jax.Array]) -> Any:
            if not model.references_differ:
                return ImageEmbeddings(encode_images(variables, images), None), rows
            references = encode_references(variables, images)
            gallery = model.apply(variables, references, method="embed_gallery")
            return ImageEmbeddings(gallery, references), rows

        def encode_text(variables: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
            return model.apply(variables, tokens, lengths, method="encode_text")

        def compose(
            variables: Any,
            references: jax.Array | None,
            tokens: jax.Array | None,
            lengths: jax.Array | None,
        ) -> scoring.ComposedQuery:
            text = None if tokens is None else encode_text(variables, tokens, lengths)
            query = model.apply(variables, references, text, method="compose")
            return query.replace(preservation=None)

        options = {} if mesh is None else {"out_shardings": sharding.replicated(mesh)}
        self._encode_images = jax.jit(encode_images, **options)
        self._encode_references = jax.jit(encode_references, **options)
        if not model.references_differ:
            self._encode_references = self._encode_images  # one program for both
        self._encode_both = jax.jit(encode_both, **options)
        self._encode_text = jax.jit(encode_text, **options)
        self._compose = jax.jit(compose, **options)

    def encode_images(self, variables: Any, images: Array) -> jax.Array:
        """Encode images as a gallery has them.

        Args:
            variables: the model's variables.
            images: [B, H, W, 3], uint8 0..255 or floating point, already normalised.

        Returns:
            The pyramid, [L, B, D] float32.
        """
        return self._encode_images(variables, images)

    def encode_references(self, variables: Any, images: Array) -> jax.Array:
        """Encode images as the composer takes them; arguments and result as `encode_images`."""
        return self._encode_references(variables, images)

    def encode_both(
        self, variables: Any, images: Array, rows: Mapping[str, Array]
    ) -> tuple[ImageEmbeddings, dict[str, jax.Array]]:
        """Encode images both as a gallery and as the composer has them, each of them once.

        Args:
            variables: the model's variables.
            images: as `encode_images` takes them.
            rows: arrays [B] that belong to the images, such as a mask. They are returned as the
                pyramids are, replicated, while each process may hold only its shard of them.
        """
        return self._encode_both(variables, images, dict(rows))

    def encode_text(self, variables: Any, tokens: Array, lengths: Array) -> jax.Array:
        """Encode token ids, [B, T] int32, of which ``lengths``, [B] int32, are no padding.

        Returns:
            [B, D] float32.
        """
        return self._encode_text(variables, tokens, lengths)

    def compose(
        self,
        variables: Any,
        references: Array | None,
        tokens: Array | None,
        lengths: Array | None,
    ) -> scoring.ComposedQuery:
        """Compose queries of references' pyramids and token ids; the texts are encoded within.

        Args:
            variables: the model's variables.
            references: result of `encode_references`, [L, B, D] float32; None for texts alone,
                where the method composes them.
            tokens: [B, T] int32; None, and ``lengths`` too, for images alone, where the method
                composes them.
            lengths: [B] int32, the number of each text's tokens before the padding.

        Returns:
            B queries, without the inputs of the preservation loss.
        """
        return self._compose(variables, references, tokens, lengths)


class BatchEncoder:
    """Encodes any number of images and texts on one device, with few compiled programs.

    Rows are padded with zeros to a batch, and texts to one of a few widths. Results are on the
    host, without the padding.
    """

    def __init__(
        self,
        model: CMAP,
        *,
        text_width: int | None = TEXT_WIDTH,
        text_limit: int | None = None,
    ):
        """Compile nothing yet.

        Args:
            model: the Flax module whose methods are compiled.
            text_width: tokens to which texts are padded, or twice as many, four times, ... where
                they are wider. None: they keep their width, for a text encoder that reads the
                padding too, whose embeddings depend on it.
            text_limit: tokens that texts are never padded beyond; None: there is no limit.
        """
        self._programs = EncodePrograms(model)
        self._text_width = text_width
        self._text_limit = text_limit

    def encode_images(self, variables: Any, pixels: np.ndarray, size: int) -> np.ndarray:
        """Encode at most ``size`` images, uint8 [B, H, W, 3], padded to ``size``, for a gallery.

        Returns:
            [L, B, D] float32.
        """
        pyramid = self._programs.encode_images(variables, pad_rows(pixels, size))
        return np.asarray(pyramid)[:, : len(pixels)]

    def encode_references(self, variables: Any, pixels: np.ndarray, size: int) -> np.ndarray:
        """Encode images as `encode_images` does, for the composer."""
        pyramid = self._programs.encode_references(variables, pad_rows(pixels, size))
        return np.asarray(pyramid)[:, : len(pixels)]

    def encode_text(self, variables: Any, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Encode token ids, [B, T] int32, with their lengths, [B] int32; B is at least 1.

        Returns:
            [B, D] float32.
        """
        parts = []
        for rows in _batches(len(tokens)):
            encoded = self._programs.encode_text(variables, *self._pad_texts(tokens, lengths, rows))
            parts.append(np.asarray(encoded)[: len(tokens[rows])])
        return np.concatenate(parts)

    def compose(
        self,
        variables: Any,
        references: np.ndarray | None,
        tokens: np.ndarray | None,
        lengths: np.ndarray | None,
        size: int = BATCH,
    ) -> scoring.ComposedQuery:
        """Compose B queries, B at least 1, a batch of ``size`` at a time; fewer are padded.

        The other arguments are as `EncodePrograms.compose` has them.

        Raises:
            ValueError: a half is missing that the method needs.
        """
        count = references.shape[1] if tokens is None else len(tokens)
        parts = []
        for rows in _batches(count, size):
            query = self._programs.compose(
                variables,
                None if references is None else pad_rows(references[:, rows], size, axis=1),
                *((None, None) if tokens is None else self._pad_texts(tokens, lengths, rows, size)),
            )
            kept = slice(len(range(count)[rows]))
            parts.append(scoring.take(jax.tree.map(np.asarray, query), kept))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)

    def widths(self, most: int) -> list[int]:
        """Return the widths that texts of 1 to ``most`` tokens are padded to, ascending."""
        return sorted({self._width(tokens) for tokens in range(1, most + 1)})

    def _width(self, tokens: int) -> int:
        """Return the width that texts are padded to, the longest of which has some tokens."""
        width = self._text_width or tokens
        while width < tokens:
            width *= 2
        return min(width, self._text_limit or width)

    def _pad_texts(
        self, tokens: np.ndarray, lengths: np.ndarray, rows: slice, size: int = BATCH
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return some rows of the texts, padded to a batch and to one of the widths."""
        width = self._width(tokens.shape[1])
        tokens = np.pad(tokens[rows], ((0, 0), (0, width - tokens.shape[1])))
        return pad_rows(tokens, size), pad_rows(lengths[rows], size)


def _batches(count: int, size: int = BATCH) -> Iterator[slice]:
    """Yield the rows of each batch."""
    for start in range(0, count, size):
        yield slice(start, start + size)


def pad_rows(array: np.ndarray, count: int, axis: int = 0) -> np.ndarray:
    """Return an array with ``count`` rows along an axis; the added ones are zero."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, count - array.shape[axis])
    return np.pad(array, widths)
