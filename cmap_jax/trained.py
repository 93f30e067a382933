"""A trained model, loaded from a workdir that holds all that its use needs.

trained = load("runs/garments")
pyramid = trained.encode_images(["dress.jpg", "skirt.jpg"])             # [L, 2, D]
query = trained.compose(["dress.jpg"], ["is red and longer"])
scores = cmap_jax.scoring.score(query, pyramid)                         # [1, 2]
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from cmap_jax import scoring
from cmap_jax.encoding import BATCH, ONE_BY_ONE, TEXT_WIDTH, BatchEncoder
from cmap_jax.files import complete_folder, expand
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import Halves
from cmap_jax.models.encoders import text_entry, text_settings
from cmap_jax.models.variant_checks import check_halves
from cmap_jax.processing import images as images_lib
from cmap_jax.processing.unread_texts import check_lengths, describe_unread
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.about import describe, digests_of_files
from cmap_jax.workdir.description import Description
from cmap_jax.workdir.fingerprint import digest
from cmap_jax.workdir.same_run import function_of_model, mark_of_run
from cmap_jax.workdir.weights import read_variables, variables_to_save

_logger = logging.getLogger(__name__)

_NAMED_IMAGES = 20  # unreadable images in an error


class EncodedImages(NamedTuple):
    """Embeddings of the readable images of a sequence.

    Attributes:
        pyramid: [L, K, D] float32; ``pyramid[:, i]`` is the embedding of ``images[kept[i]]``.
        kept: positions of the readable images in the sequence, [K] int64, ascending.
        skipped: the reason by position of each image that cannot be read.
    """

    pyramid: np.ndarray
    kept: np.ndarray
    skipped: dict[int, str]


class Trained:
    """A trained model, ready to use.

        >>> load("runs/garments")
        Trained(variant='cmap', step=4000, protocol='garments/val', levels=3, embed_dim=512, ...)

    Attributes:
        config: the whole config of its run.
        model: the Flax module.
        variables: the module's parameters and statistics.
        tokenizer: texts to token ids.
        preprocessing: how an image is read, resized and cropped.
        protocol: the evaluation protocol by which these variables were the best; None for a model
            that was converted from published towers.
        step: training steps that these variables have seen.
        workdir: absolute path or URL of the folder that it was loaded from; None for a model that
            was made in memory.
    """

    def __init__(
        self,
        description: Description,
        model: CMAP,
        variables: Any,
        step: int,
        workdir: str | None = None,
    ):
        """See `load`."""
        self.config = description.config
        self.model = model
        self.variables = variables
        self.tokenizer = description.tokenizer
        self.preprocessing = description.preprocessing
        self.protocol = next(iter(description.protocols), None)
        self.step = step
        self.workdir = workdir

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that two models have in common only if they embed alike.

        They depend on all variables, the fields of the config that say which function the variables
        compute and in which precision, the preprocessing, and the tokenizer's files.
        """
        about = {
            "function": function_of_model(self.config),
            "dtype": self.config.model.dtype,
            "tokenizer": digests_of_files(self.tokenizer),
            "preprocessing": self.preprocessing.to_dict(),
            "variables": digest(self.variables),
        }
        content = json.dumps(about, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        """Return variant, step, protocol and sizes."""
        fields = {
            "variant": self.config.model.variant,
            "step": self.step,
            "protocol": self.protocol and self.protocol.name,
            "levels": len(self.model.levels),
            "embed_dim": self.config.model.embed_dim,
            "image_size": self.preprocessing.crop,
            "parameters": sum(x.size for x in jax.tree.leaves(self.variables["params"])),
        }
        return f"Trained({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    @property
    def takes(self) -> Halves:
        """The halves that make a query of this method: an image alone, a text alone, both."""
        return self.model.takes

    @property
    def text_limit(self) -> int | None:
        """Most tokens of a text, by the tokenizer and the positions of a tower; None: no limit."""
        limits = (self.tokenizer.limit, text_settings(self.config.model).get("positions"))
        return min((number for number in limits if number is not None), default=None)

    def encode_text(self, texts: Sequence[str | Sequence[str]]) -> np.ndarray:
        """Encode texts to [B, D] float32.

            trained.encode_text(["is red", ("is longer", "has no sleeves")])         # [2, D]

        All words that the model does not know are the same to it; a warning names them. Another
        tells of texts that are too long for it, whose ends are not read.

        Args:
            texts: B texts, each one caption or a sequence of one or two captions.

        Raises:
            TypeError: one text in place of a sequence of texts.
            ValueError: a text has more tokens than `text_limit`.
        """
        tokens, lengths = self.tokenize(texts)
        if not len(tokens):
            return np.zeros((0, self.config.model.embed_dim), np.float32)
        return self._encoder.encode_text(self.variables, tokens, lengths)

    def encode_images(
        self, images: Sequence[Any], on_error: Literal["raise", "skip"] = "raise"
    ) -> np.ndarray | EncodedImages:
        """Encode images to their pyramid, [L, B, D] float32.

            trained.encode_images(["dress.jpg", PIL.Image.open("skirt.png")])    # [L, 2, D]
            pyramid, kept, skipped = trained.encode_images(paths, on_error="skip")

        Args:
            images: B paths, PIL images, encoded bytes or uint8 arrays [H, W, 3], as
                `cmap_jax.processing.images.read_image` takes them.
            on_error: "raise" an error that lists all images that cannot be read, or "skip" them.
                Under "skip" the result is an `EncodedImages`, even if all images can be read.

        Raises:
            ImageReadError: images cannot be read, under "raise"; or none can.
            TypeError: one path in place of a sequence of images.
            ValueError: no images, or another ``on_error``.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", not {on_error!r}')
        pyramid, skipped = self._encode(images, self._encoder.encode_images, on_error == "skip")
        if on_error == "raise":
            return pyramid
        kept = np.array([i for i in range(len(images)) if i not in skipped], np.int64)
        return EncodedImages(pyramid, kept, skipped)

    def encode_references(self, images: Sequence[Any], size: int | None = None) -> np.ndarray:
        """Encode images as the composer takes them, [L, B, D] float32.

        For most methods that is `encode_images`; for those that compose the encoders' own features
        it is these features, of any norm.

        Args:
            images: B images, as `encode_images` takes them.
            size: number of images encoded at once; fewer are padded to it. None: as many as
                `encode_images` encodes at once.

        Raises:
            ImageReadError, TypeError, ValueError: as `encode_images`.
        """
        return self._encode(images, self._encoder.encode_references, size=size)[0]

    def compose(
        self,
        images: Sequence[Any] | None,
        texts: Sequence[str | Sequence[str]] | None,
    ) -> scoring.ComposedQuery:
        """Compose queries, each of one reference image and one text.

            query = trained.compose(["dress.jpg"], [("is longer", "has no sleeves")])
            scores = cmap_jax.scoring.score(query, trained.encode_images(gallery))    # [1, N]

        Some methods compose one half alone: "sum" either, "magiclens" and "image_only" images
        without texts, "text_only" texts without images.

        Args:
            images: B reference images, as `encode_images` takes them; None for texts alone.
            texts: B texts, as `encode_text` takes them; None for images alone.

        Raises:
            ImageReadError: images cannot be read; lists all of them.
            ValueError: the numbers of images and texts differ, or are zero; the method needs the
                half that is missing; or a text has more tokens than `text_limit`.
        """
        check_halves(self.config.model.variant, images is not None, texts is not None)
        if images is not None and texts is not None and len(images) != len(texts):
            raise ValueError(f"{len(images)} images, but {len(texts)} texts; give one of each")
        tokens, lengths = (None, None) if texts is None else self.tokenize(texts)
        pyramid = None
        if images is not None:
            pyramid = self.encode_references(images)
        elif not len(texts):
            raise ValueError("no texts to compose")
        return self._encoder.compose(self.variables, pyramid, tokens, lengths)

    def tokenize(self, texts: Sequence[str | Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids of B texts, [B, T] int32, and their lengths, [B] int32.

        Warns as `encode_text` does.

        Raises:
            TypeError: one text in place of a sequence of texts.
            ValueError: a text has more tokens than `text_limit`.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of texts: [text]")
        if problem := describe_unread(texts, self.tokenizer):
            _logger.warning("%s", problem)
        tokens, lengths = self.tokenizer.encode_batch(texts)
        if self.text_limit is not None:
            check_lengths(texts, lengths, self.text_limit)
        return tokens, lengths

    def _encode(
        self,
        images: Sequence[Any],
        encode: Callable[..., np.ndarray],
        may_skip: bool = False,
        size: int | None = None,
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Encode images, a batch at a time.

        Args:
            images: B images, as `encode_images` takes them.
            encode: a method of the encoder, from (variables, pixels, size) to a pyramid.
            may_skip: whether images that cannot be read are left out.
            size: number of images encoded at once; None: chosen by their number.

        Returns:
            The pyramid of the readable images, and the reason by position of each other one.

        Raises:
            ImageReadError, TypeError, ValueError: as `encode_images`.
        """
        if isinstance(images, str | os.PathLike):
            raise TypeError("encode_images takes a sequence of images: [image]")
        if not len(images):
            raise ValueError("no images to encode")
        size = size or (1 if len(images) <= ONE_BY_ONE else BATCH)
        pyramids, skipped = [], {}
        for start in range(0, len(images), size):
            pixels = self._read(images, range(start, min(start + size, len(images))), skipped)
            # After an error that will be raised, the rest is read for its list alone.
            if pixels and (may_skip or not skipped):
                pyramids.append(encode(self.variables, np.stack(pixels), size))
        if skipped and (not may_skip or not pyramids):
            raise images_lib.ImageReadError(_unreadable(skipped, len(images)))
        return np.concatenate(pyramids, axis=1), skipped

    def _read(
        self, images: Sequence[Any], positions: range, skipped: dict[int, str]
    ) -> list[np.ndarray]:
        """Return the pixels of the readable images, and add to ``skipped`` why others are not."""
        pixels = []
        for position in positions:
            try:
                pixels.append(images_lib.preprocess_image(images[position], self.preprocessing))
            except images_lib.ImageReadError as error:
                skipped[position] = str(error)
        return pixels

    @functools.cached_property
    def _encoder(self) -> BatchEncoder:
        model = self.config.model
        reads_padding = text_entry(model).reads_padding(text_settings(model))
        width = None if reads_padding else self.tokenizer.width or TEXT_WIDTH
        return BatchEncoder(self.model, text_width=width, text_limit=self.text_limit)


def _unreadable(reasons: Mapping[int, str], total: int) -> str:
    """Return the message about the images that cannot be read.

    Args:
        reasons: the reason by position of each such image.
        total: number of all images.
    """
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


def load(workdir: str | os.PathLike) -> Trained:
    """Load the best variables of a workdir. Needs neither the data nor TensorFlow.

    Args:
        workdir: the folder of a run or of a converted model; ``~`` and ``$NAME`` are expanded.

    Raises:
        FileNotFoundError: not a workdir, or one without a checkpoint yet.
        ValueError: files are broken or do not fit one another; says which.
    """
    workdir = expand(os.fspath(workdir))
    description = workdir_lib.read_description(workdir)
    model = CMAP.from_config(description.config)
    step, variables = read_variables(workdir, model, description.preprocessing.crop)
    where = os.fspath(workdir_lib.absolute(workdir))
    return Trained(description, model, variables, step, workdir=where)


def write_model(
    workdir: str | os.PathLike, description: Description, model: CMAP, variables: Any
) -> None:
    """Write a workdir that holds a model and no run; it appears when it is complete.

    Args:
        workdir: a folder that does not exist, or is empty.
        description: everything but the weights.
        model: the Flax module that ``description.config`` describes.
        variables: the module's parameters and statistics.

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
            mark, record = mark_of_run(description.config), describe(description)
            manager.save(0, args=variables_to_save(variables, mark, 0, record))
        workdir_lib.write_description(scratch, description)
