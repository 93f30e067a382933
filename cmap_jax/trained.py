"""A trained model, out of a workdir that holds all that a use of it needs.

trained = load("runs/garments")
pyramid = trained.encode_images(["dress.jpg"])
text = trained.encode_text(["is red and longer"])
"""

import collections
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from cmap_jax import scoring
from cmap_jax.files import complete_folder, expand
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import text_entry, text_settings
from cmap_jax.processing import images as images_lib
from cmap_jax.processing.tokenizing import Tokenizer, captions_of
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.description import Description
from cmap_jax.workdir.weights import read_variables, variables_to_save

# Programs are compiled for these shapes alone: compiling takes longer than encoding padding.
_BATCH = 32  # images or texts encoded at once
_ONE_BY_ONE = 4  # up to so many images are encoded one by one, faster than a batch of padding
_TEXT_WIDTH = 32  # tokens; longer texts have twice as many, or four times
_NAMED_IMAGES = 20  # unreadable images in an error
_NAMED_WORDS = 10  # unknown words in a warning
_SHOWN = 80  # characters of a text in a warning


class EncodedImages(NamedTuple):
    """Embeddings of those of a sequence of images that could be read.

    Attributes:
        pyramid: [L, K, D] float32; ``pyramid[:, i]`` is that of ``images[kept[i]]``.
        kept: positions in the sequence of the images that could be read, [K] int64, ascending.
        skipped: the positions of the others, each with the reason.
    """

    pyramid: np.ndarray
    kept: np.ndarray
    skipped: dict[int, str]


class Trained:
    """A trained model, ready to use.

    Attributes:
        config: the whole config of its run.
        model: the Flax module.
        variables: its parameters and statistics.
        tokenizer: texts to token ids.
        preprocessing: what is done to an image.
        protocol: what chose these weights.
        step: training steps that these weights have seen.
    """

    def __init__(self, description: Description, model: CMAP, variables: Any, step: int):
        """See `load`."""
        self.config = description.config
        self.model = model
        self.variables = variables
        self.tokenizer = description.tokenizer
        self.preprocessing = description.preprocessing
        self.protocol = description.protocols[0]
        self.step = step

    def encode_text(self, texts: Sequence[str | Sequence[str]]) -> np.ndarray:
        """Encode texts, each one caption or a sequence of one or two, to [B, D] float32.

        Words that the model does not know are all the same to it; a warning names them.
        """
        if isinstance(texts, str):
            raise TypeError("encode_text takes a sequence of texts: [text]")
        if problem := _unread(texts, self.tokenizer):
            logging.warning("%s", problem)
        tokens, lengths = self.tokenizer.encode_batch(texts)
        if text_entry(self.config.model).reads_padding(text_settings(self.config.model)):
            # An embedding depends on the width of its batch, and on nothing else to be padded.
            return np.asarray(self._encode_text(self.variables, tokens, lengths))
        width = self.tokenizer.width or _TEXT_WIDTH
        while width < tokens.shape[1]:
            width *= 2
        tokens = np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
        parts = [np.zeros((0, self.config.model.embed_dim), np.float32)]
        for start in range(0, len(tokens), _BATCH):
            rows = slice(start, start + _BATCH)
            batch = (_fill_up(x[rows], _BATCH) for x in (tokens, lengths))
            encoded = np.asarray(self._encode_text(self.variables, *batch))
            parts.append(encoded[: len(tokens[rows])])
        return np.concatenate(parts)

    def encode_images(
        self, images: Sequence[Any], on_error: Literal["raise", "skip"] = "raise"
    ) -> np.ndarray | EncodedImages:
        """Encode images to their pyramid, [L, B, D] float32.

        Args:
            images: paths, PIL images, encoded bytes or uint8 arrays [H, W, 3], as
                `cmap_jax.processing.images.read_image` takes them.
            on_error: where images cannot be read, "raise" an error that lists all of them, or
                "skip" them; the result is then an `EncodedImages`, whether any was skipped or not.

        Raises:
            ImageReadError: images that cannot be read, under "raise"; or none that can.
        """
        if isinstance(images, str | os.PathLike):
            raise TypeError("encode_images takes a sequence of images: [image]")
        if not len(images):
            raise ValueError("no images to encode")
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", not {on_error!r}')
        size = 1 if len(images) <= _ONE_BY_ONE else _BATCH
        pyramids, skipped = [], {}
        for start in range(0, len(images), size):
            pixels = self._read(images, range(start, min(start + size, len(images))), skipped)
            # After an error that will be raised, the rest is read for its list alone.
            if pixels and (on_error == "skip" or not skipped):
                pyramids.append(self._encode_pixels(np.stack(pixels), size))
        if skipped and (on_error == "raise" or not pyramids):
            raise images_lib.ImageReadError(_unreadable(skipped, len(images)))
        pyramid = np.concatenate(pyramids, axis=1)
        if on_error == "raise":
            return pyramid
        kept = np.array([i for i in range(len(images)) if i not in skipped], np.int64)
        return EncodedImages(pyramid, kept, skipped)

    def compose(
        self, images: Sequence[Any], texts: Sequence[str | Sequence[str]]
    ) -> scoring.ComposedQuery:
        """Compose queries of reference images and texts, one of each a query.

        The result is scored against the pyramid of a gallery by `scoring.score`.

        Args:
            images: B reference images, as `encode_images` takes them.
            texts: B texts, as `encode_text` takes them.

        Raises:
            ImageReadError: images that cannot be read; lists all of them.
            ValueError: not as many texts as images, or none.
        """
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images, but {len(texts)} texts; give one of each")
        pyramid, text = self.encode_images(images), self.encode_text(texts)
        parts = []
        for start in range(0, len(text), _BATCH):
            rows = slice(start, start + _BATCH)
            references = _fill_up(pyramid[:, rows], _BATCH, axis=1)
            query = self._compose(self.variables, references, _fill_up(text[rows], _BATCH))
            parts.append(scoring.take(jax.tree.map(np.asarray, query), slice(len(text[rows]))))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)

    def _read(
        self, images: Sequence[Any], positions: range, skipped: dict[int, str]
    ) -> list[np.ndarray]:
        """Return the pixels of those images that can be read; of the others, note the reason."""
        pixels = []
        for position in positions:
            try:
                pixels.append(images_lib.preprocess_image(images[position], self.preprocessing))
            except images_lib.ImageReadError as error:
                skipped[position] = str(error)
        return pixels

    def _encode_pixels(self, pixels: np.ndarray, size: int) -> np.ndarray:
        """Encode at most ``size`` images, uint8 [B, S, S, 3], with the program for ``size``."""
        encoded = self._encode_images(self.variables, _fill_up(pixels, size))
        return np.asarray(encoded)[:, : len(pixels)]

    @functools.cached_property
    def _encode_text(self) -> Any:
        return jax.jit(lambda v, t, n: self.model.apply(v, t, n, method="encode_text"))

    @functools.cached_property
    def _encode_images(self) -> Any:
        return jax.jit(lambda v, x: self.model.apply(v, x, method="encode_images"))

    @functools.cached_property
    def _compose(self) -> Any:
        def compose(variables: Any, pyramid: jax.Array, text: jax.Array) -> scoring.ComposedQuery:
            query = self.model.apply(variables, pyramid, text, method="compose")
            return query.replace(preservation=None)

        return jax.jit(compose)


def _fill_up(rows: np.ndarray, count: int, axis: int = 0) -> np.ndarray:
    """Return an array with ``count`` rows; the new ones are zero."""
    widths = [(0, 0)] * rows.ndim
    widths[axis] = (0, count - rows.shape[axis])
    return np.pad(rows, widths)


def _unreadable(reasons: Mapping[int, str], total: int) -> str:
    """Return a text about all images that cannot be read."""
    lines = [f"image {position}: {reason}" for position, reason in reasons.items()]
    if len(lines) == 1 and total == 1:
        return reasons[0]
    more = [f"and {len(lines) - _NAMED_IMAGES} more"] if len(lines) > _NAMED_IMAGES else []
    return "\n  ".join(
        [
            f"{len(lines)} of {total} images cannot be read (left out with "
            'encode_images(..., on_error="skip")):',
            *lines[:_NAMED_IMAGES],
            *more,
        ]
    )


def _unread(texts: Sequence[str | Sequence[str]], tokenizer: Tokenizer) -> str:
    """Return a warning about words of some texts that a tokenizer does not read; empty if none."""
    captions = [caption for text in texts for caption in captions_of(text)]
    problems = []
    if unknown := collections.Counter(w for c in captions for w in tokenizer.unknown(c)):
        named = [
            f'"{word}": {near}' if (near := tokenizer.nearest(word)) else f'"{word}"'
            for word, _ in unknown.most_common(_NAMED_WORDS)
        ]
        more = f", and {len(unknown) - _NAMED_WORDS} more" if len(unknown) > _NAMED_WORDS else ""
        problems.append(
            "words that this model does not know, all read as <unk>, each with the nearest that it "
            f"knows, if any: {', '.join(named)}{more}"
        )
    if lost := [c for c in captions if tokenizer.loses_all_words(c)]:
        problems.append(
            f"no word is left of {len(lost)} texts, such as {lost[0][:_SHOWN]!r}: only the letters "
            "a to z are read"
        )
    return "; ".join(problems)


def load(workdir: str | os.PathLike) -> Trained:
    """Load the best variables of a workdir. Needs neither the data nor TensorFlow.

    Args:
        workdir: its folder; ``~`` and ``$NAME`` are expanded.

    Raises:
        FileNotFoundError: not a workdir, or one without a checkpoint yet.
        ValueError: files that are broken or do not fit one another; says which.
    """
    workdir = expand(os.fspath(workdir))
    description = workdir_lib.read_description(workdir)
    model = CMAP.from_config(description.config)
    step, variables = read_variables(workdir, model, description.preprocessing.crop)
    return Trained(description, model, variables, step)


def write_model(
    workdir: str | os.PathLike, description: Description, model: CMAP, variables: Any
) -> None:
    """Write a workdir that holds a model and no run; it appears when it is complete.

    Raises:
        ValueError: the variables are not those of the model.
        OSError: the folder is there already and not empty, or cannot be written.
    """
    expected = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(description.preprocessing.crop))
    )
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (expected, variables)]
    if shapes[0] != shapes[1]:
        raise ValueError("the variables are not those of the model")
    with complete_folder(workdir_lib.absolute(workdir)) as scratch:
        with ocp.CheckpointManager(scratch / workdir_lib.BEST) as manager:
            mark = workdir_lib.mark_of_run(description.config)
            manager.save(0, args=variables_to_save(variables, mark))
        workdir_lib.write_description(scratch, description)
